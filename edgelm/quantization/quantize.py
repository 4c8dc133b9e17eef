"""``quantize``: writes a model as a folder of packed weights or a .gguf file, in little memory."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgelm import values
from edgelm.checkpoint.manifest import Manifest
from edgelm.checkpoint.safetensors_writer import disk_errors
from edgelm.errors import UsageError
from edgelm.machine import hardware
from edgelm.models.model_files import ModelFiles
from edgelm.option import PATH, Option
from edgelm.planning.setting_table import LOAD, METHOD, MODEL, PROGRESS, QUANT, QuantChoice
from edgelm.progress import Progress
from edgelm.quantization import bit_budget
from edgelm.quantization.calibration import Calibration
from edgelm.quantization.calibration_text import TOKENS_PER_INPUT, CalibrationText
from edgelm.quantization.certification import Certification
from edgelm.quantization.conversion import Conversion, plan_conversion
from edgelm.quantization.converted_rows import block_bytes
from edgelm.quantization.generated_text import GENERATED, generated_text
from edgelm.quantization.gguf_export import GGUFExport, plan_gguf
from edgelm.quantization.packed_folder import PackedFolder
from edgelm.quantization.readers import READERS, cost, recipe_for
from quant import CALIBRATED_METHODS, DEFAULT_METHOD, Recipe

logger = logging.getLogger("edgelm")

BITS = Option(
    "Bits per weight.", "a number from 1 to 32", kind=values.number, check=lambda x: 1 <= x <= 32
)
READER = Option("Who reads OUT too.", ", ".join(READERS), READERS.__contains__, kind=values.text)
MAX_KLD = Option(
    "Largest divergence.", "a number above 0, or None", kind=values.number, optional=True,
    check=lambda x: 0 < x < math.inf,
)  # fmt: skip
CERTIFICATE = Option("Whether to measure.", "True or False", kind=values.truth)
LIBRARIES_BYTES = 30 << 20  # imported later
BLOCK_COPIES = 3  # rows as read, as floats and as packed
Announce = Callable[[dict[str, int]], None]


@dataclass(frozen=True)
class Quantized:
    """Result of ``quantize``. Peaks are of the whole process; ``resumed`` counts weights that an
    interrupted run had finished. ``promised_parts`` are those of the promised peak, in bytes by
    name. ``calibration``: text, number of sequences and tokens of each, None for other methods.
    ``peer_note`` says why transformers cannot load the folder; ``cost``, what it costs that the
    program asked for reads it."""

    path: str
    manifest: Manifest
    nbytes: int
    resumed: int
    promised_peak_bytes: int
    promised_parts: dict[str, int]
    peak_rss_bytes: int
    peer_note: str
    calibration: dict[str, Any] | None
    cost: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data."""
        return {**vars(self), "manifest": self.manifest.to_dict()}


