"""The columns of every measured table: a heading, and how a row's number is written below it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Column = Callable[[Row], str]


def bandwidth(row: Row) -> str:
    """What decoding read, and its share of what plain reading reached in the same run."""
    share = row["decode_gb_s"] / row["read_gb_s"]
    return f"{row['decode_gb_s']:.1f} of {row['read_gb_s']:.1f} ({share:.0%})"


def text(key: str, form: str = "") -> Column:
    """A column of a key's value, in a format."""
    return lambda row: format(row[key], form)


def mib(key: str) -> Column:
    """A column of whole MiB from a key in bytes."""
    return lambda row: f"{row[key] / 2**20:,.0f}"


def ratio(row: Row) -> str:
    """How many times better we were, and the range of the pairs."""
    if "missing" in row:
        return "not measured"
    if "ratio" not in row:
        return ""
    if len(row["pairs"]) == 1:
        return f"**{row['ratio']:.2f}x** (one round)"
    return f"**{row['ratio']:.2f}x** ({min(row['pairs']):.2f}–{max(row['pairs']):.2f})"


def measured(row: Row) -> str:
    return "" if "value" not in row else f"{row['value']:.4g} {row['unit']}"


def of_limit(key: str, limit: str) -> Column:
    """A rate, and its share of what the machine reached in the same run."""

    def show(row: Row) -> str:
        if key not in row:
            return ""
        share = f" ({row[key] / row[limit]:.0%})" if row.get(limit) else ""
        return f"{row[key]:,.4g}{share}"

    return show


def shown(key: str) -> Column:
    """A number with three digits, or nothing where there is none."""
    return lambda row: f"{row[key]:.3g}" if key in row else ""


def span(key: str, form: str) -> Column:
    """The lowest and the highest of a list of numbers; one where they are written alike."""

    def write(value: float) -> str:
        written = format(value, form)
        return written if re.search("[1-9]", written) else written.lstrip("+-")

    def show(row: Row) -> str:
        low, high = write(min(row[key])), write(max(row[key]))
        return low if low == high else f"{low} to {high}"

    return show


def beside(phase: str) -> Column:
    """Our speed in a case of the comparison, and how many times llama.cpp's it was."""

    def show(row: Row) -> str:
        ours, theirs = row["cases"][phase]
        if ours is None or theirs is None:
            return "not measured"
        low, high = min(theirs["pairs"]), max(theirs["pairs"])
        rate = f"{ours['value']:.3g}"
        return f"{rate}; **{theirs['ratio']:.2f}x** ({low:.2f}–{high:.2f}) {theirs['type']}"

    return show


def peak(row: Row) -> str:
    return mib("peak_rss_bytes")(row) if "peak_rss_bytes" in row else "not measured"


WHEN = {
    "none": "comparing, or memory is no concern",
    "int8": "it fits",
    "int4": "int8 does not fit: 4 bits; k, o 5; v, embedding, head 6",
    "nf4": "as int4, in NormalFloat codes",
    "iq4-g32-coded": "int4 does not fit: 4 bits everywhere",
    "iq4-g64-coded": "nothing else fits",
    "int4-g32": "transformers shall read the folder too",
}
"""When a scheme is the one to take."""

