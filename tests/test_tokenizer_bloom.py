"""BLOOM's kind of tokenizer, trained small: in a folder and in a GGUF, ids are the library's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgelm.text.tokenizer import load_tokenizer

tokenizers = pytest.importorskip("tokenizers")

PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # BLOOM's own tokenizer.json
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def cases(assets: Path) -> list[str]:
    golden = json.loads((assets / "golden/tokens_llama3.json").read_text(encoding="utf-8"))
    return [case["text"] for case in golden["cases"]]


@pytest.fixture(scope="module")
def library(assets: Path) -> Any:
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (assets / "nano/heldout.txt").read_text(encoding="utf-8")[:100_000]
    trained.train_from_iterator([text, *cases(assets) * 3], trainer)
    return trained


def test_folder(assets: Path, tmp_path: Path, library: Any) -> None:
    library.save(str(tmp_path / "tokenizer.json"))
    config = json.dumps({"bos_token": "<s>", "eos_token": "</s>", "add_prefix_space": False})
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert not tokenizer.add_bos and tokenizer.eos_ids == {2}
    check(tokenizer, library, cases(assets))
    assert tokenizer.encode("fox</s>", parse_special=True)[-1] == 2


def test_gguf(assets: Path, library: Any) -> None:
    model = json.loads(library.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "bloom",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = load_tokenizer(Path("model.gguf"), metadata)
    check(tokenizer, library, cases(assets))
    other = load_tokenizer(Path("model.gguf"), metadata | {"tokenizer.ggml.pre": "gpt-2"})
    differ = [text for text in cases(assets) if other.encode(text) != tokenizer.encode(text)]
    print(f"{len(differ)} of {len(cases(assets))} texts differ under GPT-2's cut")
    assert differ  # else the cut would not matter to this test


def check(tokenizer: Any, library: Any, texts: list[str]) -> None:
    assert len(texts) >= 57
    for text in texts:
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        assert ids == library.encode(text).ids, text
        assert tokenizer.decode(ids) == library.decode(ids), text
        plain = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(plain) == text
    print(f"{len(texts)} texts")
