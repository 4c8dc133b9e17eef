"""From headers and settings to a Plan: every decision about a load, and every byte of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from edgelm import hardware, kernel_choice
from edgelm.cache import cache_bytes
from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError, KernelUnavailableError, UsageError
from edgelm.hub import cache_dir
from edgelm.layers import Embedding, part_names
from edgelm.memory import Part, Plan, ProductPlan, parse_budget
from edgelm.models.decoder import Decoder
from edgelm.prompt_lookup import lookup_bytes
from edgelm.speculation import DEFAULT_DRAFT_DEPTH, draft_depth
from edgelm.step import workspace_sizes
from edgelm.weights import WeightNames
from quant import METHODS, KernelUnavailable, QuantError, Recipe, Scheme, choose, find

DEFAULT_CONTEXT = 4096
DEFAULT_CHUNK = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = DTYPES | {"int8": torch.int8}
READ_BLOCK_BYTES = 32 << 20  # a big tensor is read and quantized this much at a time


@dataclass(frozen=True)
class Settings:
    """What a user may fix about a load; ``auto`` and None leave it to the plan."""

    quant: str | dict[str, object] | Recipe = "auto"
    method: str = "rtn"
    kv: str = "auto"
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    context: int | str = "auto"
    rows: int = 1
    chunk: int = DEFAULT_CHUNK
    draft_depth: int = DEFAULT_DRAFT_DEPTH
    budget: str | int | None = None


def make_plan(
    decoder: Decoder, config: ModelConfig, names: WeightNames, settings: Settings
) -> Plan:
    """The plan for these settings; ``fits`` says whether the budget holds it.

    Raises:
        UsageError, ContextLengthError: a setting is not allowed for this model.
        ModelFileError: a weight is missing or has another shape.
        KernelUnavailableError: the chosen backend cannot run a matrix.
    """
    dtype = _dtype(settings, config)
    kv = _choose(settings.kv, "kv", KV_DTYPES) or dtype
    context = _context(settings, config)
    tokens = min(settings.chunk, context)
    recipe = _recipe(settings, decoder)
    measured = kernel_choice.rankings(cache_dir())
    products = tuple(_products(decoder, names, recipe, dtype, settings, measured))
    parts = _weight_parts(decoder, config, products, names, dtype)
    tied = decoder.embed.tied_to_head
    parts += _runtime_parts(config, settings.rows, tokens, context, dtype, kv, products, tied)
    depth = draft_depth(settings.draft_depth, decoder, tokens)
    if depth:
        parts.append(Part("speculation", lookup_bytes(context)))
    logits = max(settings.rows, depth + 1) * decoder.outputs
    parts.append(Part("logits", logits * torch.float32.itemsize))
    runtime = hardware.resident_bytes()
    weight_bytes = sum(part.bytes for part in parts if part.name.startswith("weights."))
    load_peak = runtime + weight_bytes + _load_scratch(products)
    steady = sum(part.bytes for part in parts)
    budget = parse_budget(settings.budget, hardware.available_memory_bytes() + runtime)
    parameters = sum(p.shape[0] * p.shape[1] for p in products) + _vector_elements(decoder)
    return Plan(
        fits=max(load_peak, steady) <= budget,
        scheme=_label(products, recipe, names),
        bits_per_weight=weight_bytes * 8 / parameters,
        kv=_name(kv),
        dtype=_name(dtype),
        context=context,
        rows=settings.rows,
        chunk=tokens,
        draft_depth=depth,
        placement=("cpu",) * config.num_layers,
        budget_bytes=budget,
        expected_tok_s=_expected_tok_s(decoder, products),
        parts=tuple(parts),
        products=products,
        load_peak_bytes=load_peak,
    )


def _dtype(settings: Settings, config: ModelConfig) -> torch.dtype:
    if settings.device not in ("auto", "cpu"):
        raise UsageError(f"device {settings.device!r} is not supported yet; allowed: auto, cpu.")
    dtype = _choose(settings.dtype, "dtype", DTYPES) or torch.float32
    if dtype == torch.float16 and config.not_in_float16:
        raise UsageError(
            f"dtype 'float16' is refused: {config.not_in_float16}; use float32 or bfloat16."
        )
    if dtype == torch.float16:
        raise UsageError(
            "dtype 'float16' is not run on CPUs (no kernel adds up in it); use float32 or bfloat16."
        )
    return dtype


def _choose(given: str, what: str, allowed: dict[str, torch.dtype]) -> torch.dtype | None:
    if given == "auto":
        return None
    if given not in allowed:
        raise UsageError(f"{what} {given!r} is not known; allowed: auto, {', '.join(allowed)}.")
    return allowed[given]


def _context(settings: Settings, config: ModelConfig) -> int:
    wanted = str(settings.context)
    if wanted != "auto" and not wanted.removeprefix("-").isdecimal():
        raise UsageError(f"context {wanted!r} is not a number of tokens; or say 'auto'.")
    context = min(config.max_context, DEFAULT_CONTEXT) if wanted == "auto" else int(wanted)
    for what, value in (("context", context), ("rows", settings.rows), ("chunk", settings.chunk)):
        if value < 1:
            raise UsageError(f"{what} is {value}; it must be at least 1.")
    if context > config.max_context and not config.open_ended:
        raise ContextLengthError(
            f"A context of {context} tokens is beyond the model's {config.max_context}.",
            context,
            config.max_context,
        )
    return context


def _recipe(settings: Settings, decoder: Decoder) -> Recipe | None:
    """None for ``auto``: packed files keep their scheme, others get the default recipe."""
    if settings.method not in METHODS:
        raise UsageError(f"method {settings.method!r} is not known; allowed: {', '.join(METHODS)}.")
    if settings.quant == "auto":
        return None
    try:
        recipe = Recipe.parse(settings.quant)
    except QuantError as error:
        raise UsageError(f"quant: {error}") from error
    named = [name for name, _ in decoder.matrices()]
    unused = recipe.unused_patterns(["head", *named])
    if unused:
        raise UsageError(
            f"quant: the overrides {', '.join(unused)} name nothing in this model; its matrices "
            f"are called {', '.join(named[1:8])}, ..., embed, head."
        )
    return recipe


def _products(
    decoder: Decoder, names: WeightNames, recipe: Recipe | None, dtype: torch.dtype,
    settings: Settings, measured: kernel_choice.Rankings,
) -> Iterator[ProductPlan]:  # fmt: skip
    """Every stored matrix in loading order: the embedding, the layers, the head."""
    embed = decoder.embed
    scheme, stored = _scheme("embed", embed.shape, names, recipe, dtype)
    yield _product(["embed"], [embed.shape], scheme, stored, settings, measured, embed)
    for prefix, projection in decoder.projections():
        if projection is decoder.head and embed.tied_to_head:
            continue
        named = part_names(prefix, list(projection.parts))
        runs: list[tuple[list[str], list[tuple[int, int]], Scheme, bool]] = []
        for name, rows in zip(named, projection.parts.values(), strict=True):
            shape = (rows, projection.in_size)
            if projection is decoder.head and not decoder.head.is_language_model:
                names.info(name, shape)
                scheme, stored = Scheme.floating(dtype), False  # small, and nothing comes after it
            else:
                scheme, stored = _scheme(name, shape, names, recipe, dtype)
            if not runs or runs[-1][2:] != (scheme, stored):
                runs.append(([], [], scheme, stored))
            runs[-1][0].append(name)
            runs[-1][1].append(shape)
            if projection.bias:
                names.info(name, (rows,), "bias")
        for run_names, shapes, scheme, stored in runs:
            yield _product(run_names, shapes, scheme, stored, settings, measured)


def _scheme(
    name: str, shape: tuple[int, int], names: WeightNames, recipe: Recipe | None,
    dtype: torch.dtype,
) -> tuple[Scheme, bool]:  # fmt: skip
    """(scheme, whether the file's own integers are kept)."""
    info = names.info(name, shape)
    if info.scheme is not None and (recipe is None or recipe.accepts(name, info.scheme)):
        return info.scheme, True
    if recipe is None and info.stays_float:
        return Scheme.floating(dtype), False
    if recipe is None and info.nearest is not None:
        return info.nearest, False
    try:
        return (recipe or Recipe.parse("int4")).scheme_for(name, shape, dtype), False
    except QuantError as error:
        raise UsageError(f"quant: {error}") from error


def _product(
    names: list[str], shapes: list[tuple[int, int]], scheme: Scheme, stored: bool,
    settings: Settings, measured: kernel_choice.Rankings, embed: Embedding | None = None,
) -> ProductPlan:  # fmt: skip
    shape = (sum(n for n, _ in shapes), shapes[0][1])
    lookup = embed is not None
    try:
        kernel = choose(
            scheme,
            shape,
            "cpu",
            settings.backend,
            lookup,
            embed is None or embed.tied_to_head,
            kernel_choice.ranking(measured, scheme, shape),
        )
    except KernelUnavailable as error:
        raise KernelUnavailableError(f"{names[0]}: {error}") from error
    nbytes = kernel.nbytes(scheme, shape)
    return ProductPlan(tuple(names), tuple(shapes), str(scheme), kernel.name, "cpu", nbytes, stored)


def _weight_parts(
    decoder: Decoder, config: ModelConfig, products: tuple[ProductPlan, ...], names: WeightNames,
    dtype: torch.dtype,
) -> list[Part]:  # fmt: skip
    groups = {"weights.embed": 0, "weights.attn": 0, "weights.mlp": 0, "weights.head": 0}
    for product in products:
        groups[weight_part(product.names[0])] += product.nbytes
    other = 0
    for name, norm in decoder.norms():
        for vector in norm.vectors:
            names.info(name, (norm.size,), vector)
            other += norm.size * torch.float32.itemsize
    other += sum(rows * dtype.itemsize for _, rows in decoder.biases())
    groups["weights.other"] = other
    return [Part(name, nbytes) for name, nbytes in groups.items() if nbytes]


def _vector_elements(decoder: Decoder) -> int:
    """Numbers in norms and biases."""
    biases = sum(rows for _, rows in decoder.biases())
    return biases + sum(len(norm.vectors) * norm.size for _, norm in decoder.norms())


def weight_part(name: str) -> str:
    """The plan part that holds the matrix ``name``."""
    return f"weights.{name.split('.')[2] if '.' in name else name}"


def _runtime_parts(
    config: ModelConfig, rows: int, tokens: int, context: int, dtype: torch.dtype,
    kv: torch.dtype, products: tuple[ProductPlan, ...], tied: bool,
) -> list[Part]:  # fmt: skip
    """Everything that generating needs besides the weights."""
    sizes: dict[str, int] = {}
    for part, elements, kind in workspace_sizes(config, tokens, context, dtype, kv).values():
        sizes[part] = sizes.get(part, 0) + elements * kind.itemsize
    if config.rope is not None:
        sizes["rope table"] = context * config.rope.rotary_size * dtype.itemsize
    sizes["kv cache"] = cache_bytes(config, rows, context, tokens, kv)
    sizes["restore points"] = cache_bytes(config, rows, context, tokens, kv, rings_only=True)
    sizes["kernel scratch"] = max(_kernel_scratch(p, tokens, tied) for p in products)
    sizes["runtime"] = hardware.resident_bytes()
    return [Part(name, nbytes) for name, nbytes in sizes.items() if nbytes]


def _kernel_scratch(product: ProductPlan, tokens: int, tied: bool) -> int:
    """Temporaries of one call; a table that is only looked up takes its rows' codes and values."""
    if product.names == ("embed",) and not tied:
        return 2 * tokens * product.shape[1] * torch.float32.itemsize
    return find(product.kernel).scratch_bytes(Scheme.parse(product.scheme), product.shape, tokens)


def _load_scratch(products: tuple[ProductPlan, ...]) -> int:
    """Memory beside the weights while one product is made: its canonical form and a read block."""
    largest = max(Scheme.parse(p.scheme).nbytes(p.shape) for p in products)
    return largest + 4 * READ_BLOCK_BYTES


def _expected_tok_s(decoder: Decoder, products: tuple[ProductPlan, ...]) -> float | None:
    """Bandwidth over the bytes a token reads; None until this machine was measured."""
    bandwidth = hardware.recorded_read_gb_s(cache_dir())
    if bandwidth is None:
        return None
    return bandwidth * 1e9 / bytes_per_token(decoder, products)


def bytes_per_token(decoder: Decoder, products: tuple[ProductPlan, ...]) -> int:
    """Weight bytes that one decode step reads: all but an embedding that is only looked up."""
    tied = decoder.embed.tied_to_head
    return sum(p.nbytes for p in products if p.names != ("embed",) or tied)


def _label(
    products: tuple[ProductPlan, ...], recipe: Recipe | None, names: WeightNames
) -> str:  # fmt: skip
    """The recipe's name, or for a quantized file the scheme that most bytes are in."""
    if recipe is not None:
        return str(recipe)
    infos = (names.info(n, s) for p in products for n, s in zip(p.names, p.shapes, strict=True))
    if not any(info.scheme or info.nearest for info in infos):
        return "int4"
    totals: dict[str, int] = {}
    for product in products:
        totals[product.scheme] = totals.get(product.scheme, 0) + product.nbytes
    return max(totals, key=lambda scheme: totals[scheme])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
