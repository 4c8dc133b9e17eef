"""What stands on a decoder: so far the language-model head, or nothing for hidden states."""

from __future__ import annotations

from edgelm.config import ModelConfig
from edgelm.errors import UsageError
from edgelm.layers import Projection

TASKS = ("causal-lm", "base")


def head_for(config: ModelConfig, task: str) -> Projection | None:
    """The head of ``task``, without weights; None for ``base``."""
    if task not in TASKS:
        raise UsageError(f"task {task!r} is not known; allowed: {', '.join(TASKS)}.")
    if task == "base":
        return None
    return Projection({"head": config.vocab_size}, config.hidden_size)
