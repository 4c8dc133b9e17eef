"""Certificate: what quantizing did to a model's predictions, as ``edgelm quantize`` measured it.

It lies in edgelm.json, or beside a .gguf file as NAME.certificate.json. Keys:
    text, text_sha256          what was read: "the built-in text", or the name of a file
    tokenizer_sha256           of all tokens in order
    source, source_sha256      the original: a Hub id or a name; its config.json and weights
    weights_sha256             of config.json and the weights that were measured
    windows, window, bos       ids are read in windows, each from an empty cache; the first id of
                               each is BOS if ``bos``
    tokens                     predicted in them
    kld_mean, kld_p99, kld_max KL(original || this), nats per token
    top1_agreement             share of tokens for which both hold the same one for likeliest
    ppl, ppl_baseline          perplexity per token, of this and of the original
    kernels, versions          what multiplied, by the kind of matrix; of edgelm and torch
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelm.checkpoint.safetensors_files import read_json
from edgelm.errors import ModelFileError

LIMITS = (
    "It says how near the predictions are to the original's on this text, with these kernels. It "
    "does not prove that tasks are solved as well, nor anything about other texts, languages, long "
    "contexts or other programs."
)


@dataclass(frozen=True)
class Certificate:
    """See the module docstring. The original runs in float32, this with float32 activations."""

    text: str
    text_sha256: str
    tokenizer_sha256: str
    source: str
    source_sha256: str
    weights_sha256: str
    windows: int
    window: int
    bos: bool
    tokens: int
    kld_mean: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    ppl: float
    ppl_baseline: float
    kernels: dict[str, str]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Certificate:
        """From JSON data; KeyError, TypeError or ValueError if it is damaged."""
        hints: dict[str, str] = cls.__annotations__
        found = cls(**{name: _READERS[hints[name]](data[name]) for name in hints})
        if found.windows < 1 or found.window < 2:
            raise ValueError(f"{found.windows} windows of {found.window} predict nothing")
        return found

    def figures(self) -> str:
        """One line for a model card."""
        return (
            f"KL divergence from the original {self.kld_mean:.6f} nats per token (99 %: "
            f"{self.kld_p99:.4f}, max {self.kld_max:.2f}), same top token "
            f"{self.top1_agreement:.1%}, perplexity {self.ppl_baseline:.3f} -> {self.ppl:.3f}"
        )

    def protocol(self) -> str:
        """How it was measured, in one line."""
        begin = "begin with BOS" if self.bos else "begin with the text's own ids"
        kernels = ", ".join(f"{kind} {kernel}" for kind, kernel in self.kernels.items())
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.tokens} tokens of {self.text}, in {self.windows} windows of {self.window} that "
            f"{begin}; activations in float32; kernels: {kernels}; {versions}"
        )


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _is(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{value!r:.60} is not of type {kind.__name__}")
        if isinstance(value, str) and not value.isprintable():
            raise ValueError(f"{value!r:.60} cannot be printed")
        return value

    return read


def _texts(value: Any) -> dict[str, str]:
    return {_is(str)(name): _is(str)(text) for name, text in _is(dict)(value).items()}


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _is(str), "int": _is(int), "bool": _is(bool), "float": _finite, "dict[str, str]": _texts,
}  # fmt: skip


def beside(path: Path) -> Path:
    """Where the certificate of a .gguf file lies."""
    return path.with_suffix(".certificate.json")


def write_beside(path: Path, certificate: Certificate) -> None:
    """Write the certificate of a .gguf file."""
    told = json.dumps(certificate.to_dict(), indent=1, ensure_ascii=False) + "\n"
    beside(path).write_text(told, "utf-8")


def read_beside(path: Path) -> Certificate | None:
    """The certificate of a .gguf file, None if there is none.

    Raises ModelFileError if it is damaged.
    """
    where = beside(path)
    if not where.is_file():
        return None
    try:
        return Certificate.of(read_json(where))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{where} is damaged ({type(error).__name__}: {error}). Delete it, or quantize the "
            "model again."
        ) from None
