"""Divergence: a model's predictions over a passage beside those of its baseline, in one pass.

Figures are in nats: KL(baseline || model) of each predicted token over the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgelm.evaluation.baseline import Baseline
from edgelm.evaluation.passage import Passage
from edgelm.model import LanguageModel

BLOCK_BYTES = 32 << 20
"""Of one block of logits or of the baseline's head; four of the first are alive at once."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TextScore:
    """What a passage said of a model; None where there was no baseline.

    ``ppl`` is over tokens, ``word_ppl`` over words parted by white space: another number.
    ``ppl_stderr`` is that of the mean over tokens, carried through exp.
    """

    tokens: int
    ppl: float
    ppl_stderr: float
    word_ppl: float
    ppl_baseline: float | None = None
    kld_mean: float | None = None
    kld_p99: float | None = None
    kld_max: float | None = None
    top1_agreement: float | None = None


@torch.inference_mode()
def score_text(
    lm: LanguageModel, passage: Passage, baseline: Baseline | None, progress: Progress | None
) -> TextScore:
    """One pass over the passage; with a baseline its logits are made block by block beside.

    Raises:
        BudgetExceededError: the budget has no room for the blocks.
    """
    vocab, window = lm.config.vocab_size, passage.ids.shape[1]
    block = max(1, min(window, BLOCK_BYTES // (4 * vocab)))
    working_bytes = (4 * 4 * block * vocab) + (BLOCK_BYTES if baseline else 0)
    lm.ledger.extend("evaluation", working_bytes)
    cache = lm.new_cache(1, window)
    found = []
    try:
        for number, ids in enumerate(passage.ids):
            cache.truncate(0, 0)
            for start in range(0, window - 1, block):
                piece = ids[start : min(start + block, window - 1)]
                logits = lm.forward(piece[None], cache=cache).logits
                assert logits is not None
                wanted = ids[start + 1 : start + 1 + len(piece)]
                theirs = None
                if baseline is not None:
                    theirs = baseline.logits(number * window + start, len(piece))
                found.append(_token_figures(logits[0], theirs, wanted))
            if progress:
                progress(number + 1, len(passage.ids))
    finally:
        lm.ledger.release("kv cache", cache.nbytes)
        lm.ledger.extend("evaluation", -working_bytes)
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
    per_word = passage.ids.numel() / passage.words
    score = TextScore(count, math.exp(mean), stderr, math.exp(mean * per_word))
    if figures.shape[1] == 1:
        return score
    kld = figures[:, 2]
    return TextScore(
        score.tokens, score.ppl, score.ppl_stderr, score.word_ppl,
        ppl_baseline=math.exp(float(figures[:, 1].mean())),
        kld_mean=float(kld.mean()),
        kld_p99=float(kld.kthvalue(max(1, math.ceil(0.99 * count))).values),
        kld_max=float(kld.max()),
        top1_agreement=float(figures[:, 3].mean()),
    )  # fmt: skip
