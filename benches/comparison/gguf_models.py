"""GGUF files of any shape and type, of random weights, for the engines that read them.

llama.cpp itself decides which tensor gets which type: its quantizer runs over a file of zeros,
which takes it no search, and every block of the result is then filled with random numbers.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from edgelm.checkpoint.gguf_families import ROPE_FACTORS
from edgelm.checkpoint.gguf_header import StoredTensor, read_header
from edgelm.checkpoint.gguf_writer import Entry, create_gguf
from edgelm.errors import UnsupportedModelError
from edgelm.hub.references import resolve
from edgelm.models.model_files import ModelFiles
from edgelm.quantization.gguf_export import GGUFExport, plan_gguf
from edgelm.reports.benchmark import random_model

from .missing import Missing

DEMO, DEMO_TYPE = "demo", "Q4_1"
STD = 0.02  # of the random weights, as models are initialised
CHUNK_BLOCKS = 1 << 17

# Where a block has its float16 scales, and what they must be for weights of standard deviation 1.
SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 1 / 4.6),),
    "Q4_1": ((0, 1 / 4.6), (2, -7.5 / 4.6)),
    "Q5_0": ((0, 1 / 9.2),),
    "Q5_1": ((0, 1 / 9.2), (2, -15.5 / 9.2)),
    "Q8_0": ((0, 1 / 74),),
    "Q4_K": ((0, 1 / (32 * 4.6)), (2, 7.5 / (32 * 4.6))),
    "Q5_K": ((0, 1 / (32 * 9.2)), (2, 15.5 / (32 * 9.2))),
    "Q6_K": ((208, 1 / (74 * 18.5)),),
    "IQ4_XS": ((0, 1 / (18.5 * 70)),),
}


def gguf_file(folder: Path, shape: str, kind: str, threads: int) -> Path:
    """The file of a shape whose matrices are of `kind` (Q4_0, Q4_K_M, F16, ...), made if absent.

    The demo is the real one, others types of it are what llama.cpp makes of it.

    Raises Missing where nothing installed here can write it.
    """
    if shape == DEMO and kind == DEMO_TYPE:
        return resolve(DEMO)
    path = folder / f"{shape}-{kind}.gguf"
    if path.exists():
        return path
    partial = path.with_suffix(".partial")
    if shape == DEMO:
        quantize(resolve(DEMO), partial, kind, threads)
    else:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            zeros = Path(scratch) / "zeros.gguf"
            write_zeros(zeros, shape)
            if kind == "F16":
                zeros.rename(partial)
            else:
                quantize(zeros, partial, kind, threads)
        fill(partial)
    partial.rename(path)
    return path


def write_zeros(path: Path, shape: str | dict[str, Any]) -> None:
    """A model of a shape (a name, or a config.json) in F16 with a vocabulary, its tensors zero."""
    files = random_model(shape, "none")
    config_file = path.with_suffix(".json")
    config_file.write_text("{}", encoding="utf-8")
    files.checkpoint.path = config_file  # where the exporter looks for what else a model has
    files.checkpoint.metadata.update(vocabulary(files))
    try:
        export = GGUFExport(files, path, plan_gguf(files, "none", "rtn"), "rtn")
    except UnsupportedModelError as error:
        raise Missing(f"there is no such GGUF file: {error}") from error
    entries = [
        Entry(e.name, "F16" if len(e.shape) == 2 else "F32", e.shape) for e in export.entries
    ]
    if export.divisors is not None:
        entries.append(Entry(ROPE_FACTORS, "F32", tuple(export.divisors.shape)))
    metadata = export.metadata | {"general.file_type": 1}
    create_gguf(path, files.config.model_type, metadata, entries)


def vocabulary(files: ModelFiles) -> dict[str, Any]:
    """Names for all ids: bytes as byte-level BPE writes them, a merge, and <id> for the rest."""
    size = files.config.vocab_size
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    codes = [b if b in printable else 256 + i for i, b in enumerate(range(256))]
    tokens = [*map(chr, codes), "ab", *(f"<{i}>" for i in range(257, size))]
    config = files.checkpoint.config
    ends = {f"tokenizer.ggml.{k}_token_id": config[f"{k}_token_id"] for k in ("bos", "eos")}
    kinds = [3 if i in ends.values() else 1 for i in range(size)]
    return ends | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens[:size],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["a b"],
    }


def quantize(source: Path, out: Path, kind: str, threads: int) -> None:
    """What llama.cpp's own quantizer makes of a file."""
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise Missing(f"llama-cpp-python, which writes {kind} files: {error}") from error
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.nthread = threads
    settings.allow_requantize = True
    failed = llama_cpp.llama_model_quantize(bytes(source), bytes(out), settings)
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), None)  # `quiet` is about to go
    if failed:
        out.unlink(missing_ok=True)
        raise Missing(f"llama.cpp did not write {kind} from {source.name}")


def fill(path: Path) -> None:
    """Random weights in place: matrices of standard deviation STD, vectors of ones, biases zero."""
    places = read_header(path).tensors.values()
    with path.open("r+b", buffering=0) as file:
        for place in places:
            file.seek(place.offset)
            if place.type.name == "F32":
                value = 0.0 if place.name.endswith(".bias") else 1.0
                file.write(np.full(place.nbytes // 4, value, np.float32).tobytes())
                continue
            generator = np.random.default_rng(crc32(place.name.encode()))
            left = place.nbytes // place.type.block_bytes
            while left:
                count = min(left, CHUNK_BLOCKS)
                file.write(random_blocks(place, count, generator).tobytes())
                left -= count


def random_blocks(
    place: StoredTensor, count: int, generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """`count` blocks of a tensor's type, uint8 [count, bytes of a block]: codes of any value under
    scales of a sane size."""
    kind = place.type.name
    if kind == "F16":
        numbers = generator.standard_normal(count, np.float32) * STD
        return numbers.astype(np.float16).view(np.uint8).reshape(count, 2)
    if kind not in SCALES:
        raise Missing(f"random blocks of {kind} (tensor {place.name})")
    blocks = np.frombuffer(generator.bytes(count * place.type.block_bytes), np.uint8)
    blocks = blocks.reshape(count, -1).copy()
    for at, value in SCALES[kind]:
        blocks[:, at : at + 2] = np.array([value * STD], np.float16).view(np.uint8)
    return blocks


@cache
def gguf_sizes(path: Path) -> dict[str, Any]:
    """Bits per weight, and the bytes that a decode step reads: all but a mere lookup table."""
    tensors = read_header(path).tensors
    nbytes = sum(t.nbytes for t in tensors.values())
    numbers = sum(int(np.prod(t.shape)) for t in tensors.values())
    table = tensors["token_embd.weight"].nbytes if "output.weight" in tensors else 0
    return {
        "bits_per_weight": round(8 * nbytes / numbers, 3),
        "weight_bytes": nbytes,
        "bytes_per_token": nbytes - table,
    }
