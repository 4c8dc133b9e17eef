"""Certification: what was written is measured before it gets its name, and refused if it is worse
than was allowed."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from edgelm.checkpoint.certificate import Certificate
from edgelm.checkpoint.manifest import Manifest
from edgelm.errors import DoesNotFitError, EdgeLMError, UsageError
from edgelm.evaluation.certify import Text, certify, needed_bytes
from edgelm.models.model_files import ModelFiles
from edgelm.progress import Progress
from edgelm.quantization import bit_budget
from edgelm.quantization.conversion import Conversion, assembled
from edgelm.quantization.folder_readme import shown_name

logger = logging.getLogger("edgelm")

WORST = 5


@dataclass(frozen=True)
class Certification:
    """Of one run of ``quantize``. max_kld: the divergence that is allowed, None for any."""

    files: ModelFiles
    text: Text
    max_kld: float | None = None
    progress: Progress | None = None

    @classmethod
    def of(
        cls, files: ModelFiles, path: str | Path | None, max_kld: float | None,
        progress: Progress | None,
    ) -> Certification | None:  # fmt: skip
        """None, with a word in the log, for a model that cannot be measured.

        path: of the text; None means the built-in one.

        Raises UsageError if it cannot be measured and a text or ``max_kld`` was given.
        """
        try:
            text = _readable(files, path)
        except EdgeLMError as error:
            if path is not None:
                raise
            if max_kld is not None:
                raise UsageError(
                    f"max_kld is {max_kld:g}, and {files.name} cannot be measured: {error} Leave "
                    "it out."
                ) from error
            logger.info("%s gets no certificate: %s", files.name, error)
            return None
        return cls(files, text, max_kld, progress)

    def needed_bytes(self, conversion: Conversion) -> int:
        """Upper bound of the memory that it takes."""
        wanted = "embed" if self.files.config.tied else "head"
        head = next(target for target in conversion.targets if wanted in target.parts)
        floats = 4 * math.prod(head.shape)
        return needed_bytes(self.files, floats if head.scheme is None else head.nbytes)

    def measure(
        self, written: ModelFiles, manifest: Manifest, weights_sha256: str
    ) -> Certificate | None:
        """The certificate of what was written; None, with a warning, where there is no room.

        Raises:
            EdgeLMError: the divergence exceeds ``max_kld``.
            DoesNotFitError, OSError: there is no room, and ``max_kld`` asks for a measurement.
        """
        try:
            found = certify(
                written, self.files, self.text, source=shown_name(self.files.name),
                weights_sha256=weights_sha256, aside=Path(written.name).parent,
                progress=self.progress,
            )  # fmt: skip
        except (DoesNotFitError, OSError) as error:
            if self.max_kld is not None:
                raise
            logger.warning("%s gets no certificate: %s", written.name, error)
            return None
        if self.max_kld is not None and found.kld_mean > self.max_kld:
            raise self._refusal(written.name, manifest, found)
        return found

    def _refusal(self, out: str, manifest: Manifest, found: Certificate) -> EdgeLMError:
        worst = worst_matrices(self.files, manifest)
        named = ", ".join(f"{name} ({share:.0%})" for name, share in worst.items())
        error = EdgeLMError(
            f"{out} is not written: its {found.figures()}; max_kld={self.max_kld:g} allows less. "
            f"The largest shares of it are expected from {named}. Give these more bits, another "
            f"method, or a larger max_kld, with which the same command goes on from {out}.partial; "
            "delete that if you do not need it."
        )
        error.results = {"certificate": found.to_dict(), "worst": worst}
        return error


def _readable(files: ModelFiles, path: str | Path | None) -> Text:
    """The text in the model's tokens; UsageError if it has no language head or lacks some ids."""
    if assembled(files).decoder.head is None:
        raise UsageError("it has no head of a language model.")
    text = Text.usual(path, files)
    most, allowed = int(text.passage.ids.max()), files.config.vocab_size
    if most >= allowed:
        raise UsageError(f"its tokenizer has the id {most}, and its vocabulary {allowed} ids.")
    return text


def worst_matrices(files: ModelFiles, manifest: Manifest) -> dict[str, float]:
    """Stored name -> share of the expected divergence, of the matrices with the largest shares.

    A share is the matrix's squared error times the sensitivity of its kind, see ``bit_budget``.
    """
    sensitivities = bit_budget.built_in()
    shares: dict[str, float] = {}
    for kind in bit_budget.kinds(files):
        each = sum(sensitivities.get(name, 0.0) for name in kind.names) / len(kind.files)
        for name in kind.files:
            module = manifest.modules.get(name)
            if module is not None and module.error_db is not None:
                shares[name] = each * 10 ** (-module.error_db / 10)
    total = sum(shares.values()) or 1.0
    ranked = sorted(shares, key=lambda name: -shares[name])
    return {name: shares[name] / total for name in ranked[:WORST]}
