"""``verify``: a certificate is measured again, and every figure is the same or is not."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelm.checkpoint.certificate import Certificate, read_beside
from edgelm.checkpoint.packed import PackedCheckpoint
from edgelm.errors import EdgeLMError, UsageError
from edgelm.evaluation.baseline import tokenizer_sha256
from edgelm.evaluation.certify import BUILT_IN, Text, kernels, measure
from edgelm.hub.references import is_local
from edgelm.models.model_files import ModelFiles
from edgelm.progress import Progress

# (absolute, relative) difference that other kernels and versions may make: products that round
# their inputs to 8 bits move a mean divergence by up to 0.0001 nats, see benches/LOG.md.
TOLERANCES: dict[str, tuple[float, float]] = {
    "ppl": (0.0, 0.002),
    "ppl_baseline": (0.0, 0.002),
    "kld_mean": (1e-4, 0.02),
    "kld_p99": (1e-3, 0.05),
    "top1_agreement": (0.005, 0.0),
}
OF_ORIGINAL = ("ppl_baseline", "kld_mean", "kld_p99", "top1_agreement")


@dataclass(frozen=True)
class Check:
    """One fact of a certificate; ``found`` is None where the original would be needed for it."""

    name: str
    stated: float | str
    found: float | str | None
    same: bool


@dataclass(frozen=True)
class Verified:
    """A certificate beside a second measurement. ``original``: what was compared with, None if it
    was not at hand. ``kernels`` are those that ran now."""

    path: str
    certificate: Certificate
    original: str | None
    checks: tuple[Check, ...]
    kernels: dict[str, str]

    @property
    def same(self) -> bool:
        """True if nothing that was measured differs."""
        return all(check.same for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data."""
        return asdict(self) | {"same": self.same}


def certificate_of(files: ModelFiles) -> Certificate | None:
    """What ``quantize`` measured of these files, None if nothing."""
    if isinstance(files.checkpoint, PackedCheckpoint):
        return files.checkpoint.manifest.certificate
    return None if files.checkpoint.path.is_dir() else read_beside(files.checkpoint.path)


def verify(
    model: str | Path, *, original: str | Path | None = None, text: str | Path | None = None,
    progress: Progress | None = None,
) -> Verified:  # fmt: skip
    """Measure the certificate of a folder or .gguf file again.

    Args:
        original: a reference of the model it was made of; without one, the name in the certificate
            is looked up on this machine, and where that is not found perplexity alone is measured.
        text: the certificate's text, if that is not the built-in one.
        progress: called with (step, done, all).

    Raises:
        UsageError: there is no certificate, or text or original are not those of it.
    """
    files = ModelFiles.open(model)
    stated = certificate_of(files)
    if stated is None:
        raise UsageError(
            f"{model} has no certificate: edgelm quantize writes one, unless it is told not to. "
            "Quantize the model again, or use edgelm eval --baseline."
        )
    if text is None and stated.text != BUILT_IN:
        raise UsageError(f"text is None; the certificate was measured on {stated.text}: give it.")
    read = Text.read(text, files.tokenizer, window=stated.window, windows=stated.windows)
    if read.passage.sha256 != stated.text_sha256:
        raise UsageError(
            f"text is {read.name} with sha256 {read.passage.sha256[:16]}; the certificate was "
            f"measured on {stated.text} with {stated.text_sha256[:16]}. Give that text, or use the "
            f"edgelm of the certificate, {stated.versions.get('edgelm')}."
        )
    against = _original(stated, original)
    with tempfile.TemporaryDirectory() as aside:
        score = measure(files, against, read, Path(aside), progress)
    checks = [
        _hashes("tokenizer_sha256", stated, tokenizer_sha256(files.tokenizer)),
        _hashes("weights_sha256", stated, files.sha256),
        *(_figure(name, stated, getattr(score, name)) for name in TOLERANCES),
    ]
    name = None if against is None else against.name
    return Verified(str(model), stated, name, tuple(checks), kernels(files, read))


def _original(stated: Certificate, given: str | Path | None) -> ModelFiles | None:
    """The model of the certificate; None if it is not on this machine."""
    if given is None:
        try:
            # A path is not told by its last part: only names that mean one thing are looked up.
            if stated.source != "demo" and (is_local(stated.source) or "/" not in stated.source):
                return None
            found = ModelFiles.open(stated.source, offline=True)
        except EdgeLMError:
            return None
        return found if found.sha256 == stated.source_sha256 else None
    found = ModelFiles.open(given)
    if found.sha256 != stated.source_sha256:
        raise UsageError(
            f"original is {given}, whose weights have the sha256 {found.sha256[:16]}; the "
            f"certificate is of {stated.source} with {stated.source_sha256[:16]}. Give that."
        )
    return found


def _hashes(name: str, stated: Certificate, found: str) -> Check:
    told = getattr(stated, name)
    return Check(name, told, found, told == found)


def _figure(name: str, stated: Certificate, found: float | None) -> Check:
    told, (absolute, relative) = getattr(stated, name), TOLERANCES[name]
    same = found is None or abs(found - told) <= absolute + relative * abs(told)
    return Check(name, told, found, same)
