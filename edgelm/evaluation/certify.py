"""Certification: the divergence of what ``quantize`` wrote from the model that it was made of.

Both run layer by layer over a few windows that are spread over a text, on the CPU with activations
in float32: the memory is that of a layer of the original, or of the result's head. What is kept
meanwhile lies in files.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgelm.budget.units import BLOCK_BYTES
from edgelm.checkpoint.certificate import Certificate
from edgelm.errors import UsageError
from edgelm.evaluation.baseline import Baseline, Facts, tokenizer_sha256
from edgelm.evaluation.divergence import TextScore, block_tokens, compare, working_bytes
from edgelm.evaluation.duration import product_flops
from edgelm.evaluation.layerwise import (
    BLOCK_TOKENS,
    Stretch,
    head_engine,
    largest_layer_bytes,
    write_hidden,
)
from edgelm.evaluation.make_baseline import EXACT
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.rows import Rows
from edgelm.loading import plan
from edgelm.models.model_files import ModelFiles
from edgelm.planning.matrices import keeps_its_scheme
from edgelm.planning.settings import Settings
from edgelm.progress import Progress
from edgelm.text.lines import UTF8
from edgelm.text.tokenizer import Tokenizer
from edgelm.version import __version__

WINDOWS, WINDOW = 16, 256
BUILT_IN = "the built-in text"
_FILE = "data/certificate.txt"
_ON_CPU: dict[str, Any] = {"device": "cpu"}
_ROOM_BYTES = 256 << 20  # for logits: every block of them reads the original's whole head


@dataclass(frozen=True)
class Text:
    """Windows that are spread over a text, and its name."""

    name: str
    passage: Passage

    @classmethod
    def usual(cls, path: str | Path | None, files: ModelFiles) -> Text:
        """As many windows as every certificate has; see ``read``."""
        return cls.read(path, files.tokenizer, window=window_of(files), windows=WINDOWS)

    @classmethod
    def read(
        cls, path: str | Path | None, tokenizer: Tokenizer, *, window: int, windows: int
    ) -> Text:
        """Read a UTF-8 file, or the text in the package, which is not used for calibration.

        Raises:
            UsageError: the file cannot be read, or has too few tokens.
        """
        name = BUILT_IN if path is None else re.sub(r"[^\w. +-]", "_", Path(path).name)
        try:
            data = _built_in() if path is None else Path(path).read_bytes()
            ids = tokenizer.encode(data.decode(UTF8), add_special=False)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"certificate_text: {path} cannot be read as UTF-8 text: {error}. Give a plain "
                "text file, or none for the built-in text."
            ) from error
        found = len(ids) // window
        if found < windows:
            raise UsageError(
                f"certificate_text: {name} has {len(ids)} tokens; {windows} windows of {window} "
                f"are read, so {windows * window} are needed. Give a longer text."
            )
        firsts = [number * found // windows * window for number in range(windows)]
        own = [token for first in firsts for token in ids[first : first + window]]
        tokens = torch.tensor(own).view(windows, window)
        bos = tokenizer.bos_id if tokenizer.add_bos else None
        if bos is not None:
            tokens[:, 0] = bos
        words = max(1, len(tokenizer.decode(own).split()))
        digest = hashlib.sha256(data).hexdigest()
        parts = ((name, windows),)
        return cls(name, Passage(tokens, bos is not None, len(own) / words, digest, parts))


def _built_in() -> bytes:
    return package_files("edgelm").joinpath(_FILE).read_bytes()


def window_of(files: ModelFiles) -> int:
    """Tokens of a window: at most the model's context."""
    return min(WINDOW, files.config.max_context)


def certify(
    files: ModelFiles, original: ModelFiles, text: Text, *, source: str, weights_sha256: str,
    aside: Path, progress: Progress | None = None,
) -> Certificate:  # fmt: skip
    """Measure ``files``, which were made of ``original``.

    Args:
        source: the original's name in the certificate.
        aside: a folder for what is kept meanwhile: hidden states and the original's head.
        progress: called with (title, done, all).

    Raises:
        DoesNotFitError: there is not enough memory for a layer or the head.
        NonFiniteError: a layer produced NaN or infinity.
    """
    score = measure(files, original, text, aside, progress)
    assert score.kld_mean is not None and score.kld_p99 is not None and score.kld_max is not None
    assert score.top1_agreement is not None and score.ppl_baseline is not None
    return Certificate(
        text.name, text.passage.sha256, tokenizer_sha256(files.tokenizer),
        source, original.sha256, weights_sha256, score.windows, score.window,
        score.bos, score.tokens, score.kld_mean, score.kld_p99, score.kld_max,
        score.top1_agreement, score.ppl, score.ppl_baseline, kernels(files, text),
        {"edgelm": __version__, "torch": torch.__version__},
    )  # fmt: skip


