"""What is compared: one row of the table is one case, named as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Told = dict[str, Any]

GGUF = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS")
"""Types of files that both engines read."""
TYPES = {
    "int4": ("Q4_0", "Q4_K_M"), "int8": ("Q8_0",), "none": ("F16",),
    **{kind: (kind,) for kind in GGUF},
}  # fmt: skip
"""llama.cpp's types of as many bits; the fastest of them is what we are compared with."""
LAYERS = {
    "int4": ("bfloat16", "torchao-int4", "bitsandbytes-nf4"),
    "int8": ("bfloat16", "torchao-int8"),
    "none": ("bfloat16",),
}
"""What transformers can run with as many bits, and what it runs without quantizing."""


@dataclass(frozen=True)
class Metric:
    """What a turn's answer is worth.

    Args:
        value: from the answers to a turn's requests, in their order, and from what the engine
            told about itself.
        fresh: each turn is a process of its own, timed from its start; the answer has `alive_s`.
    """

    name: str
    unit: str
    value: Callable[[list[Told], Told], float]
    higher_is_better: bool = True
    fresh: bool = False


def _rate(key: str, count: str) -> Callable[[list[Told], Told], float]:
    return lambda answers, about: answers[-1][count] / answers[-1][key]


def _beyond_known(answers: list[Told], about: Told) -> float:
    known = about["weight_bytes"] + about["cache_bytes"] + about["import_torch_bytes"]
    return (answers[-1]["resident_bytes"] - known) / 2**20


DECODE = Metric("decode", "tok/s", _rate("decode_s", "steps"))
PREFILL = Metric("prefill", "tok/s", _rate("prefill_s", "prompt"))
KEPT = Metric(
    "decode at the longer context over the shorter",
    "of its speed",
    lambda answers, about: answers[0]["decode_s"] / answers[1]["decode_s"],
)
START = Metric(
    "process start to first token, beyond import torch",
    "s",
    lambda answers, about: answers[-1]["alive_s"] - about["import_torch_s"],
    higher_is_better=False,
    fresh=True,
)
RESIDENT = Metric(
    "resident above weights and caches, beyond import torch",
    "MiB",
    _beyond_known,
    higher_is_better=False,
)


@dataclass(frozen=True)
class Case:
    """Args:
    bits: int4, int8 or none; how our weights are made and which of the peers' types count. Or a
        type of GGUF, of which all engines read one file.
    turns: (prompt, steps) of each request of a turn.
    peers: engines beside llama.cpp.
    kv: type of keys and values, ours and llama.cpp's.
    backends: ours; the first is what the others are compared with.
    isa: forced on our native library.
    copy: the prompt repeats a passage, and our second run guesses nothing.
    """

    name: str
    shape: str
    bits: str
    metric: Metric
    turns: tuple[tuple[int, int], ...]
    peers: tuple[str, ...] = ()
    kv: str | None = None
    backends: tuple[str, ...] = ("native", "torch")
    isa: str | None = None
    copy: bool = False

    @property
    def stored(self) -> bool:
        """Whether our weights come from a folder, and so are mapped from the cache folder's files:
        as other engines' and as a user's are. Unquantized and the demo's own come as they are."""
        return self.shape != "demo" and self.bits in ("int4", "int8")

    @property
    def context(self) -> int:
        return max(prompt + steps for prompt, steps in self.turns) + 8


@dataclass(frozen=True)
class Entrant:
    """One line of a case: an engine and the settings among which the fastest is chosen first.

    Args:
        candidates: arguments of the engine, without model and threads.
        kinds: for each candidate the type of its GGUF file, or None.
    """

    name: str
    engine: str
    candidates: tuple[Told, ...]
    kinds: tuple[str | None, ...] = (None,)
    environment: Told = field(default_factory=dict)


