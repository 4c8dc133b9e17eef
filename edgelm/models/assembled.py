"""Assembled: a model put together for a task, still without weights."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.config import ModelConfig
from edgelm.models.decoder import Decoder
from edgelm.models.weight_names import WeightNames


@dataclass(frozen=True)
class Assembled:
    """The modules of a model for one task, and where their weights are.

    Attributes:
        name: the reference the model was opened by, for messages.
        config: of these modules, which may be one layer of the model.
        names: from canonical weight names to the files'.
    """

    name: str
    config: ModelConfig
    decoder: Decoder
    names: WeightNames
