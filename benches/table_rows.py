"""The rows of every measured table: what a result file says, with what its rows leave unsaid.

A row of ``accuracy`` says "llama" and means a model of 5.8 million parameters; here it gets the
name, the text and the count under which a reader may take it for what it is. Tables that draw on
several files (``sizes``, ``schemes``, ``memory``) are put together here too.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from comparison.cases import CASES

RESULTS = Path(__file__).resolve().parent / "results"
NANO = {
    "llama": "Llama", "gemma2": "Gemma 2", "helium": "Helium", "persimmon": "Persimmon",
    "bloom": "BLOOM",
}  # fmt: skip
DEMO = "SmolLM2-135M-Instruct"
REAL = "Qwen2.5-Coder-0.5B-Instruct"
SHAPES = {
    "llama-3.2-1b": ("Llama-3.2-1B", "llama", "1b"),
    "gemma-2-2b": ("Gemma-2-2B", "gemma2", "2b"),
    "llama-3-8b": ("Llama-3-8B", "llama", "8b"),
}
"""Shapes of the README's table: title, the nano model of the family, part of the cases' names."""
SCHEMES = ("none", "int8", "int4", "nf4", "iq4-g32-coded", "iq4-g64-coded", "int4-g32")
BACKENDS = ("native", "torch", "reference", "torchao", "bitsandbytes")

Row = dict[str, Any]


@cache
def result(name: str) -> Row:
    """A result file; FileNotFoundError where nothing was measured."""
    found: Row = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def made_by(name: str) -> str:
    """The machine, the day and the command of a result file, as a sentence."""
    return f"{result(name)['machine']}, {result(name)['date']}: `{result(name)['command']}`."


def by(name: str) -> str:
    """The command and the day of a result file, for use within a sentence."""
    return f"`{result(name)['command']}`, {result(name)['date']}"


def rows_of(name: str) -> list[Row]:
    """The rows of a table."""
    made = {"accuracy": accuracy, "caches": caches, "calibration": calibration,
            "compare": compare, "four_bits": four_bits, "memory": memory,
            "real_model": real_model, "schemes": schemes, "sizes": sizes}  # fmt: skip
    return made[name]() if name in made else result(name)["rows"]


def caption_of(name: str) -> str:
    """What stands below a table: where and when it was measured, by which command."""
    made = {"compare": compare_caption, "backends": backends_caption, "sizes": sizes_caption,
            "schemes": schemes_caption}  # fmt: skip
    return made[name]() if name in made else made_by(name)


def parameters(model: str) -> float:
    """Millions of parameters of a model in accuracy.json: its float32 weights take four bytes."""
    rows = result("accuracy")["rows"]
    return (
        next(r["weight_bytes"] for r in rows if (r["model"], r["asked"]) == (model, "none")) / 4e6
    )


def model_name(model: str) -> str:
    """What a row's model is called here: nano models never by their family alone."""
    if model in NANO:
        return f"nano {NANO[model]} ({parameters(model):.1f} M)"
    return f"{DEMO} ({parameters(model):.1f} M)" if model == "demo" else model


def demo_weights(scheme: str) -> str:
    """How a scheme came by the demo's weights, which are 4-bit blocks in its file."""
    if scheme == "none":
        return "Q4_1 as floats"
    if scheme == "int4":
        return "its own Q4_1, tables re-quantized"
    own = ("int4-g32-zfloat", "Q4_1")
    return "its own Q4_1" if scheme in own else "re-quantized from Q4_1"


def accuracy() -> list[Row]:
    """Model by model, scheme by scheme, the default backend first."""
    models = [*NANO, "demo"]
    rows = [
        row | {
            "name": model_name(row["model"]),
            "weights": (
                demo_weights(row["asked"]) if row["model"] == "demo"
                else "floats" if row["asked"] == "none" else "quantized from floats"
            ),
        }
        for row in result("accuracy")["rows"]
    ]  # fmt: skip
    return sorted(
        rows,
        key=lambda row: (
            models.index(row["model"]), SCHEMES.index(row["asked"]), BACKENDS.index(row["backend"])
        ),
    )  # fmt: skip


