"""Tokens beside a tokenizer's own file: every place that adds them, and what belongs to them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer import BPE, SPM, from_metadata, write
from test_tokenizer_options import oracle

from edgelm.errors import ModelFileError
from edgelm.text.tokenizer import Tokenizer, load_tokenizer

KINDS = {
    "sentencepiece": ("llama2/tokenizer.model", 32000, "LlamaTokenizer", "<s>", "</s>"),
    "tokenizers": (
        "llama3/tokenizer.json", 128256, "PreTrainedTokenizerFast", "<|begin_of_text|>",
        "<|end_of_text|>",
    ),
}  # fmt: skip


def entry(text: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("special", "lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": text} | plain | flags


def tokenizer(assets: Path, folder: Path, kind: str, beside: dict[str, Any]) -> Tokenizer:
    """One whose file stands beside others: name -> content, {"+N": ...} counted from its end."""
    source, size, name, bos, eos = KINDS[kind]
    target = folder / Path(source).name
    if not target.exists():
        target.symlink_to((assets / "tokenizers" / source).resolve())
    config = {"tokenizer_class": name, "bos_token": bos, "eos_token": eos, "legacy": False}
    files = {"config.json": {"model_type": "llama"}} | beside
    files["tokenizer_config.json"] = config | beside.get("tokenizer_config.json", {})
    for file, content in files.items():
        text = re.sub(r'"\+(\d+)"(:)?', lambda m: f'"{size + int(m[1])}":' if m[2] else
                      str(size + int(m[1])), json.dumps(content))  # fmt: skip
        (folder / file).write_text(text, encoding="utf-8")
    return load_tokenizer(folder)


BESIDE: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "+0": entry("<|extra|>", special=True), "+1": entry("<|soft|>"),
            },
        },
    },
    "added_tokens.json": {
        "added_tokens.json": {"<|extra|>": "+0", "<|soft|>": "+1"},
        "tokenizer_config.json": {"pad_token": "<|extra|>"},
    },
    "extra_special_tokens": {
        "tokenizer_config.json": {"extra_special_tokens": ["<|extra|>", "<|soft|>"]},
    },
    "additional_special_tokens": {
        "tokenizer_config.json": {
            "additional_special_tokens": ["<|extra|>", "<|soft|>"],
        },
    },
    "special_tokens_map.json": {
        "special_tokens_map.json": {"extra_special_tokens": ["<|extra|>", "<|soft|>"]},
    },
    "by role": {
        "tokenizer_config.json": {
            "extra_special_tokens": {"image_token": "<|extra|>", "audio_token": "<|soft|>"},
        },
    },
}  # fmt: skip
SOFT = {"added_tokens_decoder", "added_tokens.json"}
"""Where the second token is no special one."""


@pytest.mark.parametrize("place", BESIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_every_place_are_read(
    assets: Path, tmp_path: Path, kind: str, place: str
) -> None:
    ours = tokenizer(assets, tmp_path, kind, BESIDE[place])
    size, soft = KINDS[kind][1], place in SOFT
    for text in ("x<|extra|>y<|soft|>z", "<|soft|><|extra|>", "a <|extra|> b"):
        ids = ours.encode(text, add_special=False, parse_special=True)
        if place != "by role" or kind == "tokenizers":  # of a .model transformers adds these twice
            theirs = oracle(tmp_path)(text, add_special_tokens=False).input_ids
            assert ids == theirs or (kind == "sentencepiece" and " " in text)
        assert {size, size + 1} & set(ids) == {size + i for i in (0, 1) if NAMES[i] in text}
        assert ours.decode(ids, skip_special=False) == text
    plain = ours.encode("x<|extra|>y<|soft|>z", add_special=False)
    assert size not in plain and (size + 1 in plain) == soft
    assert ours.is_special(size) and ours.is_special(size + 1) != soft
    assert ours.vocab_size == size + 2


NAMES = ("<|extra|>", "<|soft|>")


@pytest.mark.parametrize("flags", ["lstrip", "rstrip", "lstrip rstrip", "single_word", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_white_space_belongs_to_a_token_that_says_so(
    assets: Path, tmp_path: Path, kind: str, flags: str
) -> None:
    told = entry("<|user|>", special=True, **dict.fromkeys(flags.split(), True))
    config = {"added_tokens_decoder": {"+0": told}}
    ours = tokenizer(assets, tmp_path, kind, {"tokenizer_config.json": config})
    theirs = oracle(tmp_path)
    strips = "strip" in flags
    for text in ("word <|user|> next", "<|user|>\nHi", "a\n\n<|user|>b", "x<|user|>y", "<|user|>"):
        ids = ours.encode(text, add_special=False, parse_special=True)
        if kind == "tokenizers" or strips or " " not in text:
            assert ids == theirs(text, add_special_tokens=False).input_ids, text


def test_a_placeholder_is_renamed(assets: Path, tmp_path: Path) -> None:
    """Tokens that a vocabulary keeps free get a name; the old one is then plain text."""
    free = load_tokenizer(assets / "tokenizers/llama2").token_of(31999)
    config = {"added_tokens_decoder": {"31999": entry("<|tool|>", special=True)}}
    ours = tokenizer(assets, tmp_path, "sentencepiece", {"tokenizer_config.json": config})
    assert ours.encode("<|tool|>", add_special=False, parse_special=True) == [31999]
    assert ours.token_of(31999) == "<|tool|>" != free and ours.vocab_size == 32000
    assert ours.decode([31999], skip_special=False) == "<|tool|>"


@pytest.mark.parametrize("listed", [False, True])
def test_which_file_names_the_end(assets: Path, tmp_path: Path, listed: bool) -> None:
    """special_tokens_map.json stands above a tokenizer_config.json that lists no added tokens."""
    config: dict[str, Any] = {"eos_token": "<|eot_id|>"}
    if listed:
        config["added_tokens_decoder"] = {"128009": entry("<|eot_id|>", special=True)}
    beside = {
        "tokenizer_config.json": config,
        "special_tokens_map.json": {"eos_token": "<|end_header_id|>"},
    }
    ours = tokenizer(assets, tmp_path, "tokenizers", beside)
    assert ours.token_of(ours.eos_id) == oracle(tmp_path).eos_token
    assert ours.token_of(ours.eos_id) == ("<|eot_id|>" if listed else "<|end_header_id|>")


def test_a_named_token_that_is_missing_is_said(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"pad_token": "<|finetune_pad|>"}
    ours = tokenizer(assets, tmp_path, "tokenizers", {"tokenizer_config.json": config})
    assert ours.pad_id is None and "pad '<|finetune_pad|>'" in caplog.text


@pytest.mark.parametrize("flags", [{"add_eos_token": True}, {"add_bos_token": False}, {}])
@pytest.mark.parametrize("file", ["as it is", "without a post-processor"])
def test_a_post_processor_stands_above_flags(
    assets: Path, tmp_path: Path, flags: dict[str, bool], file: str
) -> None:
    """Of a tokenizer.json; what comes after a text is never put after a prompt."""
    if file != "as it is":
        data = json.loads((assets / "tokenizers/llama3/tokenizer.json").read_text("utf-8"))
        write(tmp_path / "tokenizer.json", data | {"post_processor": None})
    ours = tokenizer(assets, tmp_path, "tokenizers", {"tokenizer_config.json": flags})
    theirs = oracle(tmp_path)
    assert ours.encode("hi") == theirs("hi").input_ids == ours.encode_whole("hi")


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"added_tokens.json": {"<x>": "1"}}, "a token id for each text"),
        ({"added_tokens.json": {"<x>": -1}}, "a token id for each text"),
        ({"added_tokens.json": {"<x>": 1 << 40}}, "a token id for each text"),
        ({"tokenizer_config.json": {"extra_special_tokens": "x"}}, "a list of tokens"),
        ({"tokenizer_config.json": {"extra_special_tokens": [3]}}, "a token's text"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"3": entry("x") | {"lstrip": 1}}}},
            "true or false",
        ),
    ],
)
def test_wrong_types_are_named(
    assets: Path, tmp_path: Path, beside: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        tokenizer(assets, tmp_path, "sentencepiece", beside)


SPACES = [2, 3, 4]


@pytest.mark.parametrize("space", [" ", "▁"])
def test_user_defined_tokens_of_a_gguf_are_cut_out_of_the_text(space: str, tmp_path: Path) -> None:
    """As llama.cpp does it: Gemma's runs of spaces, which the converter writes as plain ones."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    types = [3, 3, 3, 2] + [6] * 256
    tokens += [space * count for count in SPACES]
    tokens += ["▁a", "▁b", "▁", "a", "b", "c", "d", ":", "\n"]
    types += [4] * len(SPACES) + [1] * 9
    ours = from_metadata(
        SPM, tokens=tokens, token_type=types, scores=[0.0] * 263 + [-float(i) for i in range(9)],
        bos_token_id=2, eos_token_id=1, add_space_prefix=False, add_bos_token=True,
    )  # fmt: skip
    expected = {  # llama.cpp's ids (xllamacpp 2026.10, /tokenize)
        "a  b": [2, 266, 260, 267],
        "a   b    c": [2, 266, 261, 267, 262, 268],
        "  a": [2, 260, 266],
        "d  ": [2, 269, 260],
        "a:\n    b": [2, 266, 270, 271, 262, 267],
    }
    for text, ids in expected.items():
        assert ours.encode(text) == ids and ours.decode(ids) == text
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert all(again.encode(text) == ids for text, ids in expected.items())


