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
from edgelm.evaluation.passage import Passage
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
    ``ppl_stderr`` is that of the mean over tokens, propagated through exp.
    """

    bos: bool
    window: int
    windows: int
    tokens: int
    ppl: float
    ppl_stderr: float
    word_ppl: float
    ppl_baseline: float | None = None
    word_ppl_baseline: float | None = None
    kld_mean: float | None = None
    kld_p99: float | None = None
    kld_max: float | None = None
    top1_agreement: float | None = None


@torch.inference_mode()
def score_text(
    lm: LanguageModel, passage: Passage, baseline: Baseline | None, progress: Count | None
) -> TextScore:
    """Score a passage in one pass; a baseline's logits are computed along with it, in blocks.

    Raises:
        BudgetExceededError: the smallest blocks do not fit the budget.
    """
    vocab, window = lm.config.vocab_size, passage.ids.shape[1]
    cache = lm.new_cache(1, window)
    head = 0 if baseline is None else 4 * vocab * lm.config.hidden_size
    head_bytes = min(head, BLOCK_BYTES)
    block = block_tokens(vocab, window, lm.ledger.headroom_bytes - head_bytes)
    needed = working_bytes(vocab, block) + head_bytes
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
        return compare(passage, block, mine, theirs, progress)
    finally:
        lm.ledger.extend({PartName.EVALUATION: -needed})


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


def compare(
    passage: Passage, block: int, mine: Logits, theirs: Logits | None, progress: Count | None
) -> TextScore:
    """Figures of ``mine`` over the passage, compared to ``theirs``, ``block`` tokens at a time."""
    window, found = passage.ids.shape[1], []
    for number, ids in enumerate(passage.ids):
        for start in range(0, window - 1, block):
            wanted = ids[start + 1 : start + 1 + block]
            place = (number * window + start, len(wanted))
            logits = mine(*place)
            found.append(_token_figures(logits, theirs and theirs(*place), wanted))
        if progress:
            progress(number + 1, len(passage.ids))
    return _summary(torch.cat(found), passage)


def _token_figures(mine: Tensor, theirs: Tensor | None, wanted: Tensor) -> Tensor:
    """Logits [M, V] and ids [M] -> [M, 1 or 4]: loss, baseline's loss, KLD, same top token."""
    q = mine.log_softmax(-1)
    loss = -q.gather(1, wanted[:, None])
    if theirs is None:
        return loss.double()
    p = theirs.log_softmax(-1)
    own = -p.gather(1, wanted[:, None])
    same = (mine.argmax(-1) == theirs.argmax(-1))[:, None]
    torch.sub(p, q, out=q)
    kld = q.mul_(p.exp_()).sum(-1, keepdim=True, dtype=torch.float64).clamp(min=0)
    return torch.cat([loss, own, kld, same], dim=1).double()


def _summary(figures: Tensor, passage: Passage) -> TextScore:
    loss = figures[:, 0]
    mean, count = float(loss.mean()), len(loss)
    stderr = math.exp(mean) * float(loss.std()) / math.sqrt(count) if count > 1 else 0.0
    per_word = passage.tokens_per_word
    windows, window = passage.ids.shape
    score = TextScore(
        passage.bos, window, windows, count, math.exp(mean), stderr, math.exp(mean * per_word)
    )
    if figures.shape[1] == 1:
        return score
    own, kld = float(figures[:, 1].mean()), figures[:, 2]
    return replace(
        score,
        ppl_baseline=math.exp(own),
        word_ppl_baseline=math.exp(own * per_word),
        kld_mean=float(kld.mean()),
        kld_p99=float(kld.kthvalue(max(1, math.ceil(0.99 * count))).values),
        kld_max=float(kld.max()),
        top1_agreement=float(figures[:, 3].mean()),
    )