BOTH = ("openvino", "transformers")
SHORT, LONG = ((128, 32),), ((512, 1),)
SHAPES = {"1b": "llama-3.2-1b", "2b": "gemma-2-2b", "8b": "llama-3-8b", "demo": "demo"}
ALONE = {"helium": "helium-1-preview-2b", "persimmon": "persimmon-8b", "bloom": "bloom-7b1"}

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        # transformers quantizes this shape for minutes: the demo's cases and int8 have its rows.
        Case(
            "decode-int4-1b", SHAPES["1b"], "int4", DECODE, SHORT, ("openvino",),
            backends=("native",),
        ),
        Case(
            "decode-int4-2b", SHAPES["2b"], "int4", DECODE, SHORT, ("openvino",),
            backends=("native",),
        ),
        Case("decode-int4-8b", SHAPES["8b"], "int4", DECODE, SHORT, backends=("native",)),
        Case("decode-int4-demo", "demo", "int4", DECODE, ((128, 64),), BOTH),
        Case("decode-int8-1b", SHAPES["1b"], "int8", DECODE, SHORT, BOTH),
        Case("decode-none-1b", SHAPES["1b"], "none", DECODE, SHORT, BOTH),
        Case(
            "prefill-int4-1b", SHAPES["1b"], "int4", PREFILL, LONG, ("openvino",),
            backends=("native",),
        ),
        Case(
            "prefill-int4-2b", SHAPES["2b"], "int4", PREFILL, LONG, ("openvino",),
            backends=("native",),
        ),
        Case("prefill-int4-demo", "demo", "int4", PREFILL, LONG, BOTH),
        Case("prefill-int8-1b", SHAPES["1b"], "int8", PREFILL, LONG, BOTH),
        Case("prefill-none-1b", SHAPES["1b"], "none", PREFILL, LONG, BOTH),
        Case(
            "decode-long", SHAPES["1b"], "int4", KEPT, ((128, 32), (4096, 32)), kv="int8",
            backends=("native",),
        ),
        Case(
            "prompt-lookup", "demo", "int4", DECODE, ((300, 128),), copy=True,
            backends=("native",),
        ),
        Case(
            "second-start", SHAPES["1b"], "int4", START, ((16, 0),), ("openvino",),
            backends=("native",),
        ),
        Case(
            "resident", SHAPES["1b"], "int4", RESIDENT, ((512, 32),),
            backends=("native",),
        ),
        *(
            Case(f"{metric.name}-int4-1b-avx2", SHAPES["1b"], "int4", metric, turns,
                 backends=("native",), isa="avx2")
            for metric, turns in ((DECODE, SHORT), (PREFILL, LONG))
        ),
        *(
            Case(f"{metric.name}-{kind.lower()}-1b", SHAPES["1b"], kind, metric, turns,
                 backends=("native",))
            for kind in GGUF
            for metric, turns in ((DECODE, SHORT), (PREFILL, LONG))
        ),
        *(
            Case(f"{metric.name}-int4-{name}", shape, "int4", metric, turns, backends=("native",))
            for name, shape in ALONE.items()
            for metric, turns in ((DECODE, SHORT), (PREFILL, LONG))
        ),
    )
}  # fmt: skip


def entrants(case: Case) -> list[Entrant]:
    """Ours first, then llama.cpp, then the other peers of a case."""
    found = [_ours(case, backend) for backend in case.backends]
    if case.copy:
        found.append(_ours(case, case.backends[0], speculate="off"))
    found.append(_llama_cpp(case))
    if "openvino" in case.peers:
        kinds = _types(case)
        found.append(Entrant("OpenVINO GenAI", "openvino", ({},) * len(kinds), kinds))
    if "transformers" in case.peers:
        for layers in LAYERS[case.bits]:
            settings = ({"layers": layers},)
            found.append(Entrant(f"transformers, {layers}", "transformers", settings))
    return found


def _ours(case: Case, backend: str, speculate: str = "auto") -> Entrant:
    settings: Told = {"backend": backend, "context": case.context}
    if case.bits == "none":
        settings |= {"shape": True, "quant": case.bits}
    if case.kv:
        settings["kv"] = case.kv
    if case.copy:
        settings |= {"copy": True, "speculate": speculate}
    name = f"edgelm, {backend}" + (f", {case.isa}" if case.isa and backend == "native" else "")
    name += ", no guesses" if speculate == "off" else ""
    environment = {"EDGELM_ISA": case.isa} if case.isa else {}
    kind = case.bits if case.bits in GGUF else None
    return Entrant(name, "edgelm", (settings,), (kind,), environment)


def _llama_cpp(case: Case) -> Entrant:
    """All of its types, with flash attention and without, and for prompts two sizes of batch."""
    cache = {"cache": "Q8_0"} if case.kv == "int8" else {}
    batches = (512, 128) if case.metric is PREFILL else (512,)
    flash = (True,) if cache else (True, False)  # it has 8-bit caches with flash attention alone
    pairs = [
        ({"context": case.context, "flash": on, "ubatch": batch} | cache, kind)
        for kind in _types(case)
        for on in flash
        for batch in batches
    ]
    settings, kinds = zip(*pairs, strict=True)
    return Entrant("llama.cpp", "llama.cpp", settings, kinds)


def _types(case: Case) -> tuple[str, ...]:
    return ("Q4_1", *TYPES[case.bits]) if case.shape == "demo" else TYPES[case.bits]
