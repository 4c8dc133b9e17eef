"""Layer-wise evaluation: hidden states with only one layer's weights in memory at a time.

The states of all tokens are kept in a file. A layer is loaded, run over all of them, its results
overwrite its inputs, and it is dropped: the peak is that of one layer, however deep the model.
The head, too, can be loaded alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import ModuleList

from edgelm.budget.dtypes import KV_DTYPES
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import KV_CACHE, PROCESS, Part, PartName
from edgelm.budget.plan import Plan
from edgelm.budget.units import human
from edgelm.engine.engine import Engine, RowTokens
from edgelm.engine.loader import Loader
from edgelm.errors import DoesNotFitError, NonFiniteError
from edgelm.evaluation.rows import Rows
from edgelm.models.assembled import Assembled
from edgelm.models.decoder import Decoder
from edgelm.models.layers import Embedding
from edgelm.models.model_files import ModelFiles
from edgelm.models.weight_names import WeightNames
from edgelm.ops.step import Step
from edgelm.planning.load_peak import load_peak_bytes
from edgelm.planning.matrices import keeps_its_scheme
from edgelm.planning.settings import Settings
from edgelm.planning.solver import solve

if TYPE_CHECKING:
    from edgelm.ops import Ops

BLOCK_TOKENS = 256


@dataclass(frozen=True)
class Stretch:
    """``ids`` [T] from an empty cache, then ``tails``, each as if it alone followed them."""

    ids: Tensor
    tails: tuple[Tensor, ...] = ()

    @property
    def longest(self) -> int:
        """Maximum number of tokens in a row."""
        return len(self.ids) + max(map(len, self.tails), default=0)


class StoredEmbedding(Embedding):
    """An embedding whose rows are read from the file at lookup."""

    def __init__(self, names: WeightNames, shape: tuple[int, int]) -> None:
        super().__init__(*shape)
        self._names = names

    def forward(self, ids: Tensor, out: Tensor, ops: Ops) -> Tensor:
        known, places = ids.unique(return_inverse=True)
        rows = torch.cat([self._names.read("embed", row, row + 1) for row in known.tolist()])
        return out.copy_(rows[places])


class LayerAlone(Decoder):
    """One layer in place of a decoder: hidden states [M, N] in, hidden states [M, N] out.

    The first layer takes ids and includes the embedding, the last includes the final norm.
    """

    def __init__(self, one: Decoder, names: WeightNames, *, first: bool, last: bool) -> None:
        super().__init__(
            StoredEmbedding(names, one.embed.shape), one.layers, one.norm, None,
            embed_scale=one.embed_scale, embed_norm=one.embed_norm if first else None,
        )  # fmt: skip
        self._last = last

    def forward(self, tokens: Tensor, step: Step) -> Tensor:
        if self._last:
            return super().forward(tokens, step)
        x = self._embedded(tokens, step)
        self.layers[0](x, step)
        return x


def write_hidden(
    files: ModelFiles, stretches: Sequence[Stretch], rows: Rows, settings: Mapping[str, Any],
    progress: Callable[..., None] | None,
) -> None:  # fmt: skip
    """Write last hidden states of every stretch's ids, then of its tails, in order, to ``rows``.

    They equal, bit for bit, those of the whole model run in pieces of ``BLOCK_TOKENS``.

    Args:
        settings: keywords of ``Settings`` except context, rows and chunk.

    Raises:
        DoesNotFitError: one layer exceeds the budget; the error has its plan.
        NonFiniteError: a layer produced NaN or infinity.
    """
    context = max(stretch.longest for stretch in stretches)
    fixed = {"context": context, "rows": 1, "chunk": BLOCK_TOKENS}
    chosen = Settings(**{**settings, **fixed})
    count = files.config.num_layers
    for index in range(count):

        def done(stretch: int, before: int = index * len(stretches)) -> None:
            if progress:
                progress(before + stretch, count * len(stretches))

        try:
            _run_layer(files, index, chosen, stretches, rows, done)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{files.name}: layer {index} produced NaN or infinity; its weights are damaged."
            ) from error


def _run_layer(
    files: ModelFiles, index: int, settings: Settings, stretches: Sequence[Stretch], rows: Rows,
    done: Callable[[int], None],
) -> None:  # fmt: skip
    """Load one layer, run every stretch through it, and free it."""
    engine = layer_engine(files, index, settings)
    cache = engine.make_cache(1, engine.plan.context, KV_DTYPES[engine.plan.kv])
    place = 0

    def run(ids: Tensor) -> None:
        nonlocal place
        for piece in ids.split(BLOCK_TOKENS) if len(ids) else ():
            given = rows.read(place, len(piece)) if index else piece
            rows.write(place, engine.run(cache, [RowTokens(0, given)]).states)
            place += len(piece)

    for number, stretch in enumerate(stretches):
        cache.truncate(0, 0)
        run(stretch.ids)
        held = cache.snapshot(0) if stretch.tails else None
        for tail in stretch.tails:
            assert held is not None
            cache.restore(0, held)
            run(tail)
        done(number + 1)


def layer_engine(files: ModelFiles, index: int, settings: Settings) -> Engine:
    """Load layer ``index`` as planned.

    Raises:
        DoesNotFitError: it exceeds the budget; the error has its plan.
    """
    return _loaded(_layer(files, index), settings, "One layer")


def head_engine(files: ModelFiles, settings: Settings) -> Engine:
    """Load the language model's head as planned; its logits are those of the whole model.

    Raises:
        DoesNotFitError: it exceeds the budget; the error has its plan.
    """
    model = files.assemble("causal-lm")
    model.decoder.layers = ModuleList()
    config = replace(files.config, num_layers=1, windows=files.config.windows[:1])
    return _loaded(replace(model, config=config), settings, "The head")


def _loaded(alone: Assembled, settings: Settings, what: str) -> Engine:
    plan = _plan(alone, settings)
    if not plan.fits:
        floats = " without quantization" if settings.quant == "none" else ""
        raise DoesNotFitError(
            f"{what} of {alone.name}{floats} needs {human(plan.predicted_peak_bytes)}; the budget "
            f"is {human(plan.budget_bytes)}. Raise it, or choose a smaller window; edgelm eval "
            "also takes a --baseline file made elsewhere.",
            plan,
        )
    ledger = Ledger.of(plan)
    Loader(alone, plan, ledger, None).load()
    return Engine(alone, plan, ledger)


def layer_bytes(files: ModelFiles, index: int, settings: Settings) -> int:
    """Upper bound of the memory to load and run layer ``index``, process excluded, from headers."""
    plan = _plan(_layer(files, index), settings)
    runtime = sum(part.bytes for part in plan.parts if part.name in PROCESS)
    return plan.predicted_peak_bytes - runtime


def largest_layer_bytes(files: ModelFiles, settings: Settings) -> int:
    """The largest of ``layer_bytes``; layers differ by window, and the first and the last one have
    the embedding's norm and the final one."""
    kinds = {window: index for index, window in enumerate(files.config.windows)}
    kinds |= {0: 0, -1: files.config.num_layers - 1}
    return max(layer_bytes(files, index, settings) for index in kinds.values())


