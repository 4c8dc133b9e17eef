"""Every family under every head against transformers in float32: results, losses, refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from oracle import assert_close, load_exact
from torch.nn import functional

import edgelm
from edgelm.ops import reference as reference_ops

CLASSIFIERS = ("sequence-classification", "token-classification")
PAIRS = [(name, head) for name in sorted(oracle.FAMILIES) for head in CLASSIFIERS]
PAIRS += [("bloom", "question-answering"), ("llama", "question-answering")]
LABELS = {index: f"kind {index}" for index in range(5)}
PAD = 0


def batch(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of 29 ids with paddings of 0, 9 and 17 on one side, or none."""
    generator = torch.Generator().manual_seed(1)
    tokens, mask = torch.randint(3, 200, (3, 29), generator=generator), torch.ones(3, 29).long()
    for row, padding in enumerate((0, 9, 17) if side != "none" else ()):
        mask[row, slice(0, padding) if side == "left" else slice(29 - padding, None)] = 0
    return tokens.masked_fill(mask == 0, PAD), mask


def run_reference(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    """transformers with the positions that each row has alone; BLOOM takes none."""
    if model.config.model_type != "bloom":
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(tokens, attention_mask=mask, **options)


def of_head(name: str, folder: Path, head: str, **changes: Any) -> tuple[Any, Path]:
    labels = {} if head == "question-answering" else {"id2label": LABELS}
    return oracle.family(name, folder, head, **(labels | changes))


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_results(tmp_path: Path, name: str, head: str) -> None:
    """Padded rows in chunks that Gemma 2's window is no multiple of; hidden states too."""
    reference, folder = of_head(name, tmp_path, head)
    with load_exact(folder, task=head, chunk=15) as lm:
        for side in ("none", "left", "right"):
            tokens, mask = batch(side)
            expected = run_reference(reference, tokens, mask, output_hidden_states=True)
            out = lm.forward(tokens, attention_mask=mask, output_hidden_states=True)
            real = mask.bool()
            for field in ("logits", "start_logits", "end_logits"):
                ours, theirs = getattr(out, field), getattr(expected, field, None)
                assert (ours is None) == (theirs is None), field
                if ours is None:
                    continue
                by_token = head != "sequence-classification"
                assert_close(*((ours[real], theirs[real]) if by_token else (ours, theirs)), side)
                assert not by_token or not ours[~real].any()
            for ours, theirs in zip(out.hidden_states, expected.hidden_states, strict=True):
                assert_close(ours[real], theirs[real], "hidden state")


@pytest.mark.parametrize("heads", [6, 12])
def test_bloom_of_any_head_count(tmp_path: Path, heads: int) -> None:
    reference, folder = of_head("bloom", tmp_path, "sequence-classification", n_head=heads)
    tokens, mask = batch("left")
    expected = run_reference(reference, tokens, mask).logits
    with load_exact(folder, task="sequence-classification") as lm:
        assert_close(lm.forward(tokens, attention_mask=mask).logits, expected)


def check_loss(ours: edgelm.LanguageModel, reference: Any, **targets: torch.Tensor) -> None:
    tokens, _ = batch("none")
    with torch.no_grad():
        expected = float(reference(tokens, **targets).loss)
    got = float(ours.forward(tokens, **targets).loss)
    print(f"loss {got:.6f}, transformers {expected:.6f}")
    assert got == pytest.approx(expected, rel=1e-5)


PROBLEMS: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "classes": ({}, torch.tensor([4, 0, -100])),
    "shares": ({}, torch.rand(3, 5, generator=torch.Generator().manual_seed(0))),
    "one number": ({"id2label": {0: "stars"}}, torch.tensor([0.5, -2.0, 7.0])),
    "numbers": ({"problem_type": "regression"}, torch.arange(15.0).view(3, 5)),
    "many": (
        {"problem_type": "multi_label_classification"},
        torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
    ),
    "one": ({"problem_type": "single_label_classification"}, torch.tensor([2, 3, 1])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_sequence_losses(tmp_path: Path, name: str, problem: str) -> None:
    changes, labels = PROBLEMS[problem]
    head = "sequence-classification"
    reference, folder = of_head(name, tmp_path, head, **changes)
    with load_exact(folder, task=head) as lm:
        check_loss(lm, reference, labels=labels)


@pytest.mark.parametrize("name", sorted(oracle.FAMILIES))
def test_token_loss(tmp_path: Path, name: str) -> None:
    reference, folder = of_head(name, tmp_path, "token-classification")
    labels = torch.randint(0, 5, (3, 29))
    labels[0, :9] = -100
    labels[2] = -100
    with load_exact(folder, task="token-classification") as lm:
        check_loss(lm, reference, labels=labels)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_span_loss(tmp_path: Path, name: str) -> None:
    """Positions beyond the text are ignored; padding is no place for an answer."""
    head = "question-answering"
    reference, folder = of_head(name, tmp_path, head)
    starts, ends = torch.tensor([3, 29, -4]), torch.tensor([[5], [28], [99]])
    with load_exact(folder, task=head) as lm:
        check_loss(lm, reference, start_positions=starts, end_positions=ends)
        tokens, mask = batch("left")
        expected = run_reference(reference, tokens, mask)
        start = torch.tensor([3, 9, 20])
        wanted = [
            functional.cross_entropy(logits.masked_fill(mask == 0, -torch.inf), start)
            for logits in (expected.start_logits, expected.end_logits)
        ]
        out = lm.forward(tokens, attention_mask=mask, start_positions=start, end_positions=start)
        assert float(out.loss) == pytest.approx(float(sum(wanted)) / 2, rel=1e-5)
        with pytest.raises(edgelm.UsageError, match="padding"):
            lm.forward(tokens, attention_mask=mask, start_positions=start, end_positions=start - 3)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_the_last_token_without_a_mask(tmp_path: Path, name: str) -> None:
    """The rightmost token that is not the pad id, which then counts as a token; embeddings end at
    the last column."""
    head = "sequence-classification"
    reference, folder = of_head(name, tmp_path, head)
    embeddings = reference.get_input_embeddings()(batch("none")[0]).detach() * 1.1
    with load_exact(folder, task=head) as lm:
        for side in ("left", "right"):
            tokens, _ = batch(side)
            with torch.no_grad():
                expected = reference(tokens).logits
            assert_close(lm.forward(tokens).logits, expected, side)
        nothing = torch.full((1, 4), PAD)
        with torch.no_grad():
            alone = reference(nothing).logits
            expected = reference(inputs_embeds=embeddings).logits
        assert torch.allclose(lm.forward(nothing).logits, alone, atol=1e-5)
        assert_close(lm.forward(inputs_embeds=embeddings).logits, expected, "embeddings")


def test_no_pad_id(tmp_path: Path) -> None:
    """One row, or rows with a mask, need none."""
    head = "sequence-classification"
    reference, folder = of_head("llama", tmp_path, head, pad_token_id=None)
    tokens, mask = batch("right")
    with load_exact(folder, task=head) as lm:
        with torch.no_grad():
            expected = reference(tokens[:1]).logits
        assert_close(lm.forward(tokens[:1]).logits, expected)
        assert lm.forward(tokens, attention_mask=mask).logits.shape == (3, 5)
        with pytest.raises(edgelm.UsageError, match="pad_token_id"):
            lm.forward(tokens)


@pytest.mark.parametrize(
    ("name", "head"),
    [("gemma2", "sequence-classification"), ("llama", "question-answering"),
     ("bloom", "token-classification")],
)  # fmt: skip
@pytest.mark.parametrize("quant", ["none", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_planned_and_the_head_stays_float(
    tmp_path: Path, name: str, head: str, quant: str, dtype: str
) -> None:
    """A tied embedding is not tied to such a head."""
    _, folder = of_head(name, tmp_path, head, tie_word_embeddings=True)
    with edgelm.load(folder, task=head, quant=quant, dtype=dtype, context=50, chunk=16) as lm:
        planned = {part.name: part.bytes for part in lm.plan.parts}
        taken = dict(lm.ledger.taken)
        assert taken == {part: planned[part] for part in taken}
        weights = sum(nbytes for part, nbytes in taken.items() if part.startswith("weights."))
        assert weights == lm.plan.weight_bytes == lm.report.nbytes
        schemes = {product.names[0]: product.scheme for product in lm.plan.products}
        assert schemes["head"] == dtype
        assert schemes["embed"].startswith("int6-g" if quant == "int4" else dtype)
        tokens, mask = batch("left")
        lm.forward(tokens, attention_mask=mask)


def test_labels_of_a_config(tmp_path: Path) -> None:
    """Without id2label there are two; label2id alone will do."""
    head = "sequence-classification"
    _, folder = oracle.family("llama", tmp_path, head, id2label={0: "no", 1: "yes"})
    config = json.loads((folder / "config.json").read_text())

    def labels(**changes: Any) -> tuple[str, ...]:
        (folder / "config.json").write_text(json.dumps(config | changes))
        with load_exact(folder, task=head) as lm:
            return lm._session.engine.decoder.head.labels

    assert labels() == ("no", "yes")
    assert labels(id2label=None, label2id={"b": 1, "a": 0}) == ("a", "b")
    assert labels(id2label=None, label2id=None) == ("LABEL_0", "LABEL_1")
    for wrong in (["a"], {"0": "a", "2": "b"}, {"0": "a", "1": "a"}, {}):
        with pytest.raises(edgelm.ModelFileError, match="id2label"):
            labels(id2label=wrong)
    with pytest.raises(edgelm.UnsupportedModelError, match="ranking"):
        labels(problem_type="ranking")


FRESH = [*PAIRS[::3], ("bloom", "token-classification"), ("llama", "question-answering")]


@pytest.mark.parametrize(("name", "head"), FRESH)
def test_a_fresh_head(
    tmp_path: Path, name: str, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused unless asked for; then it is the same each time, and a warning says so."""
    reference, folder = oracle.family(name, tmp_path)
    with pytest.raises(edgelm.ModelFileError, match="num_labels"):
        load_exact(folder, task=head)
    count = 2 if head == "question-answering" else 3
    tokens, mask = batch("left")
    found = []
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "edgelm"):
            lm = load_exact(folder, task=head, num_labels=count)
        assert "fresh" in caplog.text
        caplog.clear()
        with lm:
            out = lm.forward(tokens, attention_mask=mask, output_hidden_states=True)
            found.append(out.start_logits if out.logits is None else out.logits)
            matrix = lm._session.engine.decoder.head
            size = matrix.in_size
            weight = matrix(torch.eye(size), torch.empty(size, matrix.out_size), reference_ops)
    assert torch.equal(*found)
    assert float(weight.std()) == pytest.approx(reference.config.initializer_range, rel=0.2)
    hidden = out.hidden_states[-1] @ weight
    if head == "token-classification":
        assert_close(found[0][mask.bool()], hidden[mask.bool()])


REFUSED: list[tuple[dict[str, Any], type[edgelm.EdgeLMError], str]] = [
    ({"task": "translation"}, edgelm.UsageError, "translation"),
    ({"task": "base", "num_labels": 3}, edgelm.UsageError, "num_labels"),
    ({"num_labels": 3}, edgelm.UsageError, "num_labels"),
    ({"task": "sequence-classification", "num_labels": 0}, edgelm.UsageError, "num_labels"),
    ({"task": "sequence-classification", "num_labels": 4}, edgelm.UsageError, "5 labels"),
    ({"task": "sequence-classification", "problem_type": "ranking"}, edgelm.UsageError, "ranking"),
    ({"task": "token-classification", "problem_type": "regression"}, edgelm.UsageError, "belongs"),
    ({"task": "question-answering"}, edgelm.UnsupportedModelError, "bloom and llama"),
    ({"task": "causal-lm"}, edgelm.ModelFileError, "lm_head.weight"),
    ({"task": "token-classification"}, edgelm.ModelFileError, "score.bias"),
]


def test_what_load_refuses(tmp_path: Path) -> None:
    _, folder = of_head("helium", tmp_path, "sequence-classification")
    for options, error, words in REFUSED:
        with pytest.raises(error, match=words):
            load_exact(folder, **options)
        with pytest.raises(error, match=words):
            edgelm.plan(folder, quant="none", **options)


def test_what_forward_refuses(tmp_path: Path) -> None:
    """Before anything is computed: the cache is as it was."""
    tokens, _ = batch("none")
    cases: dict[str, list[tuple[dict[str, Any], str]]] = {
        "sequence-classification": [
            ({"labels": torch.tensor([0, 5, 1])}, "0 to 4"),
            ({"labels": torch.tensor([0, -1, 1])}, "0 to 4"),
            ({"labels": torch.tensor([0, 1])}, "expected"),
            ({"labels": torch.full((3, 5), 1.5)}, "between 0 and 1"),
            ({"logits_to_keep": 1}, "logits_to_keep"),
            ({"start_positions": torch.zeros(3)}, "start_positions"),
        ],
        "token-classification": [
            ({"labels": torch.full((3, 29), 5)}, "0 to 4"),
            ({"labels": torch.zeros(3, 29)}, "whole numbers"),
            ({"labels": torch.zeros(3).long()}, "expected"),
        ],
        "question-answering": [
            ({"labels": torch.zeros(3).long()}, "end_positions"),
            ({"start_positions": torch.zeros(3).long()}, "both"),
            ({"start_positions": torch.zeros(3), "end_positions": torch.zeros(3)}, "whole numbers"),
        ],
        "base": [({"labels": tokens}, "task='base'")],
    }
    for head, refused in cases.items():
        made = "causal-lm" if head == "base" else head
        _, folder = (of_head if made == head else oracle.family)("bloom", tmp_path / head, made)
        with load_exact(folder, task=head, context=40) as lm:
            cache = lm.new_cache(rows=3)
            for options, words in [*refused, ({"position_ids": tokens}, "ALiBi")]:
                with pytest.raises(edgelm.UsageError, match=words):
                    lm.forward(tokens, cache=cache, **options)
            assert list(cache.lengths) == [0, 0, 0]
