"""Valid files to start from, and how each format's facts are changed; see fuzz.py."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from copy import deepcopy
from math import prod
from pathlib import Path
from typing import Any

import gguf
import torch
from conftest import TINY_LLAMA, tiny_llama_weights
from gguf import GGMLQuantizationType as Type
from gguf_models import write_gguf_model
from safetensors.torch import save_file

ASSETS = Path(
    os.environ.get("EDGELM_ASSETS") or Path(__file__).resolve().parents[2] / "shared" / "assets"
)
SMALL = TINY_LLAMA | {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 40,
}  # fmt: skip
NUMBERS = (0, 1, 2, 3, 7, 8, 31, 33, 255, 256, 65535, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 40,
           1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 1 << 31, 1 << 70, 0.5, -0.0, 1e300, float("inf"),
    float("nan"), "", "x", "\udc80", "../../x", "/etc/passwd", "\x00", [], [1], ["a", None],
    "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", {}, {"a": {}}, [[[]]],
    "x" * 5000, list(range(2000)),
)  # fmt: skip


def _folder(place: Path, name: str, config: dict[str, Any] = SMALL) -> Path:
    folder = place / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(tiny_llama_weights(config), folder / "model.safetensors")
    return folder


def gguf_files(place: Path) -> list[Path]:
    """The three architectures as floats and blocks."""
    files = []
    folders = [place / name for name in ("gemma2", "bloom")]
    for folder in folders:
        shutil.copytree(ASSETS / "tiny-random" / folder.name, folder)
        (folder / "config.json").chmod(0o644)
    modern = SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    folders.append(_folder(place, "llama", modern))
    for folder in folders:
        for kind in (Type.F32, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q5_0, Type.Q5_1):
            files.append(write_gguf_model(folder, place / f"{folder.name}-{kind.name}.gguf", kind))
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128}
    folder = _folder(place, "wide", modern | wide)
    for kind in (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS, Type.IQ3_S):
        files.append(write_gguf_model(folder, place / f"{folder.name}-{kind.name}.gguf", kind))
    return files


def gguf_vocabularies(place: Path) -> list[Path]:
    """A small vocabulary of each kind, with a template."""
    bpe = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["<s>", "</s>", *"abdehlorw123", "he", "ll", "hell", "\u0120"],
        "tokenizer.ggml.merges": ["h e", "l l", "he ll"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * 16],
    }
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "he", "llo"]
    spm = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [float(-i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1],
    }
    files = []
    for name, keys in (("bpe", bpe), ("spm", spm)):
        writer = gguf.GGUFWriter(place / f"{name}.gguf", "llama")
        for key, value in keys.items():
            (writer.add_array if isinstance(value, list) else writer.add_string)(key, value)
        for key, number in (("bos", 0), ("eos", 1)):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
        writer.add_bool("tokenizer.ggml.add_bos_token", True)
        writer.add_string("tokenizer.chat_template", "{{ messages[0].content }}")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(place / f"{name}.gguf")
    return files


def safetensors_files(place: Path) -> list[Path]:
    single = _folder(place, "single") / "model.safetensors"
    half = _folder(place, "half")
    weights = {k: v.to(torch.bfloat16) for k, v in tiny_llama_weights(SMALL).items()}
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    return [single, half / "model.safetensors"]


def indexes(place: Path) -> list[Path]:
    folder = _folder(place, "sharded")
    weights = tiny_llama_weights(SMALL)
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({n: weights[n] for n in weights if shards[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}), "utf-8")
    return [index]


def configs(place: Path) -> list[Path]:
    """config.json of every family, weights beside it."""
    found = []
    for source in sorted((ASSETS / "tiny-random").iterdir()):
        folder = place / source.name
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((source / name).read_bytes())
        found.append(folder / "config.json")
    return found


def tokenizers(place: Path) -> list[Path]:
    """tokenizer.json, tokenizer.model, and the configs beside them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = place / "bpe"
    bpe.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(["hello world, this is a small text"] * 3, trainer)
    tokenizer.save(str(bpe / "tokenizer.json"))
    piece = place / "piece"
    piece.mkdir()
    (piece / "tokenizer.model").write_bytes(
        (ASSETS / "nano" / "llama" / "tokenizer.model").read_bytes()
    )
    decoder = {"2047": {"content": "<end>", "special": True, "lstrip": False}}
    settings = {
        "bos_token": "<s>", "eos_token": {"content": "</s>", "special": True},
        "add_bos_token": True, "added_tokens_decoder": decoder,
        "chat_template": [{"name": "default", "template": "{{ messages }}<end>"}],
    }  # fmt: skip
    files = [bpe / "tokenizer.json", piece / "tokenizer.model"]
    for folder in (bpe, piece):
        own = settings if folder == piece else {**settings, "added_tokens_decoder": {}}
        for name, content in (
            ("tokenizer_config.json", own),
            ("special_tokens_map.json", {"bos_token": "<s>", "pad_token": None}),
            ("generation_config.json", {"eos_token_id": [1, 2]}),
            ("config.json", {"eos_token_id": 1, "bos_token_id": 0}),
        ):
            (folder / name).write_text(json.dumps(content), "utf-8")
            files.append(folder / name)
    return files


