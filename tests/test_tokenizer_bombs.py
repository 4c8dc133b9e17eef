"""tokenizer.json files that explode, and those with unknown parts that do not."""

from __future__ import annotations

import json
import resource  # of POSIX, as the limits measured here
import time
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import ModelFileError, UnsupportedModelError
from edgelm.text import tokenizers_vocabulary
from edgelm.text.tokenizer import Tokenizer, load_tokenizer
from edgelm.text.tokenizers_vocabulary import TokenizersVocabulary, library_errors

tokenizers = pytest.importorskip("tokenizers")

BASE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                "use_regex": True},
    "model": {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {"a": 0, "b": 1, "aa": 2}, "merges": [["a", "a"]],
    },
}  # fmt: skip


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(regex: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def all_of(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


TENFOLD = replace({"String": "a"}, "a" * 10)
TOKEN = {
    "id": 3, "content": "a" * 40, "single_word": False, "lstrip": False, "rstrip": False,
    "normalized": True, "special": False,
}  # fmt: skip
BYTES = {"type": "ByteLevel"}
BOMBS: dict[str, dict[str, Any]] = {
    "a chain of replaces": {"normalizer": all_of("normalizers", *[TENFOLD] * 12)},
    "a chain in chains": {
        "normalizer": all_of(
            "normalizers", *[all_of("normalizers", TENFOLD, TENFOLD, TENFOLD)] * 4
        )
    },
    "an added token that is normalized": {
        "normalizer": all_of("normalizers", *[TENFOLD] * 12), "added_tokens": [TOKEN],
    },
    "a text that is prepended": {
        "normalizer": all_of(
            "normalizers",
            *[{"type": "Prepend", "prepend": "a" * 200}, replace({"String": "a"}, "a" * 999)] * 4,
        )
    },
    "an expression that is replaced": {
        "normalizer": all_of("normalizers", *[replace({"Regex": "."}, "a" * 30)] * 9)
    },
    "bytes of bytes": {
        "normalizer": all_of("normalizers", replace({"String": "a"}, "é"), *[BYTES] * 40)
    },
    "backtracking": {"pre_tokenizer": split("(a+)+$")},
    "more backtracking": {"pre_tokenizer": split("(?:a|aa)+(?:a|aa)+c|(a*)*b*c")},
}  # fmt: skip


def write(folder: Path, change: dict[str, Any]) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(BASE | change), encoding="utf-8")
    return folder


@pytest.mark.parametrize("change", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_stopped(change: dict[str, Any], tmp_path: Path) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelFileError, match="do not trust them") as caught:
        load_tokenizer(write(tmp_path, change)).encode("a" * 40 + "b")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{time.process_time() - began:.2f} s here, {grown_kib} KiB: {caught.value}")
    assert grown_kib < 100 * 2**10 and time.process_time() - began < 1


def test_keys_that_are_hidden(tmp_path: Path) -> None:
    """The last of several counts, escapes or not; a token may be named as a part is."""
    bomb = json.dumps(all_of("normalizers", *[TENFOLD] * 12))
    plain = json.dumps(BASE)
    for text in (
        plain[:-1] + f', "normalizer": {bomb}}}',
        plain[:-1] + f', "norm\\u0061lizer": {bomb}}}',
        plain.replace('"normalizer": null', f'"normalizer" \n:\n{bomb}'),
    ):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(ModelFileError):
            load_tokenizer(tmp_path).encode("a" * 40)
    words = {"a": 0, "normalizer": 1, "pre_tokenizer": 2}
    write(tmp_path, {"model": BASE["model"] | {"vocab": words, "merges": []}})
    assert load_tokenizer(tmp_path).encode("aa") == [0, 0]


UNKNOWN: dict[str, dict[str, Any]] = {
    "an expression": {"pre_tokenizer": split("a{1,3}|b")},
    "an expression that is replaced": {"normalizer": replace({"Regex": "b+"}, "ab")},
    "a long text": {"normalizer": replace({"String": "b"}, "ab" * 20)},
    "both": {"normalizer": replace({"Regex": "b+"}, "ab"), "pre_tokenizer": split("a{1,3}|b")},
    "nothing": {},
}
TEXTS = ["", "a", "aaaab", "bab<s>aa", "aaaaaaa b"]


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_parts_give_the_librarys_ids(change: dict[str, Any], tmp_path: Path) -> None:
    processor = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}},
    }  # fmt: skip
    write(tmp_path, change | {"post_processor": processor})
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"3": {"content": "<s>", "special": True}}}), "utf-8"
    )
    ours = load_tokenizer(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_special_tokens(["<s>"])
    same(ours, library)
    saved = tmp_path / "saved"
    saved.mkdir()
    ours.save(saved)
    same(load_tokenizer(saved), library)


def same(ours: Tokenizer, library: Any) -> None:
    assert ours.bos_id == 3 and ours.add_bos
    for text in TEXTS:
        for parse in (True, False):
            library.encode_special_tokens = not parse
            ids = library.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, add_special=False, parse_special=parse) == ids
        assert ours.decode(ids) == library.decode(ids)


@pytest.mark.parametrize("name", ["llama3", "gemma2"])
def test_real_ones_run_in_this_process(
    assets: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers_vocabulary, "LimitedProcess", NeverAsked)
    tokenizer = load_tokenizer(assets / "tokenizers" / name)
    assert tokenizer.decode(tokenizer.encode("Hello wörld")) == "Hello wörld"


class NeverAsked:
    def __init__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_panics_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library in this process too; what else is no Exception goes on."""
    library = tokenizers.Tokenizer.from_str(json.dumps(BASE | {"pre_tokenizer": split("(a+)+$")}))
    vocabulary = TokenizersVocabulary(library)
    with pytest.raises(ModelFileError, match=r"cannot encode a text of 41 characters.*retry-limit"):
        vocabulary.encode("a" * 40 + "b", parse_special=False)
    assert vocabulary.encode("b", parse_special=False) == [1]
    with pytest.raises(KeyboardInterrupt), library_errors("x"):
        raise KeyboardInterrupt


def test_texts_without_ids_are_errors(tmp_path: Path) -> None:
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    tokenizer = load_tokenizer(write(tmp_path, {"model": words}))
    with pytest.raises(ModelFileError, match=r"cannot encode a text of 7 characters.*UNK"):
        tokenizer.encode("unknown")


def test_word_pieces_are_refused(tmp_path: Path) -> None:
    model = {
        "type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "#",
        "max_input_chars_per_word": 10**9,
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="WordPiece; supported are BPE"):
        load_tokenizer(write(tmp_path, {"model": model}))


def test_long_texts_have_longer_limits(tmp_path: Path) -> None:
    text = "ab" * 500_000
    tokenizer = load_tokenizer(write(tmp_path, UNKNOWN["an expression"]))
    assert tokenizer.encode(text) == [0, 1] * 500_000