def llama_metadata(assets: Path) -> dict[str, Any]:
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor(model_file=str(assets / "tokenizers/llama2/tokenizer.model"))
    ids = range(library.get_piece_size())
    kinds = ((library.is_unknown, 2), (library.is_control, 3), (library.is_byte, 6))
    return SPM | {
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [library.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [
            next((kind for check, kind in kinds if check(i)), 1) for i in ids
        ],
    }


def test_odd_vocabularies_that_llama_cpp_reads(
    assets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ids out of range, an empty token, a byte under its character, no types: the same ids."""
    sound = llama_metadata(assets)
    texts = ("Hello world", "é\t🦙 x\n")
    expected = [from_metadata(sound).encode(text) for text in texts]
    assert expected[0] == [1, 15043, 3186]
    tokens, scores = sound["tokenizer.ggml.tokens"], sound["tokenizer.ggml.scores"]
    types = sound["tokenizer.ggml.token_type"]
    tab = tokens.index("<0x09>")
    odd: dict[str, dict[str, Any]] = {
        "padding": {"padding_token_id": 2**32 - 1},
        "eot": {"eot_token_id": 32005},
        "empty": {"tokens": [*tokens, "", ""], "scores": [*scores, 0.0, 0.0],
                  "token_type": [*types, 4, 1]},
        "tab": {"tokens": [*tokens[:tab], "\t", *tokens[tab + 1 :]],
                "token_type": [*types[:tab], 1, *types[tab + 1 :]]},
        "types": {"token_type": None},
    }  # fmt: skip
    for name, changes in odd.items():
        ours = from_metadata(sound, **changes)
        assert [ours.encode(text) for text in texts] == expected, name
    for said in ("padding_token_id is 4294967295", "eot_token_id is 32005", "token_type"):
        assert said in caplog.text
    assert from_metadata(sound, scores=None).encode("Hello")[0] == 1
    assert "tokenizer.ggml.scores" in caplog.text


def test_bytes_alone_without_types() -> None:
    """Of byte-level BPE: special tokens are known by their ids."""
    ours = from_metadata(BPE, token_type=None)
    assert ours.encode("ab 33\n") == [4, 5, 8, 7] and ours.is_special(0) and ours.is_special(1)