def quantize(
    model: str | Path | ModelFiles, out: str | Path, *, quant: QuantChoice = "auto",
    method: str = DEFAULT_METHOD, calibration: str | Path | None = None, bpw: float | None = None,
    sensitivity: str | Path | None = None, reader: str | None = None,
    certificate: bool = True, certificate_text: str | Path | None = None,
    max_kld: float | None = None, revision: str | None = None, offline: bool = False,
    progress: Progress | None = None, announce: Announce | None = None,
) -> Quantized:  # fmt: skip
    """Write a model as a folder of packed weights, or, if ``out`` ends in .gguf, for llama.cpp.

    An interrupted call leaves OUT.partial; the same call resumes where it stopped and ends with
    the same bytes.

    Args:
        quant, method: as for ``load``; "auto" keeps what is quantized already and is int4 for the
            rest. A file's integers are kept if the recipe accepts them.
            The additional method ``gptq`` runs a text through the original layers, and takes
            minutes per billion weights.
        calibration: a UTF-8 text file for ``gptq``; None means the built-in text, "generated"
            text that the model writes first, of the length it needs.
        bpw: maximum number of bits per weight, instead of ``quant``: the recipe with the least
            expected divergence within it is used. Not for .gguf files, which lack its schemes.
        sensitivity: a UTF-8 text file on which the divergence of each kind of matrix of this model
            is measured for ``bpw``; None means values measured on other models.
        reader: a program that shall read OUT too, ``transformers``, ``vllm`` or ``llama.cpp``,
            instead of ``quant``: the best recipe in about 4 bits that it reads is used.
        certificate: measure the result's divergence from the model over 4,096 tokens, layer by
            layer, and write it into the folder, or beside a .gguf file. A model without a
            tokenizer or a language head gets none.
        certificate_text: a UTF-8 text file for it; None means the built-in text, which is no
            calibration text.
        max_kld: largest mean divergence in nats per token; a worse result is not written.
        progress: called with (weight, bytes done, bytes in all); while sensitivities are measured
            with (kinds, kinds done, kinds in all), while a model writes text with ("text", tokens
            done, tokens in all), while certifying with (step, done, in all).
        announce: called with the parts of the promised peak memory, in bytes by name, before any
            work.

    Raises:
        UsageError: OUT exists, another process is writing it, or the recipe, method or
            calibration text is wrong.
        DoesNotFitError: there is not enough memory for one layer in float32, which ``gptq`` needs.
        ModelFileError: a weight is damaged, or does not read back as written.
        EdgeLMError: the disk is full or refuses; or the divergence exceeds ``max_kld``, and then
            ``results`` has the certificate and the worst matrices.
    """
    quant, method = QUANT.require("quant", quant), METHOD.require("method", method)
    LOAD.require(revision=revision, offline=offline, progress=progress)
    MODEL.require("model", model)
    replace(PATH, check=lambda given: bool(Path(given).name)).require("out", out)
    if calibration is not None:
        PATH.require("calibration", calibration)
    PROGRESS.require("announce", announce)
    max_kld = _allowed_kld(certificate, certificate_text, max_kld)
    runtime = hardware.resident_bytes()
    files = ModelFiles.of(model, revision=revision, offline=offline)
    gguf = Path(out).suffix.lower() == ".gguf"
    if reader is not None:
        quant = recipe_for(READER.require("reader", reader), quant, bpw, Path(out))
    if bpw is not None:
        bits = BITS.require("bpw", bpw)
        quant = _recipe_of_bits(files, Path(out), quant, bits, method, sensitivity, progress)
    elif sensitivity is not None:
        raise UsageError(
            f"sensitivity is {str(sensitivity)!r}, and no number of bits per weight is given; give "
            "both or neither."
        )
    asked = (files, quant, method)
    conversion = plan_gguf(*asked) if gguf else plan_conversion(*asked)
    calibrated = _calibration(files, conversion, method, calibration, progress)
    certified = (
        Certification.of(files, certificate_text, max_kld, progress) if certificate else None
    )
    parts = (files, Path(out), conversion, method, calibrated, certified)
    job: PackedFolder | GGUFExport = GGUFExport(*parts) if gguf else PackedFolder(*parts)
    promise = _promise(runtime, job, calibrated, certified)
    with disk_errors(job.out), _alone(job.out):
        if announce:
            announce(promise)
        manifest = job.run(progress)
    note = job.conversion.layout.peer_note if isinstance(job, PackedFolder) else ""
    if note:
        logger.warning("%s: %s.", job.out, note)
    peak = hardware.peak_resident_bytes()
    return Quantized(
        str(job.out), manifest, job.nbytes, job.resumed, sum(promise.values()), promise, peak, note,
        calibrated.to_dict() if calibrated else None,
        cost(reader, files, method, conversion, manifest.bits_per_weight) if reader else "",
    )  # fmt: skip


