"""ModelFiles: an opened model before weights are loaded. Headers, config, names, tokenizer."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.checkpoint.fresh_head import FreshHead
from edgelm.checkpoint.opening import open_checkpoint, own_files
from edgelm.checkpoint.packed import PackedCheckpoint
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.config import ConfigReader, ModelConfig
from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.hub.headers import Skeleton, headers_or_cached
from edgelm.hub.references import is_local, is_offline, resolve
from edgelm.models import family_of
from edgelm.models.assembled import Assembled
from edgelm.models.decoder import Decoder
from edgelm.models.heads import head_for
from edgelm.models.layers import Head
from edgelm.models.tied_head import has_other_head
from edgelm.models.weight_names import WeightNames
from edgelm.plain_file import is_present
from edgelm.text.tokenizer_config import read_object

if TYPE_CHECKING:
    from edgelm.text.tokenizer import Tokenizer

logger = logging.getLogger("edgelm")
TOKENIZER_BYTES = 600
"""Of a tokenizer in memory, for each token: Llama 3's takes 73 MiB, Gemma 2's 85."""
_WEIGHTS = {".safetensors", ".bin", ".pt", ".msgpack", ".gguf"}


class ModelFiles:
    """The headers of a checkpoint and what follows from them; they take very little memory.

    Args:
        name: the reference it was opened with, for messages and reports.
        skeleton: of a checkpoint whose headers alone are here; its files are deleted with it.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, skeleton: Skeleton | None = None) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.skeleton = skeleton
        self._family = family_of(checkpoint.config)
        config = self._family.read_config(checkpoint.config)
        names = WeightNames(self._family.WEIGHTS, checkpoint, config.head_size)
        if config.tied and has_other_head(names, readable=skeleton is None):
            logger.info("%s: its head is stored and is not the embedding, so it is used.", name)
            config = replace(config, tied=False)
        self.config: ModelConfig = config

    @classmethod
    def open(
        cls, model: str | Path, *, revision: str | None = None, offline: bool = False,
        allow_pickle: bool = False, headers_only: bool = False,
    ) -> ModelFiles:  # fmt: skip
        """Find the files of a reference (see ``hub.references.resolve``) and read their headers.

        headers_only: do not fetch the weights of a Hub model, which then can be planned but not
            loaded.

        Raises:
            HubError: a Hub model could not be fetched.
            ModelFileError, UnsupportedModelError: damaged files, or an unsupported model.
        """
        name, offline = str(model), offline or is_offline()
        skeleton = None
        if headers_only and not (is_local(name) or offline):
            skeleton = headers_or_cached(name, revision)
        path = skeleton.path if skeleton else resolve(
            name, revision=revision, offline=offline, allow_pickle=allow_pickle
        )  # fmt: skip
        return cls(name, open_checkpoint(path, allow_pickle=allow_pickle), skeleton)

    @classmethod
    def of(cls, model: str | Path | ModelFiles, **source: Any) -> ModelFiles:
        """The files given, or those of a reference; ``source``: keywords of ``open``."""
        return model if isinstance(model, ModelFiles) else cls.open(model, **source)

    def assemble(
        self, task: str, num_labels: int | None = None, problem_type: str | None = None
    ) -> Assembled:
        """Build the model's modules with ``task``'s head, without weights, and the weight names.

        Args:
            num_labels, problem_type: given by the user, see ``load``; a head that the files lack
                is then initialised at random.

        Raises:
            UsageError, UnsupportedModelError: the task does not fit the model or the options.
            ModelFileError: the files lack the head and no fresh one was requested.
        """
        head = head_for(self.config, task, self.checkpoint.config, num_labels, problem_type)
        decoder: Decoder = self._family.build(self.config, head)
        if head is None or head.tied:
            return Assembled(self.name, self.config, decoder, self._names(self.checkpoint, head))
        names = self._names(self.checkpoint, head)
        if not names.has("head"):
            names.refuse_missing("head")
            if num_labels is None:
                raise ModelFileError(
                    f"{self.checkpoint.path} has no tensor {head.source}.weight, the head of task "
                    f"{task!r}. Load a checkpoint that was trained for this task"
                    + ("." if head.is_language_model else ", or give num_labels= for a fresh head.")
                )
            fresh = self._names(self._with_fresh(head), head)
            return Assembled(self.name, self.config, decoder, fresh)
        stored = self.checkpoint.info(names.file_name("head")).shape
        if num_labels not in (None, stored[0]):
            raise UsageError(
                f"num_labels is {num_labels}; the head of {self.checkpoint.path} has {stored[0]} "
                "labels. Leave num_labels out to use it."
            )
        return Assembled(self.name, self.config, decoder, names)

    def assemble_layer(self, index: int) -> Assembled:
        """Build layer ``index`` as a one-layer model, with the embedding and the final norm."""
        config = replace(self.config, num_layers=1, windows=(self.config.windows[index],))
        table, size = self._family.WEIGHTS, config.head_size
        names = WeightNames(table, self.checkpoint, size, first_layer=index, tied=self.config.tied)
        return Assembled(self.name, config, self._family.build(config, None), names)

    def _names(self, checkpoint: Checkpoint, head: Head | None) -> WeightNames:
        table = self._family.WEIGHTS | ({} if head is None else {"head": head.source})
        return WeightNames(table, checkpoint, self.config.head_size, tied=self.config.tied)

    def _with_fresh(self, head: Head) -> Checkpoint:
        logger.warning(
            "%s has no head for task %r; a fresh one with random weights is made, whose results "
            "mean nothing before it is trained.",
            self.name,
            head.task,
        )
        shapes: dict[str, tuple[int, ...]] = {
            f"{head.source}.weight": (head.out_size, head.in_size)
        }
        if head.bias:
            shapes[f"{head.source}.bias"] = (head.out_size,)
        std = ConfigReader(self.checkpoint.config).number("initializer_range", default=0.02)
        return FreshHead(self.checkpoint, shapes, std)

    @cached_property
    def sha256(self) -> str:
        """Hash of config.json and the weight files, in the order of their names; reads them all."""
        digests = []
        for own in own_files(self.checkpoint.path):
            if own.suffix.lower() not in _WEIGHTS and own.name != "config.json":
                continue
            with own.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        return weights_sha256(digests)

    @property
    def source_sha256(self) -> str | None:
        """``sha256`` of the model that these files were quantized from, None if not recorded."""
        if isinstance(self.checkpoint, PackedCheckpoint):
            return self.checkpoint.manifest.source_sha256
        return None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with its family's chat template if the files have none.

        Raises:
            ModelFileError: the files have no tokenizer.
        """
        from edgelm.text.tokenizer import load_tokenizer

        metadata = self.checkpoint.metadata or None
        template = getattr(self._family, "CHAT_TEMPLATE", None)
        return load_tokenizer(self.checkpoint.path, metadata, template)

    def read_tokenizer(self) -> None:
        """Have the tokenizer in memory, if it is here: a plan counts it with the process."""
        if self.skeleton is None:
            with suppress(EdgeLMError):  # told to whoever asks for text
                _ = self.tokenizer

    @property
    def unread_bytes(self) -> int:
        """What a tokenizer that is not here yet will take, by the size of the vocabulary."""
        return 0 if self.skeleton is None else TOKENIZER_BYTES * self.config.vocab_size

    @cached_property
    def generation_config(self) -> tuple[dict[str, Any], Path]:
        """What is said of generation, and in which file.

        As in transformers that is config.json for a model without generation_config.json; there,
        older models have such keys among others.
        """
        path = self.checkpoint.path / "generation_config.json"
        if path.parent.is_dir() and is_present(path):
            return read_object(path), path
        return dict(self.checkpoint.config), self.checkpoint.path / "config.json"


def weights_sha256(digests: Iterable[bytes]) -> str:
    """``ModelFiles.sha256`` of the digests of files, in the order of their names."""
    return hashlib.sha256(b"".join(digests)).hexdigest()
