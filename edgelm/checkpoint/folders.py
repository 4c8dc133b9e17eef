"""Detection of the weight format of a folder in Hugging Face layout."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edgelm.checkpoint import flax_files, safetensors_files, torch_files
from edgelm.checkpoint.flax_files import FlaxCheckpoint
from edgelm.checkpoint.gguf_files import GGUFCheckpoint
from edgelm.checkpoint.gguf_names import model_in
from edgelm.checkpoint.manifest import MANIFEST
from edgelm.checkpoint.packed import PackedCheckpoint
from edgelm.checkpoint.protocol import Checkpoint
from edgelm.checkpoint.quantized_folders import open_quantized, quantization_settings
from edgelm.checkpoint.safetensors_files import SafetensorsCheckpoint
from edgelm.checkpoint.torch_files import TorchCheckpoint
from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.plain_file import is_present

logger = logging.getLogger("edgelm")
WEIGHTS = (
    *(safetensors_files.SINGLE, safetensors_files.INDEX),
    *(torch_files.SINGLE, torch_files.INDEX, flax_files.SINGLE),
)
ORIGINAL_RELEASE = (
    "is an original release in pickled .pt files, which are not supported. Use it in Hugging "
    "Face's layout (Persimmon: adept/persimmon-8b-base), or convert it with transformers' "
    "convert_persimmon_weights_to_hf.py."
)


def open_folder(path: Path, allow_pickle: bool = False) -> Checkpoint:
    """Open a folder: safetensors if there are any, packed if its settings say so, else pickled
    weights if allowed, else Flax weights, else the one GGUF model in it.

    Folders written by this package have an edgelm.json, which says more than config.json.

    Raises ModelFileError for a folder without weights that may be read.
    """

    def has(*names: str) -> bool:
        return any(is_present(path / name) for name in names)

    if not any(os.path.lexists(path / name) for name in WEIGHTS) and (model := model_in(path)):
        logger.info("%s: the model is %s, described by its own metadata.", path, model.name)
        return GGUFCheckpoint(model)
    if not has("config.json") and any(path.glob("*.pt")):
        raise UnsupportedModelError(f"{path} {ORIGINAL_RELEASE}")
    if has(MANIFEST):
        return PackedCheckpoint(path)
    if quantization_settings(path) is not None:
        return open_quantized(path)
    if has(safetensors_files.SINGLE, safetensors_files.INDEX):
        return SafetensorsCheckpoint(path)
    pickled = has(torch_files.SINGLE, torch_files.INDEX)
    if pickled and allow_pickle:
        return TorchCheckpoint(path)
    if has(flax_files.SINGLE):
        return FlaxCheckpoint(path)
    if not pickled:
        return SafetensorsCheckpoint(path)  # which says what is missing
    raise ModelFileError(
        f"{path} has only pickled weights ({torch_files.SINGLE}), which can run code when opened. "
        "If you trust them say --allow-pickle (in Python allow_pickle); else use the model's "
        "safetensors files or convert it (save_pretrained in transformers)."
    )
