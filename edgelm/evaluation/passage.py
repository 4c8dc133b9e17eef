"""Passage: a text split into windows of token ids, the same for a model and its baseline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgelm.errors import ModelFileError, UsageError
from edgelm.text.lines import UTF8
from edgelm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Passage:
    """Ids [windows, window] int64; words are separated by whitespace.

    Each window starts from an empty cache and gives ``window - 1`` predictions. ``bos``: BOS takes
    the place of each window's first id, as in llama.cpp's perplexity, since the model's prompts
    begin with it.
    """

    ids: Tensor
    bos: bool
    tokens_per_word: float
    sha256: str

    @classmethod
    def read(
        cls, path: str | Path, tokenizer: Tokenizer, window: int, limit: int | None
    ) -> Passage:
        """Read the first ``limit`` windows of a UTF-8 file; an incomplete last one is left out.

        Raises:
            ModelFileError: the file cannot be read as UTF-8.
            UsageError: the text is shorter than a window, or a window predicts nothing.
        """
        try:
            data = Path(path).read_bytes()
            ids = tokenizer.encode(data.decode(UTF8), add_special=False)
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(
                f"{path} cannot be read as UTF-8 text: {error}. Give a plain text file."
            ) from error
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
        digest = hashlib.sha256(data).hexdigest()
        return cls(tokens, bos is not None, len(kept) / max(1, words), digest)
