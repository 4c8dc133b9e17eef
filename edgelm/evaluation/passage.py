"""Passage: a text split into windows of token ids, the same for a model and its baseline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from edgelm.errors import ModelFileError, UsageError
from edgelm.evaluation.statistics.clusters import blocks_of
from edgelm.text.chat_prompt import encode_chat
from edgelm.text.lines import UTF8
from edgelm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Passage:
    """Ids [windows, window] int64; words are separated by whitespace.

    Each window starts from an empty cache and gives ``window - 1`` predictions. ``bos``: BOS takes
    the place of each window's first id, as in llama.cpp's perplexity, since the model's prompts
    begin with it. ``parts``: each text's name and number of windows, in order.
    """

    ids: Tensor
    bos: bool
    tokens_per_word: float
    sha256: str
    parts: tuple[tuple[str, int], ...]

    @classmethod
    def read(
        cls, path: str | Path, tokenizer: Tokenizer, window: int, limit: int | None
    ) -> Passage:
        """Read the first ``limit`` windows of a file; an incomplete last one is left out.

        The file is a UTF-8 text; one that ends in .jsonl holds conversations, each a line with a
        list of ``messages``, which are read in the model's chat template.

        Raises:
            ModelFileError: the file cannot be read as UTF-8, or a line is not a conversation.
            UsageError: the text is shorter than a window, or a window predicts nothing.
        """
        chats = Path(path).suffix.lower() == ".jsonl"
        try:
            data = Path(path).read_bytes()
            text = data.decode(UTF8)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(
                f"{path} cannot be read as UTF-8 text: {error}. Give a plain text file."
            ) from error
        ids = _chat_ids(path, text, tokenizer) if chats else tokenizer.encode(
            text, add_special=False
        )  # fmt: skip
        if len(ids) < 2:
            raise UsageError(
                f"{path} holds {len(ids)} tokens of text; give one of at least a window."
            )
        if not 2 <= window <= len(ids):
            raise UsageError(
                f"window is {window}; allowed: 2 to the {len(ids)} tokens of {path}. Give a longer "
                "text or a smaller window."
            )
        count = len(ids) // window if limit is None else min(limit, len(ids) // window)
        kept = ids[: count * window]
        words = len(tokenizer.decode(kept).split())
        tokens = torch.tensor(kept).view(count, window)
        bos = tokenizer.bos_id if tokenizer.add_bos else None
        if bos is not None:
            tokens[:, 0] = bos
        digest, parts = hashlib.sha256(data).hexdigest(), ((Path(path).stem, count),)
        return cls(tokens, bos is not None, len(kept) / max(1, words), digest, parts)

    @classmethod
    def joined(cls, passages: Sequence[Passage]) -> Passage:
        """Several texts as one; their windows are as long and begin alike."""
        ids = torch.cat([own.ids for own in passages])
        words = sum(own.ids.numel() / own.tokens_per_word for own in passages)
        parts = tuple(part for own in passages for part in own.parts)
        told = json.dumps([(own.parts, own.sha256) for own in passages])
        digest = hashlib.sha256(told.encode()).hexdigest()
        return cls(ids, passages[0].bos, ids.numel() / words, digest, parts)

    def first(self, windows: int) -> Passage:
        """The first windows, at most this number."""
        parts, left = [], windows
        for name, count in self.parts:
            parts += [(name, min(count, left))] if left else []
            left -= min(count, left)
        return replace(self, ids=self.ids[:windows], parts=tuple(parts))

    @property
    def token_blocks(self) -> list[int]:
        """The block of windows of each predicted token, see ``statistics.clusters``."""
        blocks = blocks_of([count for _, count in self.parts])
        return [block for block in blocks for _ in range(self.ids.shape[1] - 1)]


def _chat_ids(path: str | Path, text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of the conversations of JSON lines, one after another."""
    if not tokenizer.chat_template:
        raise UsageError(
            f"{path} holds conversations, and the model has no chat template to read them in. "
            "Give texts."
        )
    ids: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
            ids += encode_chat(tokenizer, messages, add_generation_prompt=False)
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise ModelFileError(
                f"{path}, line {number} is not a conversation ({type(error).__name__}: {error}). "
                'Write {"messages": [{"role": ..., "content": ...}, ...]} on each line.'
            ) from error
    return ids