def caches() -> list[Row]:
    return [row | {"name": model_name(row["model"])} for row in result("caches")["rows"]]


def real_model() -> list[Row]:
    """The real model first; of each, the recipes in the order of their bits."""
    models = ["real", *NANO]
    rows = [
        row | {"name": REAL if row["model"] == "real" else model_name(row["model"])}
        for row in result("real_model")["rows"]
    ]
    return sorted(rows, key=lambda row: (models.index(row["model"]), -row["bits_per_weight"]))


def four_bits() -> list[Row]:
    """Each beside what llama.cpp's own type of as many bits costs, where it knows the family."""
    rows = result("four_bits")["rows"]
    own = {(r["model"], r["weights"]): r["kld_mean"] for r in rows if r["engine"] == "llama.cpp"}
    found = []
    for row in rows:
        rival = "Q8_0" if row["weights"].startswith("int8") else "Q4_K_M"
        share = {}
        if (row["model"], rival) in own and row["weights"] not in ("Q8_0", "Q4_K_M"):
            share = {"share": row["kld_mean"] / own[row["model"], rival]}
        found.append(row | share | {"name": model_name(row["model"])})
    return sorted(found, key=lambda row: [*NANO].index(row["model"]))


def calibration() -> list[Row]:
    """Steps in the order in which they were added, family by family."""
    rows = [row | {"name": model_name(row["model"])} for row in result("calibration")["rows"]]
    return sorted(rows, key=lambda row: [*NANO].index(row["model"]))


def compare() -> list[Row]:
    """The comparison's rows with the model of each case, what a turn does, what a type is, and the
    instruction set of the machine that day."""
    rows = result("compare")["rows"]
    sets = {row["case"]: instruction_set(row) for row in rows if row.get("system")}
    return [row | case_facts(row) | {"set": sets.get(row["case"], "")} for row in rows]


def instruction_set(row: Row) -> str:
    """What llama.cpp said of the processor."""
    return "AVX512-VNNI" if "AVX512_VNNI = 1" in row["system"] else "AVX2"


def case_facts(row: Row) -> Row:
    """The model, the tokens and the weights that a row of the comparison leaves to its case."""
    case = CASES[row["case"]]
    work = " and ".join(f"{prompt} + {steps}" for prompt, steps in case.turns)
    kind = str(row.get("type", ""))
    shape = DEMO if case.shape == "demo" else case.shape
    if case.shape != "demo" or row["engine"].startswith("transformers"):
        return {"model": f"{shape} shape, random", "work": work, "weights": kind}
    told = demo_weights(kind)
    return {"model": DEMO, "work": work, "weights": f"{kind}: {told}" if kind else ""}


def compare_caption() -> str:
    """The command, whose cases were timed and whose were not yet."""
    done = {row["case"] for row in result("compare")["rows"]}
    left = [name for name in CASES if name not in done]
    told = result("compare")["versions"]
    peers = ", ".join(f"{k} {v}" for k, v in told.items() if k != "python")
    open_cases = f" Cases not measured yet: {', '.join(left)}." if left else ""
    return f"{made_by('compare')} {peers}.{open_cases}"


def backends_caption() -> str:
    native = any(row["backend"] == "native" for row in result("backends")["rows"])
    told = "" if native else (
        " This run is older than the backend `native`, the default, whose speed stands in the"
        " comparison below."
    )  # fmt: skip
    return made_by("backends") + told