TABLES: dict[str, dict[str, Column]] = {
    "sizes": {
        "shape": text("title"),
        "scheme, bits": lambda row: f"{row['quant']}, {row['bits_per_weight']:.2f}",
        "decode tok/s; times llama.cpp": beside("decode"),
        "prefill, likewise": beside("prefill"),
        "MiB predicted": mib("predicted_peak_bytes"),
        "MiB measured": peak,
        "divergence of a stand-in": lambda row: f"{row['kld']:.4f}, {row['stand_in']}",
    },
    "schemes": {
        "scheme": text("scheme"),
        "bits per weight": span("bits", ".1f"),
        "divergence, nats": span("kld", ".4f"),
        "perplexity": span("ppl", "+.1%"),
        "take it when": lambda row: WHEN[row["scheme"]],
    },
    "backends": {
        "model": lambda row: f"{row['model']} (SmolLM2-135M-Instruct)",
        "scheme": text("scheme"),
        "backend": text("backend"),
        "bits per weight": text("bits_per_weight", ".2f"),
        "prefill tok/s": text("prefill_tok_s", ".0f"),
        "decode tok/s": text("decode_tok_s", ".1f"),
        "decode GB/s": bandwidth,
        "peak MiB": mib("peak_rss_bytes"),
        "predicted MiB": mib("predicted_peak_bytes"),
        "perplexity": text("ppl", ".2f"),
    },
    "compare": {
        "case": text("case"),
        "processor": lambda row: row.get("set", ""),
        "model": lambda row: row.get("model", ""),
        "tokens": lambda row: row.get("work", ""),
        "engine": text("engine"),
        "type": lambda row: row.get("weights", row.get("type", "")),
        "bits per weight": lambda row: (
            f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else ""
        ),
        "measured": measured,
        "we are better by": ratio,
        "GB/s (of reading)": of_limit("gb_s", "read_gb_s"),
        "GF (of the 8-bit peak)": of_limit("gf", "vnni_gops"),
    },
    "promises": {
        "method": text("method"),
        "weights GB": lambda row: f"{row['source_bytes'] / 1e9:.1f}",
        "written GB": lambda row: f"{row['written_bytes'] / 1e9:.1f}",
        "calibration tokens": lambda row: (
            f"{row['calibration']['sequences']} x {row['calibration']['tokens_each']}"
            if "calibration" in row
            else ""
        ),
        "promised MiB": mib("promised_peak_bytes"),
        "measured MiB": mib("peak_rss_bytes"),
    },
    "accuracy": {
        "model": text("name"),
        "asked": text("asked"),
        "weights": text("weights"),
        "run by": text("backend"),
        "bits per weight": text("bits_per_weight", ".2f"),
        "tokens": text("tokens", ","),
        "token perplexity": lambda row: f"{row['ppl']:.2f} ± {row['ppl_stderr']:.2f}",
        "KLD": text("kld_mean", ".5f"),
        "KLD 99 %": text("kld_p99", ".4f"),
        "KLD floor": lambda row: f"{row['noise_floor']['kld_mean']:.5f}",
        "same top": text("top1_agreement", ".1%"),
    },
    "real_model": {
        "model": text("name"),
        "recipe": text("recipe"),
        "method": text("method"),
        "bits per weight": text("bits_per_weight", ".2f"),
        "tokens": text("tokens", ","),
        "perplexity": lambda row: f"{row['ppl_baseline']:.2f} → {row['ppl']:.2f}",
        "KLD": text("kld_mean", ".5f"),
        "same top": text("top1_agreement", ".1%"),
    },
    "four_bits": {
        "model": text("name"),
        "weights": text("weights"),
        "run by": text("engine"),
        "bits per weight": text("bits_per_weight", ".2f"),
        "KLD": text("kld_mean", ".5f"),
        "of llama.cpp's own": lambda row: f"{row['share']:.2f}" if "share" in row else "",
    },
    "calibration": {
        "model": text("name"),
        "up to": text("step"),
        "bits per weight": text("bits_per_weight", ".2f"),
        "KLD": text("kld_mean", ".5f"),
        "gain, ± standard error": lambda row: (
            f"{row['gain']:.5f} ± {row['gain_stderr']:.5f}" if "gain" in row else ""
        ),
    },
    "caches": {
        "model": text("name"),
        "cache": text("kv"),
        "KLD": text("kld_mean", ".2g"),
    },
    "memory": {
        "model, random weights": lambda row: f"{row['model']} ({row['millions']:,.0f} M)",
        "scheme": text("quant"),
        "runs": text("count"),
        "largest run": lambda row: f"{row['kv']} cache, {row['context']} tokens",
        "weights MiB": mib("weight_bytes"),
        "predicted MiB": mib("steady_predicted_bytes"),
        "measured MiB": mib("steady_peak_bytes"),
        "all plans over what was measured": span("errors", "+.1%"),
    },
    "speculation": {
        "prompt": text("prompt"),
        "tokens": lambda row: f"{row['prompt_tokens']} + {row['new_tokens']}",
        "tok/s without guesses": text("decode_tok_s_off", ".1f"),
        "tok/s with guesses": text("decode_tok_s", ".1f"),
        "times": lambda row: (
            f"**{row['speed_ratio']:.2f}x** "
            f"({min(row['speed_ratios']):.2f}–{max(row['speed_ratios']):.2f})"
        ),
        "guesses right": lambda row: f"{row['accepted_tokens']} of {row['drafted_tokens']}",
    },
    "python_share": {
        "threads": text("threads"),
        "decode tok/s": text("decode_tok_s", ".0f"),
        "native us a token": text("native_us", ",.0f"),
        "Python us a token": text("python_us", ".0f"),
    },
    "gpu": {
        "on a GPU": text("row"),
        "measured": lambda row: row.get("missing") or f"{row['value']:.3g}",
        "goal": shown("goal"),
        "floor": shown("floor"),
        "reached": lambda row: row.get("reached", ""),
    },
}
