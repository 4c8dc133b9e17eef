"""Usage: the tokens of a call's answers."""

from __future__ import annotations

from typing import Any

from edgelm.generation.request import Chunk


class Usage:
    """Counts of the last pieces of answers.

    Args:
        shared: answers to each prompt, which counts once.
    """

    def __init__(self, shared: int = 1) -> None:
        self._shared = shared
        self.prompt = self.kept = self.new = 0

    def add(self, index: int, chunk: Chunk) -> None:
        """A piece of answer number ``index``."""
        if chunk.stats is not None:
            self.new += chunk.stats.new_tokens
            if index % self._shared == 0:
                self.prompt += chunk.stats.prompt_tokens
                self.kept += chunk.stats.kept_tokens

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI tells it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.new,
            "total_tokens": self.prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": self.kept},
        }
