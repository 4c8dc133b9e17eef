"""Tokenizers: ids equal to the reference libraries', text that streams in whole characters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgelm.checkpoint.opening import open_checkpoint
from edgelm.errors import ModelFileError, UnsupportedModelError, UsageError
from edgelm.text import chat_template
from edgelm.text.gguf_tokenizer import PRE_TOKENIZERS
from edgelm.text.tokenizer import Tokenizer, load_tokenizer

Load = Callable[[str], Tokenizer]
FAMILIES = ["llama2", "llama3", "gemma2", "helium"]
NANO = ["bloom", "gemma2", "helium", "llama", "persimmon"]
VOCABULARIES = {"gpt-2": None, "llama-spm": None, "llama-bpe": "tokenizers/llama3"}
EMOJI = "𒀀 🦙 a 👩‍👩‍👧 ½ é 你好\n\n  x"


@pytest.fixture(scope="module")
def load(assets: Path) -> Load:
    """A tokenizer by its place in the assets, read once for all tests here."""
    read: dict[str, Tokenizer] = {}

    def load_once(name: str) -> Tokenizer:
        if name not in read:
            path = assets / name
            metadata = open_checkpoint(path).metadata if path.suffix == ".gguf" else None
            read[name] = load_tokenizer(path, metadata)
        return read[name]

    return load_once


def vocabulary_cases(assets: Path, name: str) -> list[tuple[str, list[int]]]:
    stem = assets / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{stem}.out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


def vocabulary_path(name: str) -> str:
    return VOCABULARIES[name] or f"vocab/ggml-vocab-{name}.gguf"


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_ids_and_back(assets: Path, load: Load, name: str) -> None:
    cases = json.loads((assets / f"golden/tokens_{name}.json").read_text("utf-8"))["cases"]
    tokenizer = load(f"tokenizers/{name}")
    for case in cases:
        assert tokenizer.encode(case["text"], add_special=False) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    print(f"{name}: {len(cases)} texts")


@pytest.mark.parametrize("name", ["test_model", "test_ja_model"])
def test_golden_ids_of_plain_sentencepiece_files(assets: Path, tmp_path: Path, name: str) -> None:
    source = assets / f"tokenizers/sentencepiece-test/{name}.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    for case in json.loads((assets / f"golden/tokens_sp_{name}.json").read_text("utf-8"))["cases"]:
        assert tokenizer.encode(case["text"], add_special=False) == case["ids"], case["text"]


@pytest.mark.parametrize(
    ("key", "name"), [("gemma (with bos 2)", "gemma2"), ("llama (with bos 1)", "llama2")]
)
def test_published_vectors(assets: Path, load: Load, key: str, name: str) -> None:
    published = json.loads((assets / "golden/hf_published_vectors.json").read_text("utf-8"))[key]
    tokenizer = load(f"tokenizers/{name}")
    assert tokenizer.add_bos
    for text, ids in published.items():
        assert tokenizer.encode(text, parse_special=True) == ids, text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabulary_files(assets: Path, load: Load, name: str) -> None:
    tokenizer = load(vocabulary_path(name))
    for text, ids in vocabulary_cases(assets, name):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", NANO)
def test_nano_tokenizers(assets: Path, load: Load, name: str) -> None:
    tokenizer = load(f"nano/{name}")
    text = (assets / "nano/heldout.txt").read_text(encoding="utf-8")[:2000]
    ids = tokenizer.encode(text)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, {2}, 3)
    assert ids[0] == 1 and max(ids) < tokenizer.vocab_size == 2048
    assert tokenizer.decode(ids).split() == text.split()


# One tokenizer of each kind: byte-level BPE, pieces in tokenizer.json, sentencepiece, GGUF's both.
KINDS = ["tokenizers/llama3", "tokenizers/gemma2", "tokenizers/llama2", "tokenizers/helium"]
KINDS += ["vocab/ggml-vocab-gpt-2.gguf", "vocab/ggml-vocab-llama-spm.gguf"]


@pytest.mark.parametrize("name", KINDS)
def test_stream_gives_whole_characters(load: Load, name: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode(EMOJI)
    stream = tokenizer.stream()
    parts = [stream.push(token_id) for token_id in ids]
    print(parts)
    assert "".join(parts) == EMOJI and stream.finish() == ""
    assert "" in parts  # the cuneiform sign takes several tokens here
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_character_is_replaced_once(load: Load, name: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode("a𒀀", add_special=False)
    assert tokenizer.decode(ids[:-1]) == "a\ufffd"


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_stream_equals_decode(load: Load, name: str, data: st.DataObject) -> None:
    tokenizer = load(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=30))
    skip = data.draw(st.booleans())
    continues = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip, continues=continues)
    text = "".join(stream.push(token_id) for token_id in ids) + stream.finish()
    assert text == tokenizer.decode(ids, skip_special=skip, continues=continues)


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(load: Load, name: str, text: str) -> None:
    if name == "tokenizers/helium":  # its model normalizes (NFKC-like), so only twice is stable
        text = load(name).decode(load(name).encode(text))
    text = text.replace("\u2581", "_")  # sentencepiece's sign for a space comes back as a space
    tokenizer = load(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["llama2", "helium"])
def test_decode_equals_sentencepiece(assets: Path, load: Load, name: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = str(assets / f"tokenizers/{name}/tokenizer.model")
    library = sentencepiece.SentencePieceProcessor(model_file=model)
    tokenizer, draw = load(f"tokenizers/{name}"), random.Random(0)
    pieces = [i for i in range(tokenizer.vocab_size) if not library.is_byte(i)]
    for _ in range(300):
        ids = draw.choices(pieces, k=draw.randrange(1, 12))
        assert tokenizer.decode(ids) == library.decode(ids)


@pytest.mark.parametrize("name", ["llama3", "gemma2"])
def test_decode_equals_tokenizers(assets: Path, load: Load, name: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_file(str(assets / f"tokenizers/{name}/tokenizer.json"))
    tokenizer, draw = load(f"tokenizers/{name}"), random.Random(0)
    byte_piece = range(217, 473) if name == "gemma2" else ()  # <0x00> … <0xFF>: runs differ
    for _ in range(300):
        ids = draw.choices(range(tokenizer.vocab_size), k=draw.randrange(1, 12))
        ids = [i for i in ids if i not in byte_piece]
        for skip in (True, False):
            expected = library.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special=skip) == expected


def test_space_before_the_first_word(load: Load) -> None:
    tokenizer = load("tokenizers/llama2")
    ids = tokenizer.encode("Hello world")
    assert tokenizer.decode(ids) == "Hello world"
    assert tokenizer.decode(ids, continues=True) == " Hello world"
    assert tokenizer.decode(ids, skip_special=False) == "<s> Hello world"
    assert tokenizer.decode(ids[2:], continues=True) == " world"


@pytest.mark.parametrize("name", ["tokenizers/llama2", "tokenizers/gemma2"])
def test_never_a_second_bos(load: Load, name: str) -> None:
    tokenizer = load(name)
    bos = tokenizer.token_of(tokenizer.bos_id)
    assert bos is not None
    parsed = tokenizer.encode(f"{bos}Hello", parse_special=True)
    assert parsed == tokenizer.encode("Hello")
    assert parsed.count(tokenizer.bos_id or 0) == 1
    assert tokenizer.encode("", add_special=False) == []


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("tokenizers/llama2", "</s>"),
        ("tokenizers/llama3", "<|eot_id|>"),
        ("tokenizers/gemma2", "<end_of_turn>"),
        ("vocab/ggml-vocab-llama-spm.gguf", "</s>"),
    ],
)
def test_special_tokens_in_a_text_are_text_unless_parsed(load: Load, name: str, token: str) -> None:
    tokenizer = load(name)
    text = f"a{token}b"
    plain = tokenizer.encode(text, add_special=False)
    parsed = tokenizer.encode(text, add_special=False, parse_special=True)
    assert not any(map(tokenizer.is_special, plain)) and tokenizer.decode(plain) == text
    [special] = [i for i in parsed if tokenizer.is_special(i)]
    assert tokenizer.token_of(special) == token
    assert "b" in tokenizer.decode(parsed) and token not in tokenizer.decode(parsed)


def test_end_tokens_are_a_union(assets: Path, tmp_path: Path) -> None:
    model = assets / "tokenizers/gemma2/tokenizer.json"
    (tmp_path / "tokenizer.json").symlink_to(model.resolve())
    write(tmp_path / "tokenizer_config.json", {"eos_token": {"content": "<eos>"}})
    write(tmp_path / "config.json", {"eos_token_id": 7, "bos_token_id": 2})
    write(tmp_path / "generation_config.json", {"eos_token_id": [8, 9]})
    template = (assets / "templates/google-gemma-2-2b-it.jinja").read_text("utf-8")
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.eos_id == 1
    assert tokenizer.eos_ids == {1, 7, 8, 9, 107}  # 107 is <end_of_turn>, named by the template
    text = chat_template.render(
        tokenizer.chat_template,
        [{"role": "user", "content": "Hi<end_of_turn>"}],
        bos=tokenizer.token_of(tokenizer.bos_id),
        eos=None,
    )
    ids = tokenizer.encode(text, parse_special=True)
    assert ids[:3] == [2, 106, 1645]  # one <bos>, <start_of_turn>, user
    assert tokenizer.decode(ids, skip_special=False) == text


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def llama_folder(assets: Path, tmp_path: Path) -> Path:
    """A folder with Llama 2's tokenizer.model and nothing else yet."""
    model = assets / "tokenizers/llama2/tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    return tmp_path


