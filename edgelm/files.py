"""ModelFiles: an opened model before anything is loaded. Headers, config, names, tokenizer."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.checkpoint import Checkpoint, open_checkpoint
from edgelm.config import ModelConfig
from edgelm.errors import ModelFileError
from edgelm.hub import resolve
from edgelm.models import family_of
from edgelm.models.decoder import Decoder
from edgelm.models.heads import head_for
from edgelm.weights import WeightNames

if TYPE_CHECKING:
    from edgelm.tokenizer import Tokenizer


class ModelFiles:
    """What a checkpoint's headers tell; reading them takes no memory to speak of.

    Args:
        name: the reference it was opened by, for messages and reports.
    """

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self._family = family_of(checkpoint.config)
        self.config: ModelConfig = self._family.read_config(checkpoint.config)
        self.names = WeightNames(self._family.WEIGHTS, checkpoint, self.config.head_size)

    @classmethod
    def open(
        cls, model: str | Path, *, revision: str | None = None, offline: bool = False,
        allow_pickle: bool = False,
    ) -> ModelFiles:  # fmt: skip
        """Find the files of a model reference (see ``hub.resolve``) and read their headers.

        Raises:
            HubError: a Hub model could not be fetched.
            ModelFileError, UnsupportedModelError: damaged files, or a model not run here.
        """
        path = resolve(str(model), revision=revision, offline=offline, allow_pickle=allow_pickle)
        return cls(str(model), open_checkpoint(path, allow_pickle=allow_pickle))

    def decoder(self, task: str) -> Decoder:
        """The model's modules with ``task``'s head, still without weights."""
        decoder: Decoder = self._family.build(self.config, head_for(self.config, task))
        return decoder

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ModelFileError: the files hold none.
        """
        from edgelm.tokenizer import load_tokenizer

        metadata = self.checkpoint.metadata or None
        return load_tokenizer(self.checkpoint.path, metadata)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling defaults, empty when it has none."""
        path = self.checkpoint.path / "generation_config.json"
        if not self.checkpoint.path.is_dir() or not path.exists():
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read as JSON: {error}.") from error
        if not isinstance(data, dict):
            raise ModelFileError(f"{path} holds {type(data).__name__}; expected an object.")
        return data