def kernels(files: ModelFiles, text: Text) -> dict[str, str]:
    """What multiplies, by the kind of matrix."""
    window = text.passage.ids.shape[1]
    return dict(plan(files, context=window, **_ON_CPU, **_as_stored(files)).kernels)


def _as_stored(files: ModelFiles) -> dict[str, Any]:
    """Settings in which the weights run as the files hold them."""
    model = files.assemble("causal-lm")
    kept = keeps_its_scheme(model.decoder, model.names)
    return {"quant": "auto" if kept else "none", "dtype": "float32", "kv": "float32"}


@torch.inference_mode()
def measure(
    files: ModelFiles, original: ModelFiles | None, text: Text, aside: Path,
    progress: Progress | None = None,
) -> TextScore:  # fmt: skip
    """Figures over the text; without the original, of perplexity alone. See ``certify``."""
    passage, size = text.passage, files.config.hidden_size
    windows = [Stretch(ids) for ids in passage.ids]
    with (
        tempfile.TemporaryFile(dir=aside) as theirs,
        tempfile.TemporaryFile(dir=aside) as ours,
    ):
        baseline = None
        if original is not None:
            baseline = Baseline(theirs, _facts(original, passage))
            bar = _bar(progress, "certificate: the original")
            write_hidden(original, windows, baseline.hidden, EXACT | _ON_CPU, bar)
            baseline.write_head(original)
        hidden, settings = Rows(ours, 0, size), _ON_CPU | _as_stored(files)
        write_hidden(files, windows, hidden, settings, _bar(progress, "certificate: the result"))
        context = passage.ids.shape[1]
        engine = head_engine(files, Settings(**settings, context=context, rows=1))
        block = _block(files, context)
        logits = torch.empty(block, files.config.vocab_size)

        def mine(start: int, count: int) -> Tensor:
            return engine.logits(hidden.read(start, count), out=logits[:count])

        bar = _bar(progress, "certificate: the comparison")
        exact = None if baseline is None else baseline.logits
        return compare(passage, block, mine, exact, bar)


def _facts(original: ModelFiles, passage: Passage) -> Facts:
    """What reading a baseline's numbers needs."""
    head, config = original.assemble("causal-lm").decoder.head, original.config
    assert head is not None
    shape = (passage.ids.shape[0], passage.ids.shape[1])
    sizes = (config.hidden_size, config.vocab_size)
    return Facts("", "", passage.sha256, shape, *sizes, head.softcap)


def _bar(progress: Progress | None, title: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(title, done, total)


def _block(files: ModelFiles, window: int) -> int:
    """Tokens that are compared at once."""
    return block_tokens(files.config.vocab_size, window, _ROOM_BYTES)


def needed_bytes(original: ModelFiles, head_bytes: int) -> int:
    """Upper bound of a certificate's memory beside the process, from headers.

    head_bytes: of the result's head in its scheme.
    """
    window, config = window_of(original), original.config
    fixed: dict[str, Any] = {"context": window, "rows": 1, "chunk": BLOCK_TOKENS}
    exact = Settings(**(EXACT | _ON_CPU | fixed))
    figures = working_bytes(config.vocab_size, _block(original, window)) + BLOCK_BYTES
    layer = largest_layer_bytes(original, exact)
    return max(layer, _HEAD_COPIES * head_bytes + _HEAD_BYTES + figures)


_HEAD_COPIES, _HEAD_BYTES = 2, 64 << 20  # as stored and laid out; activations and scratch


def expected_s(original: ModelFiles) -> float:
    """About how many seconds a certificate takes here, from a product that is timed now."""
    flops = product_flops(original.config.hidden_size)
    matrices = original.assemble("base").decoder.matrices()  # a head is as large as its embedding
    weights = sum(rows * inputs for _, (rows, inputs) in matrices)
    tokens, runs = WINDOWS * window_of(original), 3  # the result's kernels take up to twice as long
    return runs * 2 * tokens * weights / flops
