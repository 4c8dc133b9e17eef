"""Fuzzing beyond the files of weights: settings of generation, templates, kept layouts,
conversations, schemas, and folders of links; see fuzz.py."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_corpus import ASSETS, change_bytes

import edgelm
from edgelm.layerstore import layer_folder
from edgelm.models.model_files import ModelFiles
from edgelm.text.chat_template import render

NANO = ASSETS / "nano" / "llama"
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "2 + 2 = ?"},
]
GENERATION = {
    "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0, "do_sample": True,
    "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9,
    "repetition_penalty": 1.1, "max_new_tokens": 3, "max_length": 20, "min_new_tokens": 1,
    "min_length": 2, "stop_strings": ["x", "yz"], "bad_words_ids": [[5], [6, 7]],
    "no_repeat_ngram_size": 3, "suppress_tokens": [9], "begin_suppress_tokens": [10],
    "sequence_bias": [[[11], 1.5]], "num_beams": 1, "length_penalty": 1.0,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": [2, 1.1],
    "transformers_version": "4.50.0", "unknown": {"a": [1]},
}  # fmt: skip
SCHEMAS: tuple[Any, ...] = (
    True,
    {"type": "string", "minLength": 1, "maxLength": 8, "pattern": "[a-z]+"},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 3},
    {
        "type": "object", "required": ["name"], "additionalProperties": False,
        "properties": {"name": {"enum": ["a", "b", 1]}, "next": {"$ref": "#/$defs/node"}},
        "$defs": {"node": {"anyOf": [{"type": "null"}, {"const": 3}, {"type": "number"}]}},
    },
)  # fmt: skip
ROLES = ("config.json", "model.safetensors", "tokenizer.model", "generation_config.json")


@cache
def model() -> edgelm.LanguageModel:
    """One open model for all cases."""
    return edgelm.load(NANO, context=48, threads=1)


def generation_configs(place: Path) -> list[Path]:
    folder = Path(shutil.copytree(NANO, place / "model"))
    path = folder / "generation_config.json"
    path.unlink()
    path.write_text(json.dumps(GENERATION), "utf-8")
    return [path]


def use_generation_config(path: Path) -> None:
    with edgelm.load(path.parent, context=32, threads=1, quant="none") as lm:
        lm.generate("Once", max_new_tokens=2)


def templates(place: Path) -> list[Path]:
    files = []
    for source in sorted((ASSETS / "templates").glob("*.jinja")):
        files.append(Path(shutil.copy(source, place / source.name)))
    return files


def use_template(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", errors="replace")
    render(text, MESSAGES, bos="<s>", eos="</s>")


def change_template(content: bytes, generator: random.Random) -> bytes:
    """Words, operators and numbers exchanged, dropped or doubled; or plain bytes."""
    if generator.random() < 0.1:
        return change_bytes(content, generator)
    parts = re.findall(r"\w+|\s+|[^\w\s]", content.decode("utf-8"))
    extra = ("*", "**", "~", "%", "|", "range", "10000000", "99999999999", "loop", "namespace",
             "messages", "'%0999999d'", "{%", "%}", "{{", "}}", "__class__", "center", "join",
             "replace", "format", "recursive", "macro", "[", "]", "(", ")")  # fmt: skip
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(len(parts))
        match generator.randrange(4):
            case 0:
                parts[at] = generator.choice(extra)
            case 1:
                parts[at] = generator.choice(parts)
            case 2:
                del parts[at]
            case 3:
                parts[at:at] = parts[max(0, at - generator.randint(1, 12)) : at]
        parts = parts or [""]
    return "".join(parts).encode()


def layouts(place: Path) -> list[Path]:
    """What a first start keeps of laid-out weights, in a cache of its own."""
    os.environ["EDGELM_CACHE"] = str(place / "cache")
    layer_folder.PAYS_BYTES, layer_folder._FREE_SHARE = 0, 10**6
    _answer()
    return sorted((place / "cache").rglob("*.layer"))


def _answer() -> tuple[int, ...]:
    with edgelm.load(NANO, quant="int4", context=32, threads=1) as lm:
        return lm.generate("Once upon", max_new_tokens=3, temperature=0.0).token_ids


@cache
def _right_answer() -> tuple[int, ...]:
    return _answer()


def use_layouts(path: Path) -> None:
    """The damaged file is noticed: the answer stays."""
    if _answer() != _right_answer():
        raise AssertionError("another answer")


def change_layout(content: bytes, generator: random.Random) -> bytes:
    """Its description at the end or the beginning, zeros over a stretch, or plain bytes."""
    data, kind = bytearray(content), generator.randrange(4)
    at = generator.randrange(len(data))
    if kind == 0:
        at = generator.choice(
            (generator.randrange(min(4096, len(data))), -generator.randint(1, 64))
        )
        data[at] ^= 1 << generator.randrange(8)
        return bytes(data)
    if kind == 1:
        size = min(generator.randint(1, 1 << 16), len(data) - at)
        data[at : at + size] = bytes(size)
        return bytes(data)
    return change_bytes(content, generator)


def conversations(place: Path) -> list[Path]:
    model().generate("It is a truth universally", max_new_tokens=4)
    model().save_conversation(place / "kept.conversation", MESSAGES)
    return [place / "kept.conversation"]


def use_conversation(path: Path) -> None:
    model().restore_conversation(path)


def schemas(place: Path) -> list[Path]:
    files = []
    for index, schema in enumerate(SCHEMAS):
        files.append(place / f"{index}.json")
        files[-1].write_text(json.dumps(schema), "utf-8")
    return files


def use_schema(path: Path) -> None:
    try:
        schema = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    model().generate("A", schema=schema, max_new_tokens=2, temperature=0.0)


def links(place: Path) -> list[Path]:
    """A JSON file that says what each file of a folder is; ``use_links`` makes the folder."""
    path = place / "links.json"
    path.write_text(json.dumps(dict.fromkeys(ROLES, "file")), "utf-8")
    return [path]


def change_links(content: bytes, generator: random.Random) -> bytes:
    told = json.loads(content)
    kinds = ("link", "link to a link", "dangling", "loop", "folder", "fifo", "null", "absent",
             "empty")  # fmt: skip
    for _ in range(generator.randint(1, 3)):
        told[generator.choice((*ROLES, "notes.txt", "model.safetensors.index.json"))] = (
            generator.choice(kinds)
        )
    return json.dumps(told).encode()


def use_links(path: Path) -> None:
    folder = path.parent / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, kind in json.loads(path.read_bytes()).items():
        _place(folder / name, NANO / name, kind)
    files = ModelFiles.open(folder)
    edgelm.plan(files, context=16)
    files.checkpoint.read(next(iter(files.checkpoint.names())))


def _place(path: Path, source: Path, kind: str) -> None:
    match kind:
        case "file" if source.exists():
            shutil.copy(source, path)
        case "link":
            path.symlink_to(source)
        case "link to a link":
            path.with_name(f"{path.name}.1").symlink_to(source)
            path.symlink_to(path.with_name(f"{path.name}.1"))
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "null":
            path.symlink_to("/dev/null")
        case "empty":
            path.touch()
