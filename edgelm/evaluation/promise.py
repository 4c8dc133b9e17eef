"""Promise: the memory of an evaluation from headers alone, beside what its process has."""

from __future__ import annotations

from edgelm.budget.parts import KV_CACHE, PROCESS
from edgelm.budget.plan import Plan
from edgelm.budget.units import BLOCK_BYTES
from edgelm.evaluation.divergence import block_tokens, figures_bytes, working_bytes
from edgelm.evaluation.inputs import Work
from edgelm.evaluation.layerwise import BLOCK_TOKENS, largest_layer_bytes
from edgelm.evaluation.make_baseline import EXACT, NOISY
from edgelm.planning.settings import Settings
from edgelm.tasks.scoring import MAX_ROWS

_ROOM_BYTES = 256 << 20  # for logits: every block of them reads the baseline's whole head
_HEADS = 2  # a block of the head as it is read, and in another type
_SCORED = 3  # logits of choices, and what log_softmax makes of them
_HELD = 2  # caches of one row: what choices share, and its snapshot


def process_bytes(plan: Plan) -> int:
    """What a plan counts for the process itself."""
    return sum(part.bytes for part in plan.parts if part.name in PROCESS)


def candidate_bytes(plan: Plan, work: Work) -> int:
    """Upper bound for the model of a plan while it reads the text and is asked the tasks."""
    cache = sum(part.bytes for part in plan.parts if part.name in KV_CACHE)
    text = 0 if work.passage is None else cache + _text_bytes(work)
    asked = 0
    if choices := [len(item) for items in work.encoded.values() for item in items]:
        rows = min(MAX_ROWS, max(choices))
        asked = (rows + _HELD) * cache + _SCORED * max(
            BLOCK_BYTES, 4 * work.files.config.vocab_size
        )
    # A block more: processes grow between a plan and its load.
    return plan.predicted_peak_bytes - process_bytes(plan) + max(text, asked) + BLOCK_BYTES


def baseline_bytes(work: Work) -> int:
    """Upper bound for the work's baseline, one layer of which is in memory at a time."""
    fixed = {"context": work.context, "rows": 1, "chunk": BLOCK_TOKENS}
    layer = max(
        largest_layer_bytes(work.files, Settings(**{**work.planned(**exact), **fixed}))
        for exact in (EXACT, NOISY)
    )
    return max(layer, _text_bytes(work)) + BLOCK_BYTES


def _text_bytes(work: Work) -> int:
    """Logits and figures of a text, and of choices that are read like one."""
    config, passage = work.files.config, work.passage
    window = work.context if passage is None else passage.ids.shape[1]
    block = block_tokens(config.vocab_size, window, _ROOM_BYTES)
    head = _HEADS * min(BLOCK_BYTES, 4 * config.vocab_size * config.hidden_size)
    figures = 0 if passage is None else figures_bytes(passage)
    return working_bytes(config.vocab_size, block) + head + figures
