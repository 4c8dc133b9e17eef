"""Models: one module per family, named as transformers' ``model_type``, on common building blocks.

Modules:
    llama, gemma2, helium, bloom, persimmon: the families: weight names, config and assembly.
    decoder, layers, attention: the forward pass and its layers.
    heads: task heads and their labels.
    tied_head: whether a tied model's files hold a head of their own.
    weight_names: canonical names mapped to a file's tensors.
    model_files: ``ModelFiles``, an opened model before its weights are loaded.
    assembled: ``Assembled``, the modules of a model for one task, without weights.

Above ``ops`` and below ``layerstore`` in the ladder of tests/test_house.py:
imports point down only.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from edgelm.errors import ModelFileError, UnsupportedModelError

FAMILIES = ("bloom", "gemma2", "helium", "llama", "persimmon")


def family_of(config: Mapping[str, Any]) -> ModuleType:
    """The family module (``WEIGHTS``, ``read_config``, ``build``) for a ``config.json``."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFileError("config.json has no model_type; the file is damaged.")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"config.json: model_type is {model_type!r}; supported: {', '.join(FAMILIES)}."
        )
    return import_module(f"edgelm.models.{model_type}")
