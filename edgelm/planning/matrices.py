"""Scheme, kernel and bytes of every weight under a recipe, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import quant
from edgelm.budget.parts import Part, PartName, Where
from edgelm.budget.plan import MatrixPlan
from edgelm.budget.weight_name import WeightName
from edgelm.errors import KernelUnavailableError, UsageError
from edgelm.models.decoder import Decoder
from edgelm.models.layers import Embedding, part_names
from edgelm.models.weight_names import WeightNames
from edgelm.planning import kernel_choice
from quant import Kernel, QuantError, Recipe, Scheme, choose, find


@dataclass(frozen=True)
class WeightPlan:
    """All matrices of a model, and what they and its vectors weigh.

    ``label`` is the recipe's name, or for a quantized file the scheme that most bytes are in.
    ``vector_bytes`` are those of norms and biases in the file.
    """

    label: str
    products: tuple[MatrixPlan, ...]
    parts: tuple[Part, ...]
    parameters: int
    vector_bytes: int

    @property
    def nbytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Bytes of all tensors x 8 / parameters: matrices as their schemes say, whatever a kernel
        adds, and vectors as the file has them. A folder of this recipe says the same of itself."""
        matrices = sum(Scheme.parse(p.scheme).nbytes(p.shape) for p in self.products)
        return (matrices + self.vector_bytes) * 8 / self.parameters


@dataclass(frozen=True)
class Choice:
    """The scheme of a matrix; ``stored`` and ``note`` as in ``MatrixPlan``."""

    scheme: Scheme
    stored: bool = False
    note: str = ""

    def alike(self, other: Choice) -> bool:
        """True if matrices of both can be one product."""
        return (self.scheme, self.stored) == (other.scheme, other.stored)


@dataclass(frozen=True)
class WeightPlanner:
    """Plans the weights of one model; what recipes share is given once.

    ``backend``, ``measured`` and ``exact`` choose kernels, see ``quant.choose``; ``dtype`` is the
    activations'. ``device`` is where the matrices go.
    """

    decoder: Decoder
    names: WeightNames
    dtype: torch.dtype
    backend: str
    measured: kernel_choice.Rankings
    exact: bool
    device: str = "cpu"

    def plan(self, recipe: Recipe | None) -> WeightPlan:
        """Under ``None`` packed files keep their scheme and others get the default recipe.

        Raises:
            UsageError: the recipe does not go with the shapes.
            ModelFileError: a weight is missing or has another shape.
            KernelUnavailableError: the chosen backend cannot run a matrix.
        """
        products = tuple(self._fused(recipe))
        parameters = sum(p.shape[0] * p.shape[1] for p in products)
        label = _label(products, self.names) if recipe is None else str(recipe)
        parts = tuple(self._parts(products))
        elements, nbytes = self._vectors()
        return WeightPlan(label, products, parts, parameters + elements, nbytes)

    def _fused(self, recipe: Recipe | None) -> Iterator[MatrixPlan]:
        """The embedding, the layers, the head; parts in one scheme are one product."""
        embed = self.decoder.embed
        yield self._product(
            ["embed"], [embed.shape], self._choice("embed", embed.shape, recipe), embed
        )
        for prefix, projection in self.decoder.projections():
            if projection is self.decoder.head and embed.tied_to_head:
                continue
            named = part_names(prefix, list(projection.parts))
            runs: list[tuple[list[str], list[tuple[int, int]], Choice]] = []
            for name, rows in zip(named, projection.parts.values(), strict=True):
                shape = (rows, projection.in_size)
                head = self.decoder.head
                if head is not None and projection is head and not head.is_language_model:
                    self.names.info(name, shape)
                    # Small, and nothing comes after it.
                    choice = Choice(Scheme.floating(self.dtype))
                else:
                    choice = self._choice(name, shape, recipe)
                if not runs or not choice.alike(runs[-1][2]):
                    runs.append(([], [], choice))
                runs[-1][0].append(name)
                runs[-1][1].append(shape)
                if projection.bias:
                    self.names.info(name, (rows,), "bias")
            for run_names, shapes, choice in runs:
                yield self._product(run_names, shapes, choice)

    def _choice(self, name: str, shape: tuple[int, int], recipe: Recipe | None) -> Choice:
        info = self.names.info(name, shape)
        known = self.names.recipe_name(name)
        if info.scheme is not None and (recipe is None or recipe.accepts(known, info.scheme)):
            return Choice(info.scheme, stored=True)
        if recipe is None and info.stays_float:
            return Choice(Scheme.floating(self.dtype))
        if recipe is None and info.nearest is not None:
            return Choice(info.nearest)
        return self._by_rule(known, shape, recipe or Recipe.parse("int4"))

    def _by_rule(self, name: str, shape: tuple[int, int], recipe: Recipe) -> Choice:
        """The rule's first scheme that fits and has a fast kernel, or else the first that fits.

        Those of twice the first one's bits are for rows that others do not fit: a kernel is no
        reason to double a model.
        """
        try:
            fitting = recipe.schemes_for(name, shape, self.dtype)
        except QuantError as error:
            raise UsageError(f"quant: {error}") from error
        first = fitting[0]
        similar = [scheme for scheme in fitting if scheme.bits < 2 * first.bits]
        fast = (scheme for scheme in similar if self._is_fast(name, scheme, shape))
        scheme = next(fast, first) if len(similar) > 1 else first
        if scheme != first:
            return Choice(scheme, note=f"{scheme}, because no fast kernel for {first} runs here")
        return Choice(scheme, note=recipe.fallback_note(name, shape, scheme))

    def _is_fast(self, name: str, scheme: Scheme, shape: tuple[int, int]) -> bool:
        embed = self.decoder.embed if name == "embed" else None
        try:
            return self._kernel(scheme, shape, embed).name != "reference"
        except quant.KernelUnavailableError:
            return False

    def _kernel(self, scheme: Scheme, shape: tuple[int, int], embed: Embedding | None) -> Kernel:
        lookup = embed is not None
        multiply = embed is None or embed.tied_to_head
        ranking = kernel_choice.ranking(self.measured, scheme, shape)
        return choose(
            scheme, shape, self.device, self.backend, lookup, multiply, ranking, self.exact
        )

    def _product(
        self, names: list[str], shapes: list[tuple[int, int]], choice: Choice,
        embed: Embedding | None = None,
    ) -> MatrixPlan:  # fmt: skip
        scheme, shape = choice.scheme, (sum(n for n, _ in shapes), shapes[0][1])
        try:
            kernel = self._kernel(scheme, shape, embed)
        except quant.KernelUnavailableError as error:
            raise KernelUnavailableError(f"{names[0]}: {error}") from error
        nbytes = kernel.nbytes(scheme, shape)
        return MatrixPlan(
            tuple(names), tuple(shapes), str(scheme), kernel.name, self.device, nbytes,
            choice.stored, choice.note,
        )  # fmt: skip

    def _parts(self, products: tuple[MatrixPlan, ...]) -> Iterator[Part]:
        groups = dict.fromkeys(
            (PartName.EMBED, PartName.ATTENTION_WEIGHTS, PartName.MLP, PartName.HEAD), 0
        )
        for product in products:
            groups[product.name.part] += product.nbytes
        for name, norm in self.decoder.norms():
            for vector in norm.vectors:
                self.names.info(name, (norm.size,), vector)
        groups[PartName.VECTORS] = vector_bytes(self.decoder, self.dtype)
        where: Where = "host" if self.device == "cpu" else "device"
        return (Part(name, nbytes, where) for name, nbytes in groups.items() if nbytes)

    def _vectors(self) -> tuple[int, int]:
        """Numbers in norms and biases, and their bytes in the file."""
        found = [(name, "bias", rows) for name, rows in self.decoder.biases()]
        for name, norm in self.decoder.norms():
            found += [(name, vector, norm.size) for vector in norm.vectors]
        nbytes = 0
        for name, kind, size in found:
            info = self.names.info(name, (size,), kind)
            nbytes += size * info.nbytes // math.prod(info.shape)  # of a fused one its part
        return sum(size for _, _, size in found), nbytes