def _recipe_of_bits(
    files: ModelFiles, out: Path, quant: QuantChoice, bits: float, method: str,
    sensitivity: str | Path | None, progress: Progress | None,
) -> Recipe:  # fmt: skip
    if out.suffix.lower() == ".gguf":
        raise UsageError(
            f"bpw is {bits:g}, and {out} cannot hold the schemes that are chosen for a number of "
            "bits. Write a folder, or name a scheme of GGUF, such as q4_k."
        )
    if quant != "auto":
        raise UsageError(
            f"quant is {quant!r}, and {bits:g} bits per weight are given too; give one."
        )
    text = None if sensitivity is None else PATH.require("sensitivity", sensitivity)
    measured = None if text is None else bit_budget.measured(files, text, progress)
    return bit_budget.BitBudget(files, method, measured).recipe(bits)


def _calibration(
    files: ModelFiles, conversion: Conversion, method: str, path: str | Path | None,
    progress: Progress | None,
) -> Calibration | None:  # fmt: skip
    """Calibration of the layers' inputs, if the method needs one, else None."""
    if method not in CALIBRATED_METHODS:
        if path is not None:
            raise UsageError(
                f"calibration is {str(path)!r}, and method {method!r} looks at weights alone; "
                f"leave it out, or choose {', '.join(CALIBRATED_METHODS)}."
            )
        return None
    if str(path) == GENERATED:
        packed = [target for target in conversion.targets if target.scheme and not target.kept]
        widest = max((target.shape[1] for target in packed), default=1)
        text = generated_text(files, widest, progress)
    else:
        text = CalibrationText.read(path, files.tokenizer, files.config.max_context)
    found = Calibration(files, text, conversion.targets)
    have = found.tokens_per_input
    told = f"calibration: {text.name} has {have:.2g} tokens for each input of the widest matrix"
    if have < TOKENS_PER_INPUT:
        logger.warning(
            "%s; %d are needed for the full gain. Give a longer text.",
            told, TOKENS_PER_INPUT,
        )  # fmt: skip
    else:
        logger.info("%s; %d are needed.", told, TOKENS_PER_INPUT)
    return found


def _allowed_kld(wanted: bool, text: str | Path | None, max_kld: float | None) -> float | None:
    """``max_kld`` as read; UsageError if it or the text is wrong, or nothing is to be measured."""
    if text is not None:
        PATH.require("certificate_text", text)
    found: float | None = MAX_KLD.require("max_kld", max_kld)
    if not CERTIFICATE.require("certificate", wanted):
        for name, value in (("certificate_text", text), ("max_kld", max_kld)):
            if value is not None:
                raise UsageError(
                    f"{name} is {str(value)!r}, and certificate=False leaves the measurement out "
                    "that needs it; leave out one of them."
                )
    return found


def _promise(
    runtime: int, job: PackedFolder | GGUFExport, calibration: Calibration | None,
    certification: Certification | None,
) -> dict[str, int]:  # fmt: skip
    """Bytes by name; ``runtime``: those of the process before. The sum bounds its peak.

    What packing takes is free again when a certificate is measured, and not taken yet while a
    model writes its text.
    """
    largest = max(map(block_bytes, job.conversion.targets))
    promise = {
        "runtime": runtime,
        "tokenizer and text": max(0, hardware.resident_bytes() - runtime),
        "libraries": LIBRARIES_BYTES,
    }
    fixed = sum(promise.values())
    promise |= {"packing and writing": BLOCK_COPIES * largest} | job.parts
    if calibration is not None:
        promise |= calibration.parts
        more = calibration.text.making_peak_bytes - sum(promise.values())
        promise |= {"the model while it writes text": more} if more > 0 else {}
    if certification is not None:
        more = fixed + certification.needed_bytes(job.conversion) - sum(promise.values())
        promise |= {"certificate, beyond packing": more} if more > 0 else {}
    return promise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock OUT against other processes; a killed one's lock is free. The file is deleted after.

    Raises OSError where no file can be.
    """
    from filelock import FileLock, Timeout

    if out.parent.exists() and not out.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{out.parent} is not a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(out.name + ".partial.lock"))
    Path(lock.lock_file).touch()  # some systems' refusals look to the library like another's lock
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"another process is writing {out}. Wait until it is done, or give another name."
        ) from None
    try:
        yield
    finally:
        if os.name == "posix":  # while locked: filelock notices that the file it opened is gone
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
