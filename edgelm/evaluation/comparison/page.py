"""The report of a comparison: one HTML page with everything in it, which asks the network nothing.

All texts are escaped, and a content policy forbids scripts and requests. Pictures are images of
their own, so that nothing in them reaches the page.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from typing import Any

from edgelm.budget.units import human
from edgelm.evaluation.comparison import pictures
from edgelm.evaluation.comparison.comparison import Comparison
from edgelm.evaluation.comparison.measured import Measured
from edgelm.evaluation.comparison.slices import WorstToken

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 72em;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .3em .6em; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child, .worst th:last-child { text-align: left; }
td.text { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 24em; }
mark { background: #ffe08a; } .around { color: #777; } .note { color: #555; font-size: 13px; }
img { max-width: 100%; display: block; margin: .5em 0; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
COLUMNS = {
    "candidate": "candidate",
    "bits_per_weight": "bits",
    "weight_bytes": "size",
    "predicted_peak_bytes": "peak, predicted",
    "peak_rss_bytes": "peak, measured",
    "prefill_tok_s": "prompt tok/s",
    "decode_tok_s": "answer tok/s",
    "ppl": "perplexity",
    "ppl_diff": "paired difference",
    "kld_mean": "KLD mean",
    "kld_p50": "median",
    "kld_p90": "90 %",
    "kld_p95": "95 %",
    "kld_p99": "99 %",
    "kld_p999": "99.9 %",
    "kld_max": "max",
    "delta_p_rms": "RMS Δp",
    "top1_agreement": "same top",
}
_FORMS = {"top1_agreement": ".2%", "delta_p_rms": ".2%", "ppl": ".4f", "ppl_diff": "+.4f"}


def page(result: Comparison) -> str:
    """The page as a text."""
    body = "\n".join(_sections(result))
    title = f"{escape(result.model)}: schemes and files compared"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f'<p class="note">{escape(result.protocol)}.</p>\n{body}\n</body></html>\n'
    )


def shown(row: dict[str, Any], name: str) -> str:
    """A cell of ``Comparison.table`` for people, with its error; "" if it is empty."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return human(value)
    form = _FORMS.get(name, ".6f" if name.startswith("kld") else ".2f")
    error = row.get(f"{name.removesuffix('_mean')}_stderr")
    return f"{value:{form}}" + (f" ± {error:{form.removeprefix('+')}}" if error else "")


def _sections(result: Comparison) -> Iterator[str]:
    text = [own for own in result.rows if own.text is not None]
    yield _table(result)
    if text:
        yield _picture("Bits against divergence", pictures.frontier(result))
    known = [picture for own in result.rows if (picture := pictures.errors(own))]
    if known:
        yield "<h2>Error of the weights by layer and kind</h2>"
        yield from (_image(picture, "error by layer and kind") for picture in known)
    if text:
        for kind, label in (
            ("position", "position in the window"),
            ("confidence", "probability of the reference's likeliest token"),
            ("category", "category"),
        ):
            drawn = pictures.by_slice(result, kind, label)
            yield _picture(f"Divergence by {label}, with two standard errors", drawn)
    if result.items:
        yield _picture("Flips of single items", pictures.flips(result))
        yield _picture("Accuracy against the reference", pictures.differences(result))
        yield _tasks(result)
    for own in text:
        yield _worst(own)


def _picture(title: str, drawn: str) -> str:
    return f"<h2>{escape(title)}</h2>{_image(drawn, title)}"


def _image(drawn: str, title: str) -> str:
    data = base64.b64encode(drawn.encode()).decode()
    return f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'


def _cells(tag: str, cells: list[str]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)


def _table(result: Comparison) -> str:
    """A column for each candidate: there are more figures than candidates."""
    rows = result.table()
    lines = [f"<tr>{_cells('th', ['', *(row['candidate'] for row in rows)])}</tr>"]
    for name, title in COLUMNS.items():
        cells = [shown(row, name) for row in rows]
        if name != "candidate" and any(cells):
            lines.append(f"<tr>{_cells('td', [title, *cells])}</tr>")
    return (
        f'<div class="wide"><table>{"".join(lines)}</table></div>'
        '<p class="note">Divergence (KLD) in nats; ± one standard error. Noise floor: the '
        "reference's own weights with bfloat16 activations; differences below it are lost in any "
        "16-bit run.</p>"
    )


def _tasks(result: Comparison) -> str:
    heads = [
        *("task", "candidate", "items", "reference", "accuracy (95 %)", "difference (95 %)"),
        *("p (McNemar)", "p (Holm)", "detectable", "verdict"),
    ]
    lines = [f"<tr>{_cells('th', heads)}</tr>"]
    for task in result.items:
        for own in result.rows:
            score = own.tasks[task]
            paired, before = score.paired, score.accuracy_baseline
            assert paired is not None and before is not None
            cells = [
                task, own.candidate, str(score.n), f"{before:.2%}",
                f"{score.accuracy:.2%} ({score.low:.2%} to {score.high:.2%})",
                f"{paired.difference:+.2%} ({paired.low:+.2%} to {paired.high:+.2%})",
                f"{paired.p:.3g}", f"{paired.p_holm:.3g}", f"{paired.detectable:.2%}",
                f"{paired.verdict} by {100 * paired.margin:g} points",
            ]  # fmt: skip
            lines.append(f"<tr>{_cells('td', cells)}</tr>")
    return (
        f'<div class="wide"><table>{"".join(lines)}</table></div><p class="note">Detectable: the '
        "smallest difference that these items show with a chance of 80 %.</p>"
    )


def _worst(own: Measured) -> str:
    heads = ["KLD", "place", "token", "reference", "candidate", "likeliest", "candidate's", "text"]
    lines = [f"<tr>{_cells('th', heads)}</tr>", *map(_worst_row, own.worst)]
    return (
        f"<h2>{escape(own.candidate)}: tokens of most divergence</h2>"
        f'<div class="wide worst"><table>{"".join(lines)}</table></div>'
    )


def _worst_row(token: WorstToken) -> str:
    cells = [
        f"{token.kld:.3f}", f"{token.category} {token.position}", visible(token.token),
        f"{token.probability_before:.2%}", f"{token.probability_after:.2%}",
        visible(token.top_before), visible(token.top_after),
    ]  # fmt: skip
    left, middle, right = (escape(visible(t)) for t in (token.left, token.token, token.right))
    text = f'<span class="around">{left}</span><mark>{middle}</mark>'
    text += f'<span class="around">{right}</span>'
    return f'<tr>{_cells("td", cells)}<td class="text">{text}</td></tr>'


def visible(text: str) -> str:
    """A text whose line ends and control characters are seen, and turn nothing around."""
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
