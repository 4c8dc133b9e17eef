"""Benchmark of ``edgelm bench``: speed and memory of one model in the generation loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Unpack

import torch

from edgelm.budget.plan import Plan
from edgelm.checkpoint.random_weights import RandomWeights
from edgelm.checkpoint.shapes import shape_config
from edgelm.errors import UsageError
from edgelm.generation.request import Request, Stats
from edgelm.generation.sampling import SamplingSettings
from edgelm.loading import load
from edgelm.machine import accelerators, hardware
from edgelm.model import LanguageModel
from edgelm.models import family_of
from edgelm.models.heads import head_for
from edgelm.models.model_files import ModelFiles
from edgelm.models.weight_names import WeightNames
from edgelm.planning.matrices import bytes_per_token
from edgelm.planning.setting_table import LoadSettings
from edgelm.progress import Progress
from quant import QuantError, Recipe, Scheme, find

OnRound = Callable[[int, int], None]


@dataclass(frozen=True)
class Workload:
    """Workload: ``repeat`` rounds after a warm-up round, each from an empty cache.

    ``seed`` determines the ids of the prompt; ``decode_tokens`` are steps after the first token.
    """

    prompt_tokens: int = 512
    decode_tokens: int = 64
    repeat: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "seed" and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class Measurement:
    """One row of a benchmark; tools rely on its keys.

    Speeds are medians over the rounds. ``bytes_per_token`` are the weights that one decode step
    reads and ``decode_gb_s`` the rate at which it reads them; ``read_gb_s`` is the rate of plain
    reading measured right after (on CUDA devices of copying, reads and writes both counted).
    ``first_token_s`` is the latency of the first request after loading, without warm-up. Peaks
    are of the whole process.
    """

    model: str
    scheme: str
    bits_per_weight: float
    backend: str
    device: str
    threads: int
    prompt_tokens: int
    prefill_tok_s: float
    decode_tokens: int
    decode_tok_s: float
    weight_bytes: int
    bytes_per_token: int
    decode_gb_s: float
    read_gb_s: float
    load_s: float
    first_token_s: float
    peak_rss_bytes: int
    peak_device_bytes: int
    predicted_peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    files: ModelFiles, workload: Workload, *, threads: int | None = None,
    progress: Progress | None = None, on_round: OnRound | None = None,
    **settings: Unpack[LoadSettings],
) -> Measurement:  # fmt: skip
    """Load a model, run the workload and measure it.

    Args:
        progress: see ``load``. on_round: called with (rounds done, rounds in all).
        settings: as for ``load``.

    Raises:
        ContextLengthError: the workload does not fit the context.
    """
    start = time.perf_counter()
    with load(files, threads=threads, progress=progress, **settings) as lm:
        load_s = time.perf_counter() - start
        rounds = []
        for done in range(workload.repeat + 1):
            rounds.append(run_round(lm, workload))
            if on_round:
                on_round(done + 1, workload.repeat + 1)
        peak = (
            hardware.peak_resident_bytes()
        )  # before the buffer of the bandwidth measurement is allocated
        device_peak = accelerators.peak_bytes(lm.plan.device)
    on_cuda = lm.plan.device.startswith("cuda")
    read_gb_s = accelerators.copy_gb_s(lm.plan.device) if on_cuda else hardware.read_gb_s()
    decode_tok_s = median(stats.decode_tok_s for stats in rounds[1:])
    token_bytes = bytes_per_token(files.assemble("causal-lm").decoder, lm.plan.products)
    return Measurement(
        model=files.name,
        scheme=lm.plan.scheme,
        bits_per_weight=lm.plan.bits_per_weight,
        backend=backends_run(lm.plan),
        device=lm.plan.device,
        threads=torch.get_num_threads(),
        prompt_tokens=workload.prompt_tokens,
        prefill_tok_s=median(stats.prefill_tok_s for stats in rounds[1:]),
        decode_tokens=workload.decode_tokens,
        decode_tok_s=decode_tok_s,
        weight_bytes=lm.plan.weight_bytes,
        bytes_per_token=token_bytes,
        decode_gb_s=token_bytes * decode_tok_s / 1e9,
        read_gb_s=read_gb_s,
        load_s=load_s,
        first_token_s=rounds[0].prefill_s,
        peak_rss_bytes=peak,
        peak_device_bytes=device_peak,
        predicted_peak_bytes=lm.plan.predicted_peak_bytes,
    )


def run_round(lm: LanguageModel, workload: Workload) -> Stats:
    """Generate one greedy answer to random ids, ignoring end tokens."""
    generator = torch.Generator().manual_seed(workload.seed)
    ids = torch.randint(lm.config.vocab_size, (workload.prompt_tokens,), generator=generator)
    sampling = SamplingSettings(seed=workload.seed)
    prompt, count = tuple(ids.tolist()), workload.decode_tokens + 1
    request = Request(prompt, count, sampling, speculate="off")  # one step per token is timed
    with lm.batch([request], end_ids=frozenset()) as batch:
        for _ in batch.tokens():
            pass
        return batch.stats(0)


def backends_run(plan: Plan) -> str:
    """The backends of all matrices that are multiplied; the embedding only if it is the head."""
    named = {p.names[0]: find(p.kernel).backend for p in plan.products}
    if "head" in named:
        del named["embed"]
    return " + ".join(sorted(set(named.values())))


def random_model(shape: str | dict[str, Any], quant: str | Recipe = "int4") -> ModelFiles:
    """Build a model with random weights, made directly in the recipe's schemes.

    Args:
        shape: a name of ``checkpoint.shapes``, or the content of a config.json.
        quant: as for ``load``; floats of ``none`` are bfloat16.

    Raises:
        UsageError: an unknown shape or recipe.
    """
    data = shape_config(shape) if isinstance(shape, str) else shape
    name = shape if isinstance(shape, str) else "random"
    family = family_of(data)
    config = family.read_config(data)
    decoder = family.build(config, head_for(config, "causal-lm"))
    names = WeightNames(family.WEIGHTS, RandomWeights(name, data, {}), config.head_size)
    tensors: dict[str, tuple[tuple[int, ...], Scheme | None]] = {}
    for matrix, size in decoder.matrices():
        stored = names.stored_shape(matrix, size)
        tensors[names.file_name(matrix)] = (stored, _scheme(names.recipe_name(matrix), size, quant))
    for matrix, rows in decoder.biases():
        tensors[names.file_name(matrix, "bias")] = (names.stored_shape(matrix, (rows,)), None)
    for norm_name, norm in decoder.norms():
        for vector in norm.vectors:
            tensors[names.file_name(norm_name, vector)] = ((norm.size,), None)
    return ModelFiles(name, RandomWeights(name, data, tensors))


def _scheme(name: str, shape: tuple[int, int], quant: str | Recipe) -> Scheme:
    try:
        recipe = Recipe.parse(quant)
        return recipe.schemes_for(name, shape, torch.bfloat16)[0]
    except QuantError as error:
        raise UsageError(f"quant: {error}") from error
