"""The pictures of a report, drawn with Matplotlib and written as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgelm.evaluation.comparison.comparison import Comparison
from edgelm.evaluation.comparison.measured import Measured
from edgelm.evaluation.comparison.slices import Slice

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKS = "osD^vPX"
_STYLE: Any = {
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "edgelm",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Draw = Callable[[Any], None]


def svg(size: tuple[float, float], draw: Draw) -> str:
    """A picture of a size in inches; ``draw`` gets its figure. The same data give the same text."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats in both numbers, by the first of them."""
    best: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def frontier(result: Comparison) -> str:
    """Bits per weight against mean divergence, with the line of the best."""
    rows = [own for own in result.rows if own.text is not None]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        points = []
        for number, own in enumerate(rows):
            assert own.text is not None and own.text.kld_mean is not None
            point = own.bits_per_weight, own.text.kld_mean
            points.append(point)
            axes.errorbar(*point, yerr=_two(own.text.kld_stderr), **_look(number), ms=7)
            axes.annotate(_plain(own.candidate), point, xytext=(8, 5), textcoords="offset points")
        best = zip(*pareto(points), strict=True)
        axes.plot(*best, color="#888888", lw=1, zorder=0, drawstyle="steps-post")
        noise = result.noise_floor.get("kld_mean")
        if noise:
            axes.axhline(noise, ls="--", lw=1, color="#888888")
            axes.annotate(
                "16-bit noise floor", (0.01, noise), xycoords=("axes fraction", "data"),
                xytext=(0, 3), textcoords="offset points", color="#555555",
            )  # fmt: skip
        if all(kld > 0 for _, kld in points):
            axes.set_yscale("log")
        axes.margins(x=0.2, y=0.15)
        axes.set(xlabel="bits per weight", ylabel="mean KL divergence, nats")

    return svg((7, 4.2), draw)


def by_slice(result: Comparison, kind: str, label: str) -> str:
    """Mean divergence of each slice of a kind, a line for each candidate."""
    rows = [own for own in result.rows if own.slices.get(kind)]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, own in enumerate(rows):
            found: list[Slice] = own.slices[kind]
            places = np.arange(len(found)) + 0.06 * (number - (len(rows) - 1) / 2)
            axes.errorbar(
                places, [one.kld_mean for one in found],
                yerr=[_two(one.kld_stderr) for one in found],
                label=_plain(own.candidate), **_look(number, line=kind != "category"), ms=5,
            )  # fmt: skip
        names = [_plain(one.name) for one in rows[0].slices[kind]]
        axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 8 else 0)
        axes.set(xlabel=label, ylabel="mean KL divergence, nats")
        if all(one.kld_mean > 0 for own in rows for one in own.slices[kind]):
            axes.set_yscale("log")
        figure.legend(loc="outside right upper", frameon=False)

    return svg((8, 3.6), draw)


def errors(own: Measured) -> str | None:
    """Error of each matrix by layer and kind; None where no error is known."""
    known = [matrix for matrix in own.matrices if matrix.error_db is not None]
    inside = [matrix for matrix in known if matrix.layer is not None]
    if not inside:
        return None
    kinds = list(dict.fromkeys(matrix.kind for matrix in inside))
    layers = 1 + max(matrix.layer or 0 for matrix in inside)
    grid = np.full((len(kinds), layers), np.nan)
    for matrix in inside:
        grid[kinds.index(matrix.kind), matrix.layer or 0] = matrix.error_db
    others = [f"{_plain(m.kind)} {m.error_db:.1f} dB" for m in known if m.layer is None]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        image = axes.imshow(grid, aspect="auto", cmap="viridis")
        axes.set_yticks(range(len(kinds)), [_plain(kind) for kind in kinds])
        axes.set(xlabel="layer")
        axes.set_title(", ".join([_plain(own.candidate), *others]), fontsize=9, loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, label="dB, higher is better")

    return svg((8, 0.9 + 0.28 * len(kinds)), draw)


def flips(result: Comparison) -> str:
    """Items that turned wrong (left) and right (right), for each task and candidate."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places, names, most = [], [], 1
        for place, (own, task, paired) in enumerate(_pairs(result)):
            axes.barh(place, -paired.lost, color=COLOURS[1])
            axes.barh(place, paired.gained, color=COLOURS[0])
            for count, side in ((paired.lost, -1), (paired.gained, 1)):
                axes.annotate(
                    str(count), (side * count, place), xytext=(4 * side, 0),
                    textcoords="offset points", ha="left" if side > 0 else "right", va="center",
                    fontsize=8,
                )  # fmt: skip
            most = max(most, paired.lost, paired.gained)
            places.append(place)
            names.append(f"{_plain(task)}, {_plain(own.candidate)}")
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.axvline(0, color="#333333", lw=0.8)
        axes.set(xlabel="items turned wrong | items turned right", xlim=(-1.15 * most, 1.15 * most))
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return svg((8, 1 + 0.28 * len([*_pairs(result)])), draw)


def differences(result: Comparison) -> str:
    """Difference of accuracy to the baseline with its interval, and the margin."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        names = []
        for place, (own, task, paired) in enumerate(_pairs(result)):
            number = result.rows.index(own)
            axes.plot([100 * paired.low, 100 * paired.high], [place, place], color=_colour(number))
            axes.plot(100 * paired.difference, place, **_look(number))
            axes.axvline(-100 * paired.margin, ls="--", lw=0.8, color="#888888")
            names.append(f"{_plain(task)}, {_plain(own.candidate)}: {paired.verdict}")
        axes.axvline(0, color="#333333", lw=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="difference of accuracy, points, with 95 % interval; dashed: the margin")

    return svg((8, 1 + 0.28 * len([*_pairs(result)])), draw)


def _pairs(result: Comparison) -> Iterator[tuple[Measured, str, Any]]:
    """Candidate, task and paired score, by task."""
    for task in result.items:
        for own in result.rows:
            if (paired := own.tasks[task].paired) is not None:
                yield own, task, paired


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _look(number: int, line: bool = False) -> dict[str, Any]:
    """Colour and mark of a candidate."""
    mark = _MARKS[number % len(_MARKS)]
    return {"color": _colour(number), "marker": mark, "ls": "-" if line else "none", "lw": 1}


def _two(stderr: float | None) -> float:
    """Half the bar of an error: two standard errors, about 95 %."""
    return 2 * (stderr or 0.0)


def _plain(text: str) -> str:
    """A text in which a dollar sign begins no formula, shortened in the middle."""
    short = text if len(text) <= 32 else f"{text[:12]}…{text[-19:]}"
    return short.replace("$", r"\$")
