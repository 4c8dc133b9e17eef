"""What tokenizer_config.json asks for, honoured as transformers does; transformers is the oracle.

Texts here hold no space at the beginning, behind a special token or after another space: there
transformers 5 cuts otherwise than sentencepiece, and ours are sentencepiece's ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import ModelFileError
from edgelm.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = ["Hello", "Hello world", "<s>Hello", "a</s>b c</s>d", "x y , it 's fine .", "é你好\n"]
NAMED = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
SCHEMES: list[dict[str, Any]] = [
    {"legacy": True},
    {"legacy": False},
    {"legacy": True, "add_prefix_space": True},
    {"legacy": False, "add_prefix_space": True},
    {"legacy": False, "add_prefix_space": False},
    {"legacy": True, "add_prefix_space": False},
]


def llama(assets: Path, folder: Path, **told: Any) -> Tokenizer:
    """Llama 2's tokenizer.model under a tokenizer_config.json that says this."""
    target = folder / "tokenizer.model"
    target.write_bytes((assets / "tokenizers/llama2/tokenizer.model").read_bytes())
    config = json.dumps({**NAMED, "unk_token": "<unk>", **told})
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return load_tokenizer(folder)


def oracle(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("told", SCHEMES, ids=str)
def test_spaces_before_stretches(assets: Path, tmp_path: Path, told: dict[str, Any]) -> None:
    ours, theirs = llama(assets, tmp_path, **told), oracle(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text, add_special=False, parse_special=True)
        assert ids == theirs(text, add_special_tokens=False).input_ids, text
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == expected, text
    assert ours.decode(ours.encode("Hello world")) == "Hello world"  # no space before a first word


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_what_is_put_around_a_text(assets: Path, tmp_path: Path, bos: bool, eos: bool) -> None:
    ours = llama(assets, tmp_path, add_bos_token=bos, add_eos_token=eos, legacy=False)
    theirs = oracle(tmp_path)
    for text in ("Hello", "Hello world", ""):
        assert ours.encode_whole(text) == theirs(text).input_ids
        assert ours.encode(text) == theirs(text).input_ids[: -1 if eos else None]
    assert ours.encode("<s>Hello", parse_special=True).count(1) == 1  # transformers puts a second


def test_batches_decode_as_lists(assets: Path, tmp_path: Path) -> None:
    ours, theirs = llama(assets, tmp_path, legacy=False), oracle(tmp_path)
    rows = [ours.encode(text) for text in ("Hello world", "a", "")]
    assert ours.decode(rows) == theirs.decode(rows, skip_special_tokens=True)
    assert ours.decode(rows) == ["Hello world", "a", ""]
    assert ours.decode(rows, skip_special=False) == theirs.decode(rows)
    assert ours.decode(tuple(map(tuple, rows))) == ours.decode(rows)
    assert ours.decode([]) == "" and ours.decode([[]]) == [""]


@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_spaces_before_punctuation_stay(assets: Path, tmp_path: Path, family: str) -> None:
    """``clean_up_tokenization_spaces`` is WordPiece's; Llama 3's own files ask for it in vain."""
    if family == "llama2":
        ours, theirs = llama(assets, tmp_path, clean_up_tokenization_spaces=True), oracle(tmp_path)
    else:
        folder = assets / "tokenizers/llama3"
        ours, theirs = load_tokenizer(folder), oracle(folder)
    assert theirs.clean_up_tokenization_spaces
    text = "It 's fine . Is n't it , all ?"
    ids = ours.encode(text, add_special=False)
    assert ours.decode(ids) == theirs.decode(ids) == text


@pytest.mark.parametrize("key", ["legacy", "add_prefix_space"])
@pytest.mark.parametrize("wrong", ["no", 0, []])
def test_wrong_types_are_named(assets: Path, tmp_path: Path, key: str, wrong: Any) -> None:
    with pytest.raises(ModelFileError, match=f"{key} is .*true or false"):
        llama(assets, tmp_path, **{key: wrong})
    assert llama(assets, tmp_path, **{key: None}).encode("Hello") == [1, 15043]
