"""Measured configs: the fastest one per product on this card, kept in a folder for later runs.

The file holds entries of several cards and versions; those of others are preserved.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..scheme import Scheme
from . import VERSION
from .configs import Config, bucket

FILE = "triton.json"
logger = logging.getLogger("quant")
_CHOSEN: dict[str, Config] = {}
_FIELDS = {name: type(value) for name, value in asdict(Config("")).items()}
_MOST = 1 << 12  # larger than any sensible tile, small enough not to compile for hours


def key(scheme: Scheme, shape: tuple[int, int], rows: int, x: torch.dtype) -> str:
    """Key of a choice: one matrix shape, rows up to a power of two, one activation type."""
    dtype = str(x).removeprefix("torch.")
    return f"{scheme} {shape[0]}x{shape[1]} {dtype} rows {bucket(rows)}"


def chosen(name: str) -> Config | None:
    """The config set by ``use`` or ``choose`` for this key; None if it was not measured."""
    return _CHOSEN.get(name)


def choose(name: str, config: Config) -> None:
    """Run products with ``config`` from now on; must not be called during an answer."""
    _CHOSEN[name] = config


def use(folder: Path, device: torch.device) -> int:
    """Load the choices that ``folder`` keeps for this card; returns their number.

    Damaged entries are ignored with a warning, and dropped by the next ``keep``.
    """
    own = _read(folder / FILE).get(card(device), {})
    _CHOSEN.update({name: Config(**fields) for name, fields in own.items()})
    return len(own)


def keep(folder: Path, device: torch.device) -> None:
    """Write all choices of this process together with those of other cards, then rename.

    OSError if the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / FILE
    data = _read(path)
    own = data.get(card(device), {}) | {name: asdict(c) for name, c in _CHOSEN.items()}
    beside = path.with_name(f"{FILE}.{os.getpid()}")
    beside.touch(mode=0o600)  # for this user alone, as everything in the cache folder
    beside.write_text(json.dumps(data | {card(device): own}, indent=1), encoding="utf-8")
    beside.replace(path)


@cache
def card(device: torch.device) -> str:
    """Name of the card and versions of Triton and of these kernels, which identify timings."""
    from importlib.metadata import version

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{name}, triton {version('triton')}, kernels {VERSION}"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("measured kernels in %s cannot be read and are ignored: %s", path, error)
        return {}
    cards = data if isinstance(data, dict) else {}
    valid = {
        name: {key: fields for key, fields in own.items() if _is_config(fields)}
        for name, own in cards.items()
        if isinstance(own, dict)
    }
    if valid != data:
        logger.warning("measured kernels in %s are damaged and are partly ignored", path)
    return valid


def _is_config(fields: Any) -> bool:
    if not isinstance(fields, dict) or {n: type(v) for n, v in fields.items()} != _FIELDS:
        return False
    sizes = [value for name, value in fields.items() if name not in ("how", "stages")]
    powers = all(0 < size <= _MOST and size & (size - 1) == 0 for size in sizes)
    return powers and 0 < fields["stages"] <= 8 and fields["how"] in ("rows", "tile", "unpack")