def _layer(files: ModelFiles, index: int) -> Assembled:
    one = files.assemble_layer(index)
    last = index == files.config.num_layers - 1
    return replace(one, decoder=LayerAlone(one.decoder, one.names, first=index == 0, last=last))


def _plan(alone: Assembled, settings: Settings) -> Plan:
    """The plan of a part of a model, without an embedding that only looks up: it stays in the file.

    A part that a quantized model has left in floats is run in these, as in the whole.
    """
    decoder = alone.decoder
    if settings.quant == "auto" and not keeps_its_scheme(decoder, alone.names):
        settings = replace(settings, quant="none")
    whole = solve(alone, settings)
    products, parts = whole.products, whole.parts
    if not decoder.embed.tied_to_head:
        products = tuple(p for p in products if p.names != ("embed",))
        parts = tuple(p for p in parts if p.name != PartName.EMBED)
    held = sum(p.bytes for p in parts if p.name in KV_CACHE)
    states = Part(PartName.HIDDEN_STATES, 4 * BLOCK_TOKENS * alone.config.hidden_size * 4)
    shared = Part(PartName.SNAPSHOTS, held)  # a row that tails begin with
    parts = (*parts, states, shared)
    plan = replace(whole, products=products, parts=parts)
    runtime = sum(p.bytes for p in parts if p.name in PROCESS)
    load_peak = load_peak_bytes(products, alone.names, runtime)
    fits = max(load_peak, plan.steady_peak_bytes) <= plan.budget_bytes
    return replace(plan, fits=fits, load_peak_bytes=load_peak)
