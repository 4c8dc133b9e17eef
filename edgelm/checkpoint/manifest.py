"""The manifest edgelm.json: the contents of a quantized folder and the sha256 of every file.

Version 1 is of folders whose packed weights lie as compressed-tensors or bitsandbytes has them, so
with schemes of 4 and 8 bits; version 2 of those in a layout of their own (``canonical_layout``),
which holds every scheme. Keys of both:
    format_version, writer     1 or 2, "edgelm 0.1.0"
    recipe, method             as given; a recipe in the form of ``quant.Recipe.to_dict``
    licence                    of the original model, null where it states none
    source_sha256              of the original model's config.json and weights; absent in old files
    bits_per_weight            bytes of all tensors x 8 / parameters: packed ones as their schemes
                               say, others as stored; before version 2, with scales in float32
    modules                    weight name -> {scheme, shape, parts, error_db, note}
    floats                     names of the matrices left in floats
    files                      file name -> sha256, all files but this one
    certificate                what the result's predictions lost, see ``certificate``; null if that
                               was not measured, absent in old files
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelm.checkpoint.certificate import Certificate
from edgelm.checkpoint.packed_layout import expresses
from edgelm.checkpoint.safetensors_files import read_json
from edgelm.errors import ModelFileError, UnsupportedModelError
from quant import QuantError, Scheme

MANIFEST = "edgelm.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Module:
    """One packed matrix. parts: its canonical names, several where the file fuses them."""

    scheme: Scheme
    shape: tuple[int, int]
    parts: tuple[str, ...] = ()
    error_db: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "scheme": str(self.scheme),
            "shape": [*self.shape],
            "parts": [*self.parts],
        }


@dataclass(frozen=True)
class Manifest:
    """The content of edgelm.json, see the module docstring."""

    writer: str
    recipe: dict[str, Any]
    method: str
    licence: str | None
    bits_per_weight: float
    modules: dict[str, Module]
    floats: tuple[str, ...]
    files: dict[str, str]
    source_sha256: str | None = None
    certificate: Certificate | None = None
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data."""
        own = ("modules", "format_version")
        shown = {name: value for name, value in vars(self).items() if name not in own}
        modules = {name: module.to_dict() for name, module in self.modules.items()}
        certificate = self.certificate and self.certificate.to_dict()
        shown |= {"modules": modules, "floats": [*self.floats], "certificate": certificate}
        return {"format_version": self.format_version} | shown

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file.

        Raises UnsupportedModelError for a newer version, ModelFileError for a damaged file.
        """
        data = read_json(path)
        version = data.get("format_version")
        if type(version) is int and version > FORMAT_VERSION:
            raise UnsupportedModelError(
                f"{path} is of format version {version}; this edgelm reads up to "
                f"{FORMAT_VERSION}. Install a newer edgelm, or quantize the model again."
            )
        try:
            if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
                raise ValueError(f"format_version is {version!r}")
            return cls(
                writer=str(data["writer"]),
                recipe=dict(data["recipe"]),
                method=str(data["method"]),
                licence=data["licence"],
                bits_per_weight=float(data["bits_per_weight"]),
                modules={str(n): _module(entry, version) for n, entry in data["modules"].items()},
                floats=tuple(map(str, data["floats"])),
                files={str(name): str(digest) for name, digest in data["files"].items()},
                source_sha256=str(data["source_sha256"]) if data.get("source_sha256") else None,
                certificate=Certificate.of(told) if (told := data.get("certificate")) else None,
                format_version=version,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelFileError(
                f"{path} is damaged ({type(error).__name__}: {error}). Quantize the model again."
            ) from None


def _module(entry: dict[str, Any], version: int) -> Module:
    scheme = Scheme.parse(entry["scheme"])
    rows, inputs = (int(size) for size in entry["shape"])
    scheme.check((rows, inputs))
    if scheme.is_float:
        raise QuantError(f"{scheme} is not a packed scheme")
    if version == 1 and not expresses(scheme):
        raise QuantError(f"folders of version 1 hold no {scheme}")
    db = entry["error_db"]
    parts = tuple(map(str, entry["parts"]))
    return Module(scheme, (rows, inputs), parts, db, str(entry["note"]))