def test_configs_beside_a_sentencepiece_file(llama_folder: Path) -> None:
    write(
        llama_folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": True,
            "chat_template": [
                {"name": "tools", "template": "x"},
                {"name": "default", "template": "{{ messages[0].content }}<|end|>"},
            ],
            "added_tokens_decoder": {
                "32000": {"content": "<|end|>", "special": True},
                "32001": {"content": "plain added", "special": False},
            },
            "pad_token": "<|end|>",
        },
    )
    tokenizer = load_tokenizer(llama_folder)
    assert tokenizer.vocab_size == 32002 and not tokenizer.add_bos
    assert tokenizer.pad_id == 32000 and tokenizer.eos_ids == {2, 32000}
    assert tokenizer.encode("Hello") == [15043] and tokenizer.encode_whole("Hello") == [15043, 2]
    ids = tokenizer.encode("Hello<|end|>plain added", add_special=False, parse_special=True)
    assert ids == [15043, 32000, 32001]
    assert tokenizer.decode(ids) == "Helloplain added"
    assert tokenizer.encode("plain added", add_special=False) == [32001]
    assert 32000 not in tokenizer.encode("<|end|>")


def test_special_tokens_map_is_read(llama_folder: Path) -> None:
    write(llama_folder / "special_tokens_map.json", {"bos_token": "</s>", "pad_token": "<unk>"})
    tokenizer = load_tokenizer(llama_folder)
    assert (tokenizer.bos_id, tokenizer.pad_id) == (2, 0)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tokenizer: tokenizer\.json or tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff nonsense", b"[1]"])
