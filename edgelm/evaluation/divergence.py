"""Divergence of a model's predictions over a passage from those of its baseline, in one pass.

Figures are in nats: KL(baseline || model) of each predicted token over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgelm.budget.parts import PartName
from edgelm.budget.units import BLOCK_BYTES
from edgelm.evaluation.baseline import Baseline
from edgelm.evaluation.figures import Figures
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.statistics.clusters import clustered_mean
from edgelm.evaluation.statistics.perplexities import perplexity, perplexity_difference
from edgelm.model import LanguageModel
from edgelm.progress import Count

Logits = Callable[[int, int], Tensor]
"""From a passage's token and a count: logits [count, V] float32. Called in order."""


@dataclass(frozen=True)
class TextScore:
    """Figures of a model over a passage; None if there was no baseline.

    The protocol: ``windows`` of ``window`` ids, each from an empty cache, whose first id is BOS if
    ``bos``; ``tokens`` are predicted in them.
    ``ppl`` is per token, ``word_ppl`` per word separated by whitespace: a different number.
    ``ppl_diff`` is the paired difference to the baseline's. Errors (``_stderr``) are those of
    ``blocks`` of neighbouring windows (see ``statistics``), None for one block.
    ``delta_p_rms``: root mean square of what became of the probability of the token that follows.
    """

    bos: bool
    window: int
    windows: int
    tokens: int
    blocks: int
    ppl: float
    ppl_stderr: float | None
    word_ppl: float
    ppl_baseline: float | None = None
    word_ppl_baseline: float | None = None
    ppl_diff: float | None = None
    ppl_diff_stderr: float | None = None
    kld_mean: float | None = None
    kld_stderr: float | None = None
    kld_p50: float | None = None
    kld_p90: float | None = None
    kld_p95: float | None = None
    kld_p99: float | None = None
    kld_p999: float | None = None
    kld_max: float | None = None
    delta_p_rms: float | None = None
    top1_agreement: float | None = None


@torch.inference_mode()
def read_text(
    lm: LanguageModel, passage: Passage, baseline: Baseline | None, progress: Count | None
) -> Figures:
    """Read a passage in one pass; a baseline's logits are computed along with it, in blocks.

    Raises:
        BudgetExceededError: the smallest blocks do not fit the budget.
    """
    vocab, window = lm.config.vocab_size, passage.ids.shape[1]
    cache = lm.new_cache(1, window)
    head = 0 if baseline is None else 4 * vocab * lm.config.hidden_size
    head_bytes = min(head, BLOCK_BYTES)
    room = lm.ledger.headroom_bytes - head_bytes - figures_bytes(passage)
    block = block_tokens(vocab, window, room)
    needed = working_bytes(vocab, block) + head_bytes + figures_bytes(passage)
    ids = passage.ids.flatten()

    def mine(start: int, count: int) -> Tensor:
        if start % window == 0:
            cache.truncate(0, 0)
        logits = lm.forward(ids[None, start : start + count], cache=cache).logits
        assert logits is not None
        return logits[0]

    lm.ledger.extend({PartName.EVALUATION: needed})
    try:
        theirs = None if baseline is None else baseline.logits
        return token_figures(passage, block, mine, theirs, progress)
    finally:
        lm.ledger.extend({PartName.EVALUATION: -needed})


def figures_bytes(passage: Passage) -> int:
    """Bytes of a passage's figures, twice while they are joined."""
    return 2 * 6 * 8 * passage.ids.numel()


def working_bytes(vocab_size: int, block: int) -> int:
    """Bytes for the figures of this number of tokens: four copies of their logits are live."""
    return 4 * 4 * block * vocab_size


def block_tokens(vocab_size: int, window: int, room_bytes: int) -> int:
    """Number of tokens compared at once: each such block reads the baseline's whole head.

    Doubled from ``BLOCK_BYTES`` of logits as far as memory allows, at most a window.
    """
    block = max(1, BLOCK_BYTES // (4 * vocab_size))
    while block < window and working_bytes(vocab_size, 2 * block) <= room_bytes:
        block *= 2
    return min(block, window)


def token_figures(
    passage: Passage, block: int, mine: Logits, theirs: Logits | None, progress: Count | None
) -> Figures:
    """Figures of ``mine`` over the passage, compared to ``theirs``, ``block`` tokens at a time."""
    window, found = passage.ids.shape[1], []
    for number, ids in enumerate(passage.ids):
        for start in range(0, window - 1, block):
            wanted = ids[start + 1 : start + 1 + block]
            place = (number * window + start, len(wanted))
            logits = mine(*place)
            found.append(Figures.of(logits, theirs and theirs(*place), wanted))
        if progress:
            progress(number + 1, len(passage.ids))
    return Figures.joined(found)


def score_text(
    lm: LanguageModel, passage: Passage, baseline: Baseline | None, progress: Count | None
) -> TextScore:
    """The summary of what ``read_text`` finds."""
    return text_score(read_text(lm, passage, baseline, progress), passage)


def compare(
    passage: Passage, block: int, mine: Logits, theirs: Logits | None, progress: Count | None
) -> TextScore:
    """The summary of ``token_figures``."""
    return text_score(token_figures(passage, block, mine, theirs, progress), passage)


def text_score(figures: Figures, passage: Passage) -> TextScore:
    """The summary of a passage's figures."""
    blocks, per_word = passage.token_blocks, passage.tokens_per_word
    windows, window = passage.ids.shape
    ppl = perplexity(figures.loss, blocks)
    score = TextScore(
        passage.bos, window, windows, len(figures), ppl.clusters, ppl.value, ppl.stderr,
        ppl.value**per_word,
    )  # fmt: skip
    if not figures.compared:
        return score
    own = math.exp(float(figures.loss_baseline.mean()))
    difference = perplexity_difference(figures.loss, figures.loss_baseline, blocks)
    kld = clustered_mean(figures.kld, blocks)
    return replace(
        score,
        ppl_baseline=own,
        word_ppl_baseline=own**per_word,
        ppl_diff=difference.value,
        ppl_diff_stderr=difference.stderr,
        kld_mean=kld.value,
        kld_stderr=kld.stderr,
        kld_p50=figures.kld_quantile(0.5),
        kld_p90=figures.kld_quantile(0.9),
        kld_p95=figures.kld_quantile(0.95),
        kld_p99=figures.kld_quantile(0.99),
        kld_p999=figures.kld_quantile(0.999),
        kld_max=float(figures.kld.max()),
        delta_p_rms=math.sqrt(float(figures.delta_p.square().mean())),
        top1_agreement=float(figures.same_top.mean()),
    )