def change_bytes(content: bytes, generator: random.Random) -> bytes:
    """Flip, overwrite, cut, insert or repeat a few bytes."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(data)) if data else 0
        match generator.randrange(5):
            case 0:
                data[at : at + 1] = bytes([generator.randrange(256)])
            case 1:
                del data[at:]
            case 2:
                data[at:at] = generator.randbytes(generator.randint(1, 16))
            case 3:
                del data[at : at + generator.randint(1, 16)]
            case 4:
                data[at:at] = data[at : at + generator.randint(1, 64)]
    return bytes(data)


def change_gguf(content: bytes, generator: random.Random) -> bytes:
    """Numbers of the header (counts, lengths, types, shapes, offsets), names, or plain bytes."""
    if generator.random() < 0.1:
        return change_bytes(content, generator)
    data = bytearray(content)
    fields = list(_gguf_fields(content))
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        at, size = generator.choice(fields)
        if size > 8:  # a name or text
            spot = at + generator.randrange(size)
            data[spot] = generator.choice((0, 46, 48, 97, 255, generator.randrange(256)))
            continue
        if generator.random() < 0.5:
            value = generator.choice(NUMBERS)
        else:
            value = int.from_bytes(data[at : at + size], "little") + generator.randint(-33, 33)
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data)


def _gguf_fields(content: bytes) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of each number and each text in a valid GGUF header."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    tensors, keys = struct.unpack_from("<QQ", content, 8)
    yield from ((4, 4), (8, 8), (16, 8))
    at = 24

    def text() -> Iterator[tuple[int, int]]:
        nonlocal at
        (length,) = struct.unpack_from("<Q", content, at)
        yield at, 8
        if length:
            yield at + 8, max(length, 9)
        at += 8 + length

    def values(kind: int, count: int) -> Iterator[tuple[int, int]]:
        nonlocal at
        for index in range(count):
            kept = index < 8  # the first entries of an array are enough
            if kind == 8:
                found = list(text())
                yield from found if kept else ()
            else:
                if kept:
                    yield at, sizes[kind]
                at += sizes[kind]

    for _ in range(keys):
        yield from text()
        (kind,) = struct.unpack_from("<I", content, at)
        yield at, 4
        at += 4
        if kind == 9:
            kind, count = struct.unpack_from("<IQ", content, at)
            yield from ((at, 4), (at + 4, 8))
            at += 12
            yield from values(kind, count)
        else:
            yield from values(kind, 1)
    for _ in range(tensors):
        yield from text()
        (dimensions,) = struct.unpack_from("<I", content, at)
        yield at, 4
        yield from ((at + 4 + 8 * i, 8) for i in range(dimensions))
        at += 4 + 8 * dimensions
        yield from ((at, 4), (at + 4, 8))
        at += 12


def change_safetensors(content: bytes, generator: random.Random) -> bytes:
    """The JSON header, its length, or plain bytes."""
    if generator.random() < 0.15:
        return change_bytes(content, generator)
    (length,) = struct.unpack_from("<Q", content)
    change = _change_entry if generator.random() < 0.5 else change_json
    header = change(content[8 : 8 + length], generator)
    told = len(header) if generator.random() < 0.9 else generator.choice(NUMBERS)
    return struct.pack("<Q", told) + header + content[8 + length :]


def _change_entry(header: bytes, generator: random.Random) -> bytes:
    """A header that still fits its data: dtypes of the same size, shapes of the same product."""
    tree = json.loads(header)
    for _ in range(generator.randint(1, 3)):
        name, other = generator.sample([key for key in tree if key != "__metadata__"], 2)
        entry = tree[name]
        match generator.randrange(5):
            case 0:
                same = {"F32": ("I32", "U32"), "BF16": ("F16", "I16", "U16")}
                entry["dtype"] = generator.choice(same.get(entry["dtype"], (entry["dtype"],)))
            case 1:
                entry["shape"] = entry["shape"][::-1]
            case 2:
                entry["shape"] = [prod(entry["shape"]), *[1] * generator.randint(0, 3)]
            case 3:
                tree[name], tree[other] = tree[other], entry
            case 4:
                tree[f"{name}{generator.choice(('2', '.bias', 'ü'))}"] = tree.pop(name)
    return json.dumps(tree).encode()


def change_tokenizer(content: bytes, generator: random.Random) -> bytes:
    changed = change_json if content.startswith(b"{") else change_bytes
    return changed(content, generator)


def change_json(content: bytes, generator: random.Random) -> bytes:
    """Values replaced, keys renamed, removed or doubled somewhere in the tree; or plain bytes."""
    if generator.random() < 0.1:
        return change_bytes(content, generator)
    tree = json.loads(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        spots = list(_spots(tree))
        if not spots:
            break
        holder, key = generator.choice(spots)
        match generator.randrange(5):
            case 0 if isinstance(holder, dict):
                holder[generator.choice(("", "x", "a.b.weight", f"{key}2"))] = holder.pop(key)
            case 1:
                del holder[key]
            case 2 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
                holder[key] += generator.choice((-1000, -33, -1, 1, 33, 1000))
            case 3:
                other, name = generator.choice(spots)
                if key in holder if isinstance(holder, dict) else True:
                    holder[key] = json.loads(json.dumps(other[name]))
            case _:
                holder[key] = deepcopy(generator.choice(VALUES))
    return json.dumps(tree, ensure_ascii=True).encode()


def _spots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield tree, key
            yield from _spots(value)
    elif isinstance(tree, list):
        for index, value in enumerate(tree[:20]):
            yield tree, index
            yield from _spots(value)