def memory() -> list[Row]:
    """One row a model and scheme: the largest case, and how far off all of them were."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in result("memory")["rows"]:
        groups.setdefault((row["model"], row["quant"]), []).append(row)
    return [
        max(rows, key=lambda row: row["steady_peak_bytes"]) | {
            "count": len(rows),
            "millions": rows[0]["file_bytes"] / 2e6,
            "errors": [error for row in rows for error in peak_errors(row)],
        }
        for rows in groups.values()
    ]  # fmt: skip


def peak_errors(row: Row) -> list[float]:
    """By which share the plan was above the measured peak, while loading and generating."""
    return [row[f"{p}_predicted_bytes"] / row[f"{p}_peak_bytes"] - 1 for p in ("load", "steady")]


def schemes() -> list[Row]:
    """What each scheme cost the five nano models on the default backend."""
    rows = [
        r for r in result("accuracy")["rows"] if r["backend"] == "native" and r["model"] in NANO
    ]
    return [
        {
            "scheme": scheme,
            "bits": [r["bits_per_weight"] for r in rows if r["asked"] == scheme],
            "kld": [r["kld_mean"] for r in rows if r["asked"] == scheme],
            "ppl": [r["ppl"] / r["ppl_baseline"] - 1 for r in rows if r["asked"] == scheme],
            "top": [r["top1_agreement"] for r in rows if r["asked"] == scheme],
        }
        for scheme in SCHEMES
        if scheme != "iq4-g64-coded"  # between two others; RESULTS.md has it
    ]


def schemes_caption() -> str:
    sizes_told = [parameters(model) for model in NANO]
    tokens = max(r["tokens"] for r in result("accuracy")["rows"] if r["model"] in NANO)
    return (
        f"Lowest to highest of five **nano models** ({min(sizes_told):.1f}–{max(sizes_told):.1f} M "
        f"parameters), {tokens:,} tokens of held-out text each: {by('accuracy')}."
    )


def sizes() -> list[Row]:
    """Speed beside llama.cpp, peaks and a stand-in's divergence, for three sizes."""
    return [size(row) for row in result("plans")["rows"]]


def size(plan: Row) -> Row:
    title, family, part = SHAPES[plan["shape"]]
    stand_in = next(
        row for row in result("accuracy")["rows"]
        if (row["model"], row["asked"], row["backend"]) == (family, plan["quant"], "native")
    )  # fmt: skip
    rows = {
        (row["case"], row["engine"]): row for row in result("compare")["rows"]
        if row["engine"] == "llama.cpp" or is_of(row, plan)
    }  # fmt: skip
    return plan | {
        "title": title,
        "kld": stand_in["kld_mean"],
        "stand_in": model_name(family),
        "cases": {
            phase: tuple(
                rows.get((f"{phase}-{plan['quant']}-{part}", engine))
                for engine in ("edgelm, native", "llama.cpp")
            )
            for phase in ("decode", "prefill")
        },
    }


def is_of(row: Row, plan: Row) -> bool:
    """Whether a row of the comparison ran the weights of a plan: recipes change."""
    return abs(row.get("bits_per_weight", 0.0) - plan["bits_per_weight"]) < 0.01


def sizes_set() -> str:
    """The instruction set of the machines that the table's speeds are of, and rows of another."""
    rows = {f"{row['title']} {row['quant']}": set_of(row) for row in sizes()}
    named = [each for each in rows.values() if each]
    most = max(dict.fromkeys(named), key=named.count, default="")
    apart = [f"{row} {own}" for row, own in rows.items() if own not in ("", most)]
    return f", {'; '.join([most, *apart])}" if most else ""


def set_of(row: Row) -> str:
    """The instruction set beside a row's speeds, empty where there are none."""
    cells = [cell for pair in row["cases"].values() for cell in pair if cell]
    return next((instruction_set(cell) for cell in cells if cell.get("system")), "")


def sizes_caption() -> str:
    """How each column came about, and what is known of peaks that were measured."""
    prompt, steps = CASES["decode-int4-1b"].turns[0]
    errors = [error for row in result("memory")["rows"] for error in peak_errors(row)]
    context = result("plans")["rows"][0]["context"]
    longest = CASES["prefill-int4-1b"].turns[0][0]
    return (
        f"{result('plans')['machine']}{sizes_set()}; random weights. "
        f"**Speed**: {steps} steps after {prompt} tokens, prefill of {longest}; median and "
        f"range of rounds in turns ({by('compare')}). **Peak**: whole process, {context} tokens, "
        f"bfloat16 cache ({by('plans')}); {len(errors) // 2} other plans were {min(errors):.1%} "
        f"to {max(errors):.1%} high. **Divergence**: KL, nats a token, of the nano model named, "
        "**not of the row's** "
        f"({by('accuracy')})."
    )
