"""Where a candidate diverges: by position, by the baseline's confidence, by category, by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.evaluation.figures import Figures
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.statistics.clusters import clustered_mean, numbered
from edgelm.evaluation.statistics.perplexities import perplexity_difference
from edgelm.text.tokenizer import Tokenizer

WORST = 20
_BEFORE, _AFTER = 40, 8  # tokens shown around a worst one


@dataclass(frozen=True)
class Slice:
    """Figures of some of the tokens; errors as in ``TextScore``."""

    name: str
    tokens: int
    kld_mean: float
    kld_stderr: float | None
    ppl_diff: float
    ppl_diff_stderr: float | None
    top1_agreement: float


@dataclass(frozen=True)
class WorstToken:
    """A token of much divergence, with the texts around it.

    ``position`` is its place in the window, ``before`` and ``after`` its probability under the
    baseline and under the candidate, ``top_before`` and ``top_after`` what they find likeliest.
    """

    category: str
    position: int
    kld: float
    left: str
    token: str
    right: str
    probability_before: float
    probability_after: float
    top_before: str
    top_after: str


def slices(figures: Figures, passage: Passage) -> dict[str, list[Slice]]:
    """Slices by ``position``, ``confidence`` and ``category``."""
    blocks = torch.tensor(passage.token_blocks)
    found: dict[str, list[Slice]] = {}
    for kind, groups in (
        ("position", _by_position(passage)),
        ("confidence", _by_confidence(figures)),
        ("category", _by_category(passage)),
    ):
        found[kind] = [
            _slice(name, figures.at(mask), blocks[mask]) for name, mask in groups if mask.any()
        ]
    return found


def _slice(name: str, figures: Figures, blocks: Tensor) -> Slice:
    clusters = numbered(blocks.tolist())
    kld = clustered_mean(figures.kld, clusters)
    ppl = perplexity_difference(figures.loss, figures.loss_baseline, clusters)
    top1 = float(figures.same_top.mean())
    return Slice(name, len(figures), kld.value, kld.stderr, ppl.value, ppl.stderr, top1)


def _positions(passage: Passage) -> Tensor:
    """Place in its window of each predicted token, from 1 on."""
    windows, window = passage.ids.shape
    return torch.arange(1, window).repeat(windows)


def _by_position(passage: Passage) -> Iterator[tuple[str, Tensor]]:
    places, start = _positions(passage), 1
    while start < passage.ids.shape[1]:
        name = str(start) if start == 1 else f"{start}-{2 * start - 1}"
        yield name, (places >= start) & (places < 2 * start)
        start *= 2


def _by_confidence(figures: Figures) -> Iterator[tuple[str, Tensor]]:
    tenths = (figures.confidence * 10).long().clamp(0, 9)
    for tenth in range(10):
        yield f"{10 * tenth}-{10 * tenth + 10} %", tenths == tenth


def _categories(passage: Passage) -> list[str]:
    """Category of each predicted token."""
    each = passage.ids.shape[1] - 1
    return [name for name, count in passage.parts for _ in range(count * each)]


def _by_category(passage: Passage) -> Iterator[tuple[str, Tensor]]:
    own = _categories(passage)
    numbers = torch.tensor(numbered(own))
    for number, name in enumerate(dict.fromkeys(own)):
        yield name, numbers == number


def worst_tokens(figures: Figures, passage: Passage, tokenizer: Tokenizer) -> list[WorstToken]:
    """The ``WORST`` tokens of most divergence, worst first."""
    order = figures.kld.argsort(descending=True, stable=True)[:WORST].tolist()
    each = passage.ids.shape[1] - 1
    categories = _categories(passage)

    def text(ids: Tensor) -> str:
        return tokenizer.decode(ids.tolist(), skip_special=False, continues=True)

    found = []
    for place in order:
        window, at = divmod(place, each)
        ids, at = passage.ids[window], at + 1
        mine, theirs = figures.tops[place]
        found.append(
            WorstToken(
                categories[place], at, float(figures.kld[place]),
                text(ids[max(0, at - _BEFORE) : at]), text(ids[at : at + 1]),
                text(ids[at + 1 : at + 1 + _AFTER]),
                float((-figures.loss_baseline[place]).exp()), float((-figures.loss[place]).exp()),
                text(theirs[None]), text(mine[None]),
            )
        )  # fmt: skip
    return found