def test_damaged_files_are_named(llama_folder: Path, name: str, content: bytes) -> None:
    (llama_folder / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=name):
        load_tokenizer(llama_folder)


def test_wrong_ids_in_configs(llama_folder: Path) -> None:
    for wrong in ("2", [True], 2.0):
        write(llama_folder / "generation_config.json", {"eos_token_id": wrong})
        with pytest.raises(ModelFileError, match=r"generation_config\.json's eos_token_id"):
            load_tokenizer(llama_folder)


def test_unknown_decoder_is_refused(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}))
    library.decoder = tokenizers.decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        load_tokenizer(tmp_path)


def test_post_processor_decides_without_a_config(tmp_path: Path) -> None:
    """Only tokenizer.json: what its template puts around a text is found and never doubled."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    library.add_special_tokens(["<s>", "</s>"])
    library.decoder = tokenizers.decoders.ByteLevel()
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("ab") == [0, 2, 3] and tokenizer.encode_whole("ab") == [0, 2, 3, 1]
    assert tokenizer.encode("<s>ab", parse_special=True) == [0, 2, 3]
    assert tokenizer.bos_id == 0 and tokenizer.add_bos


def test_texts_that_are_none(load: Load) -> None:
    tokenizer = load("tokenizers/llama2")
    with pytest.raises(UsageError, match="must be a str, not int"):
        tokenizer.encode(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="surrogate pair at position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(UsageError, match="-1 is negative"):
        tokenizer.decode([-1])
    assert tokenizer.decode([tokenizer.vocab_size + 10**6]) == ""


BPE: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "3", "Ċ", "33"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "3 3"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
SPM: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "<user>", "<unused>"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.0, -1.0, -2.0, -0.5, 0.0, 0.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 4, 5],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def from_metadata(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    named = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    merged = {k: v for k, v in (metadata | named).items() if v is not None}
    return load_tokenizer(Path("model.gguf"), merged)


def test_gguf_byte_level_bpe() -> None:
    tokenizer = from_metadata(BPE)
    assert tokenizer.encode("ab 33\n") == [4, 5, 8, 7]
    assert from_metadata(BPE, pre="smollm").encode("33") == [6, 6]
    assert from_metadata(BPE, pre="llama-bpe").encode("33") == [0, 8]
    assert from_metadata(BPE, pre="llama-bpe", add_bos_token=False).encode("33") == [8]
    assert from_metadata(BPE, add_eos_token=True).encode_whole("a") == [2, 1]
    assert tokenizer.encode("<|im_end|>a", parse_special=True) == [1, 2]


def test_gguf_sentencepiece() -> None:
    tokenizer = from_metadata(SPM)
    assert tokenizer.encode("a<user>") == [1, 6, 7]
    assert tokenizer.encode("a</s>a", parse_special=True) == [1, 6, 2, 6]
    assert from_metadata(SPM, add_space_prefix=False).encode("a a") == [1, 4, 6]
    assert tokenizer.decode([6, 7, 8, 5]) == "a<user><unused>b"


def test_gguf_end_tokens() -> None:
    template = {"tokenizer.chat_template": "{{ messages[0].content }}<|im_end|>"}
    tokenizer = from_metadata(BPE | template, eos_token_id=4, eot_token_id=5, padding_token_id=0)
    assert tokenizer.eos_ids == {1, 4, 5} and tokenizer.pad_id == 0


def test_unknown_pre_tokenizer_names_the_known() -> None:
    with pytest.raises(UnsupportedModelError, match="'mystery'") as caught:
        from_metadata(BPE, pre="mystery")
    assert all(name in str(caught.value) for name in PRE_TOKENIZERS)
    with pytest.raises(UnsupportedModelError, match="'rwkv'"):
        from_metadata(BPE, model="rwkv")


def test_absent_pre_tokenizer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert from_metadata(BPE, pre=None).encode("33") == [8]
    assert "tokenizer.ggml.pre" in caplog.text


LIES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (BPE, {"model": None}, "has no tokenizer.ggml.model"),
    (BPE, {"tokens": None}, "has no tokenizer.ggml.tokens"),
    (BPE, {"tokens": [1] * 9}, "tokens must be an array of strings"),
    (BPE, {"tokens": "abcdefghi"}, "tokens must be an array of strings"),
    (BPE, {"tokens": ["a"] * 9}, "'a' twice"),
    (BPE, {"merges": ["a z"]}, "does not fit"),
    (BPE, {"merges": ["ab"]}, "does not fit"),
    (BPE, {"merges": 3}, "merges must be an array of strings"),
    (BPE, {"token_type": [1]}, "each of the 9 tokens"),
    (BPE, {"token_type": 3}, "each of the 9 tokens"),
    (BPE, {"token_type": [77] * 9}, "from 1 to 6, not 77 to 77"),
    (BPE, {"eos_token_id": "x"}, "must be a token id"),
    (SPM, {"scores": [0.0]}, "each of the 9 tokens"),
    (SPM, {"scores": ["x"] * 9}, "scores must hold numbers"),
    (SPM, {"token_type": [1] * 9}, "no readable sentencepiece model"),
]


@pytest.mark.parametrize(("metadata", "changes", "message"), LIES)
def test_lying_metadata(metadata: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_metadata(metadata, **changes)
