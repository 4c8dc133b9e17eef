"""predict(): labels, labelled tokens and answers, against transformers' logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from oracle import load_exact

import edgelm
from edgelm.tasks.predict import MAX_ANSWER_TOKENS, Answer, TextLabel
from edgelm.text.tokenizer import load_tokenizer
from edgelm.text.tokenizers_vocabulary import byte_alphabet

TEXTS = ["The cat sat.", "Señor Ünal  paid 9 €\nin 北京 🙂!", "a"]
CONTEXT = "Ada Lovelace was born in London, in 1815, and wrote about engines."
QUESTION = "Where, in which city of which country and on which day, was the countess Ada born? " * 2


def write_tokenizer(folder: Path) -> None:
    """Bytes as tokens behind a BOS of id 1: 0 pad, 2 EOS, 3 to 258 the bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    names = ["<pad>", "<s>", "</s>", *byte_alphabet()]
    library = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    library.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def model(folder: Path, head: str, name: str = "llama", **changes: Any) -> tuple[Any, Path]:
    sizes = {"vocab_size": 259, "max_position_embeddings": 320}
    if name == "bloom":
        sizes = {"vocab_size": 259, "seq_length": 320}
    reference, folder = oracle.family(name, folder, head, **(sizes | changes))
    write_tokenizer(folder)
    return reference, folder


def logits_of(reference: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return reference(torch.tensor([ids]))


@pytest.mark.parametrize(
    ("problem", "labels"),
    [(None, ["bad", "fair", "good"]), ("single_label_classification", ["no", "yes"]),
     ("multi_label_classification", ["a", "b", "c"]), ("regression", ["x", "y"]),
     (None, ["stars"])],
)  # fmt: skip
def test_texts(tmp_path: Path, problem: str | None, labels: list[str]) -> None:
    """Scores of each problem; a text of a list gets what it gets alone."""
    head = "sequence-classification"
    names = dict(enumerate(labels))
    reference, folder = model(tmp_path, head, id2label=names, problem_type=problem)
    with load_exact(folder, task=head) as lm:
        found = lm.predict(TEXTS)
        for text, got in zip(TEXTS, found, strict=True):
            logits = logits_of(reference, lm.encode(text)).logits[0]
            scores = logits.softmax(0)
            if problem == "multi_label_classification":
                scores = logits.sigmoid()
            elif problem == "regression" or len(labels) == 1:
                scores = logits
            assert list(got.scores) == labels
            assert list(got.scores.values()) == pytest.approx(scores.tolist(), rel=1e-4)
            assert got.label == labels[int(scores.argmax())]
            assert got.score == got.scores[got.label]
            alone = lm.predict(text)
            assert alone.label == got.label and alone.score == pytest.approx(got.score, rel=1e-5)
        assert lm.predict([]) == []
        assert json.loads(json.dumps(found[0].to_dict()))["label"] == found[0].label


@pytest.mark.parametrize("name", sorted(oracle.FAMILIES))
def test_tokens(tmp_path: Path, name: str) -> None:
    """Without BOS; the texts between start and end are the tokens'."""
    head = "token-classification"
    reference, folder = model(tmp_path, head, name, id2label={0: "O", 1: "PER", 2: "LOC"})
    with load_exact(folder, task=head) as lm:
        for text, got in zip(TEXTS, lm.predict(TEXTS), strict=True):
            ids = lm.encode(text)
            scores = logits_of(reference, ids).logits[0, 1:].softmax(1)
            assert len(got) == len(ids) - 1 == len(text.encode())
            for token, own in zip(got, scores, strict=True):
                assert token.label == ("O", "PER", "LOC")[int(own.argmax())]
                assert token.score == pytest.approx(float(own.max()), rel=1e-4)
                assert token.text == text[token.start : token.end] and len(token.text) == 1
            assert set(got[0].to_dict()) == {"text", "label", "score", "start", "end"}


def best_span(start: torch.Tensor, end: torch.Tensor) -> tuple[int, int]:
    """By trying all, as transformers' pipeline does; both [tokens]."""
    table = start.softmax(0)[:, None] * end.softmax(0)
    allowed = torch.ones_like(table).triu().tril(MAX_ANSWER_TOKENS - 1)
    best = int((table * allowed).argmax())
    return best // len(end), best % len(end)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_answers(tmp_path: Path, name: str) -> None:
    """Spans of the context only, though a random model prefers the longer question."""
    head = "question-answering"
    reference, folder = model(tmp_path, head, name)
    pairs = [(QUESTION, CONTEXT), ("Who?", CONTEXT), ("Where?", "London")]
    with load_exact(folder, task=head) as lm:
        found, preferred = lm.predict(pairs), []
        for (question, context), got in zip(pairs, found, strict=True):
            ids = [*lm.encode(question), *lm.encode(context)]
            out = logits_of(reference, ids)
            own = slice(len(ids) - len(context), len(ids))  # a token is a byte
            first, last = best_span(out.start_logits[0, own], out.end_logits[0, own])
            print(f"{context[first : last + 1]!r}, score {got.score:.4f}")
            assert got.text == context[first : last + 1].strip()
            assert got.text == context[got.start : got.end]
            starts, ends = (x[0, own].softmax(0) for x in (out.start_logits, out.end_logits))
            assert got.score == pytest.approx(float(starts[first] * ends[last]), rel=1e-4)
            preferred += [int(x.argmax()) < own.start for x in (out.start_logits, out.end_logits)]
        assert any(preferred)
        alone = lm.predict(pairs[1])
        assert isinstance(alone, Answer) and alone.text == found[1].text


def test_lists_are_run_in_groups_that_the_context_holds(tmp_path: Path) -> None:
    """Never more tokens at once, padding included, than the plan's cache has room for."""
    head = "sequence-classification"
    _, folder = model(tmp_path, head, "gemma2")
    texts = ["word " * count for count in (1, 9, 2, 2, 2, 9, 1, 1, 1, 1)]
    with load_exact(folder, task=head, context=60, chunk=16) as lm:
        shapes = []
        forward = lm.forward

        def watched(ids: torch.Tensor, **options: Any) -> Any:
            shapes.append(tuple(ids.shape))
            return forward(ids, **options)

        lm.forward = watched  # type: ignore[method-assign]
        found = lm.predict(texts)
        print(shapes)
        assert sum(rows for rows, _ in shapes) == len(texts) and 3 < len(shapes) < len(texts)
        assert max(rows * width for rows, width in shapes) <= 60
        for text, got in zip(texts, found, strict=True):
            assert lm.predict(text).score == pytest.approx(got.score, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "helium"])