def vector_bytes(decoder: Decoder, dtype: torch.dtype, layers: range | None = None) -> int:
    """Bytes of biases in ``dtype`` and norms in float32, of ``layers`` or all.

    Vectors of no layer count as of one behind the last.
    """
    behind = len(decoder.layers)
    found = [(name, rows * dtype.itemsize) for name, rows in decoder.biases()]
    for name, norm in decoder.norms():
        found.append((name, len(norm.vectors) * norm.size * torch.float32.itemsize))

    def layer(name: str) -> int:
        own = WeightName.parse(name).layer
        return behind if own is None else own

    return sum(nbytes for name, nbytes in found if layers is None or layer(name) in layers)


def keeps_its_scheme(decoder: Decoder, names: WeightNames) -> bool:
    """True if a file is quantized already, so that ``auto`` keeps its scheme."""
    infos = (names.info(name, shape) for name, shape in decoder.matrices())
    return any(info.scheme or info.nearest for info in infos)


def bytes_per_token(decoder: Decoder, products: tuple[MatrixPlan, ...]) -> int:
    """Weight bytes that one decode step reads: all but an embedding that is only looked up."""
    return sum(product.nbytes for product in _multiplied(products, decoder.embed.tied_to_head))


def moved_bytes(products: tuple[MatrixPlan, ...], tied: bool) -> int:
    """Bytes that one decode step moves: the weights it reads, and the floats the reference makes
    of codes, written and read again."""
    made = 0
    for product in _multiplied(products, tied):
        if product.kernel == "reference" and not Scheme.parse(product.scheme).is_float:
            made += 2 * torch.float32.itemsize * product.shape[0] * product.shape[1]
    return made + sum(product.nbytes for product in _multiplied(products, tied))


def kernel_scratch(
    products: tuple[MatrixPlan, ...], tokens: int, rows: int, tied: bool
) -> int:  # fmt: skip
    """The largest temporaries of one call. A table gives the codes and values of all tokens; a
    head is asked for one token of each row."""
    looked_up = 2 * tokens * products[0].shape[1] * torch.float32.itemsize
    kinds = {
        (p.kernel, p.scheme, p.shape, rows if p.name.layer is None else tokens)
        for p in _multiplied(products, tied)
    }
    sizes = (find(k).scratch_bytes(Scheme.parse(s), shape, m) for k, s, shape, m in kinds)
    return max(looked_up, *sizes)


def _multiplied(products: tuple[MatrixPlan, ...], tied: bool) -> Iterator[MatrixPlan]:
    return (product for product in products if tied or product.names != ("embed",))


def _label(products: tuple[MatrixPlan, ...], names: WeightNames) -> str:
    """For a quantized file the scheme that most bytes are in."""
    infos = (names.info(n, s) for p in products for n, s in zip(p.names, p.shapes, strict=True))
    if not any(info.scheme or info.nearest for info in infos):
        return "int4"
    totals: dict[str, int] = {}
    for product in products:
        totals[product.scheme] = totals.get(product.scheme, 0) + product.nbytes
    return max(totals, key=lambda scheme: totals[scheme])
