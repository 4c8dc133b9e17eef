"""Fuzzing's corpora of folders beyond plain safetensors: ours, others', pickled, Flax."""

from __future__ import annotations

import io
import json
import pickletools
import random
import shutil
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from conftest import tiny_llama_weights
from fuzz_corpus import ASSETS, NUMBERS, SMALL, change_bytes, change_json, change_safetensors
from packed_folders import awq, gptq
from safetensors.torch import save_file
from test_other_files import flax_folder
from torchao_folders import TORCHAO

import edgelm

WIDE = SMALL | {"hidden_size": 64, "head_dim": 32, "intermediate_size": 64}
RECIPES = {
    "zint": "int4-g32-zint", "zfloat": "int4-g32-zfloat", "int8": "int8",
    "coded": "int5-g32-zfloat-coded", "iq4": "iq4-g32-coded", "int6": "int6-g16-zint-coded",
    "nf4": {"default": "nf4", "overrides": {"embed": "none", "head": "none"}},
}  # fmt: skip


def packed_folders(place: Path) -> list[Path]:
    """Folders of our own: the manifest, the config and the weights of each are changed."""
    source = place / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(WIDE), "utf-8")
    save_file(tiny_llama_weights(WIDE), source / "model.safetensors")
    for name, recipe in RECIPES.items():
        edgelm.quantize(source, place / name, quant=recipe)
    shutil.copytree(Path(__file__).parent / "data" / "packed-v1", place / "v1")
    kept = ("edgelm.json", "config.json", "model.safetensors")
    return [place / name / file for name in (*RECIPES, "v1") for file in kept]


def quantized_folders(place: Path) -> list[Path]:
    """Layouts of others; ours without its manifest is compressed-tensors' or bitsandbytes'."""
    files = [path for path in packed_folders(place) if path.parent.name in ("zint", "nf4")]
    for path in files:
        if path.name == "edgelm.json":
            path.unlink()
    folders = {path.parent for path in files}
    for variant in (gptq(4, 32, False), gptq(8, -1, True), awq(32), *TORCHAO[::2]):
        (place / variant.name).mkdir()
        written, _ = variant.write_model(WIDE, tiny_llama_weights(WIDE), place / variant.name)
        folders.add(written)
    names = ("config.json", "model.safetensors")
    return [folder / name for folder in sorted(folders) for name in names]


def pickles(place: Path) -> list[Path]:
    """pytorch_model.bin in two float types."""
    files = []
    for dtype in (torch.float32, torch.bfloat16):
        folder = place / str(dtype)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(SMALL), "utf-8")
        weights = {name: tensor.to(dtype) for name, tensor in tiny_llama_weights(SMALL).items()}
        torch.save(weights, folder / "pytorch_model.bin")
        files.append(folder / "pytorch_model.bin")
    return files


def flax_files(place: Path) -> list[Path]:
    """BLOOM as Flax keeps it, its embedding in pieces."""
    shutil.copytree(ASSETS / "tiny-random" / "bloom", place / "safe")
    return [flax_folder(place / "safe", place / "flax") / "flax_model.msgpack"]


def change_folder(content: bytes, generator: random.Random) -> bytes:
    """JSON as JSON, the other files as safetensors."""
    changed = change_json if content.startswith(b"{") else change_safetensors
    return changed(content, generator)


def change_pickle(content: bytes, generator: random.Random) -> bytes:
    """Arguments of the pickle's operations, its operations, or bytes of the archive around it."""
    if generator.random() < 0.2:
        return change_bytes(content, generator)
    if generator.random() < 0.1:  # the directory at the end says where everything is
        return content[:-2000] + change_bytes(content[-2000:], generator)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                data = _change_operations(data, generator)
            elif generator.random() < 0.02:
                data = change_bytes(data, generator)
            if generator.random() > 0.002:
                new.writestr(entry.filename, data)
    return out.getvalue()


def _change_operations(content: bytes, generator: random.Random) -> bytes:
    data = bytearray(content)
    spots = [
        (at, end)
        for (op, _, at), (_, _, end) in pairwise(pickletools.genops(content))
        if op.name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "GLOBAL", "BINGET")
    ]
    for _ in range(generator.choice((1, 1, 2, 4))):
        at, end = generator.choice(spots)
        spot = generator.randrange(at + 1, end) if generator.random() < 0.9 else at
        data[spot] = generator.choice((0, 1, 2, 48, 97, 127, 128, 255, data[spot] ^ 1))
    return bytes(data)


def change_msgpack(content: bytes, generator: random.Random) -> bytes:
    """Lengths, kinds, sizes and names of a tree of arrays, or plain bytes."""
    if generator.random() < 0.1:
        return change_bytes(content, generator)
    data = bytearray(content)
    fields = list(_msgpack_fields(content, 0, len(content)))
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        at, size = generator.choice(fields)
        if generator.random() < 0.5:
            value = generator.choice(NUMBERS)
        else:
            value = int.from_bytes(data[at : at + size], "big") + generator.randint(-33, 33)
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "big")
    return bytes(data)


# First byte -> (bytes of its length or number, what follows: nothing, text, an extension's content)
_HEADS = {
    0xC4: (1, "bytes"), 0xC5: (2, "bytes"), 0xC6: (4, "bytes"), 0xC7: (1, "extension"),
    0xC8: (2, "extension"), 0xC9: (4, "extension"), 0xCC: (1, ""), 0xCD: (2, ""), 0xCE: (4, ""),
    0xD9: (1, "bytes"), 0xDA: (2, "bytes"), 0xDE: (2, ""), 0xDF: (4, ""),
}  # fmt: skip


def _msgpack_fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of each kind, length and number, and of a byte in each text."""
    while at < end:
        kind = content[at]
        yield at, 1
        size, follows = _HEADS.get(kind, (0, "bytes" if 0xA0 <= kind < 0xC0 else ""))
        if size:
            yield at + 1, size
        length = int.from_bytes(content[at + 1 : at + 1 + size], "big") if size else kind - 0xA0
        at += 1 + size
        if follows == "extension":
            yield at, 1
            yield from _msgpack_fields(content, at + 1, at + 1 + length)
            at += 1 + length
        elif follows:
            if 0 < length < 64:
                yield at + length // 2, 1
            at += length