def test_characters_of_sentencepiece_tokens(assets: Path, family: str) -> None:
    """Spans are in order and cover all but white space; what is normalized away has none."""
    tokenizer = load_tokenizer(assets / "nano" / family)
    for text in [*TEXTS, CONTEXT, "  two  spaces "]:
        ids = tokenizer.encode(text, add_special=False)
        spans = tokenizer.spans(text, ids)
        assert spans is not None, text
        assert spans == sorted(spans)
        covered = {index for start, stop in spans for index in range(start, stop)}
        assert all(index in covered for index, char in enumerate(text) if not char.isspace())
    assert tokenizer.spans("cat", tokenizer.encode("dog", add_special=False)) is None


def test_an_answer_without_characters_is_decoded(assets: Path, tmp_path: Path) -> None:
    """Full-width letters are normalized: their tokens spell other text."""
    head = "question-answering"
    _, folder = oracle.family("llama", tmp_path, head, vocab_size=1000)
    models = assets / "tokenizers" / "sentencepiece-test"
    shutil.copy(models / "test_model.model", folder / "tokenizer.model")
    with load_exact(folder, task=head) as lm:
        got = lm.predict(("Who?", "ＡＤＡ was it"))
        assert got.start is got.end is None
        assert got.text and got.text in "ADA was it"
        assert lm.predict(("Who?", "ADA was it")).start is not None


def test_what_predict_refuses(tmp_path: Path) -> None:
    _, folder = model(tmp_path / "texts", "sequence-classification")
    with load_exact(folder, task="sequence-classification", context=20) as lm:
        for wrong in ([1, 2], ["a", ("b", "c")], "", ["a", ""], [None], 5):
            with pytest.raises(edgelm.UsageError, match="predict"):
                lm.predict(wrong)
        with pytest.raises(edgelm.ContextLengthError) as caught:
            lm.predict(["a", "x" * 20])
        assert (caught.value.given, caught.value.allowed) == (21, 20)
        assert isinstance(lm.predict("x" * 19), TextLabel)
        with pytest.raises(edgelm.UsageError, match="causal-lm"):
            lm.generate("a", max_new_tokens=1)
        with pytest.raises(edgelm.UsageError, match="causal-lm"):
            lm.score("a", "b")
    _, folder = model(tmp_path / "pairs", "question-answering", "bloom")
    with load_exact(folder, task="question-answering") as lm:
        for wrong in ("a text", ["a text"], [("a", "b", "c")], ("a", ""), ("a", 1)):
            with pytest.raises(edgelm.UsageError, match="predict"):
                lm.predict(wrong)
    _, folder = model(tmp_path / "lm", "causal-lm")
    for task in ("causal-lm", "base"):
        with (
            load_exact(folder, task=task) as lm,
            pytest.raises(edgelm.UsageError, match="sequence-classification"),
        ):
            lm.predict("a")
