"""The model class of lm-evaluation-harness: its numbers are ours, and transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.errors import UsageError

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from lm_eval_agreement import agreement

from edgelm.evaluation import harness
from edgelm.evaluation.harness import HarnessModel

CLOSE = 1e-4
EXACT: dict[str, Any] = {"quant": "none", "dtype": "float32", "kv": "float32", "context": 96}


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Iterator[HarnessModel]:
    folder = request.getfixturevalue("assets") / "nano" / "llama"
    found = get_model("edgelm").create_from_arg_string(
        f"pretrained={folder},quant=none,dtype=float32,kv=float32,context=96",
        {"batch_size": "2", "device": None},
    )
    with found.lm:
        yield found


def requests(*arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance("loglikelihood", {}, own, 0) for own in arguments]


def test_it_is_registered_and_loads_by_arguments(model: HarnessModel) -> None:
    assert isinstance(model, HarnessModel)
    assert model.max_length == 96 and model.lm.plan.rows == 2
    assert model.get_model_info()["model_scheme"] == "none"
    with pytest.raises(UsageError, match="max_batch_size is 8"):
        HarnessModel("demo", max_batch_size=8)
    with pytest.raises(UsageError, match="quant: the model is loaded already"):
        HarnessModel(model.lm, quant="int4")
    with pytest.raises(UsageError, match="did you mean context"):
        HarnessModel("demo", max_model_len=8)


def test_log_likelihoods_keep_their_order(model: HarnessModel) -> None:
    """Choices of one question, questions alone and an empty context, in one call."""
    pairs = [
        ("Once upon a time", " there was"), ("Once upon a time", " a girl"),
        ("The sea", " is blue"), ("", "There was a king"),
        ("A very long beginning of a tale", "."), ("Then", " he slept"),
    ]  # fmt: skip
    found = model.loglikelihood(requests(*pairs))
    scores = model.lm.score_all([pair for pair in pairs if pair[0]])
    for (log_likelihood, greedy), score in zip(found[:3] + found[4:], scores, strict=True):
        assert log_likelihood == pytest.approx(score.log_likelihood, abs=CLOSE)
        assert greedy == score.is_greedy
    ids = model.lm.tokenizer.encode("There was a king")
    assert found[3][0] == pytest.approx(float(model.lm.log_likelihoods(ids).sum()), abs=CLOSE)


def test_different_questions_run_side_by_side(
    model: HarnessModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[int]] = []
    score = type(model.lm).score_choices

    def counted(self: Any, items: Any, progress: Any = None) -> Any:
        given.append([len(own) for own in items])
        return score(self, items, progress)

    monkeypatch.setattr(type(model.lm), "score_choices", counted)
    alone = [(f"Line {number} of", " a song") for number in range(9)]
    model.loglikelihood(requests(("Who?", " he"), ("Who?", " she"), *alone))
    assert given == [[2, harness.MAX_ROWS, 1]]


def test_rolling_predicts_each_token_once(model: HarnessModel, assets: Path) -> None:
    """Over texts longer than the context, in the harness's windows; by forward alone."""
    text = (assets / "nano" / "heldout.txt").read_text()
    texts = [text[:900], "Once upon a time"]
    tokenizer = model.lm.tokenizer
    for given, found in zip(texts, model.loglikelihood_rolling(requests(*((t,) for t in texts))),
                            strict=True):  # fmt: skip
        ids = tokenizer.encode(given, add_special=False)
        expected = 0.0
        windows = get_rolling_token_windows(ids, tokenizer.bos_id, 96, 1)
        for context, wanted in map(make_disjoint_window, windows):
            logits = model.lm.forward(torch.tensor([[*context, *wanted][:-1]])).logits[0]
            own = logits.log_softmax(-1)[-len(wanted) :]
            expected += float(own.gather(1, torch.tensor(wanted)[:, None]).sum())
        print(f"{len(ids)} tokens: {found:.4f}, expected {expected:.4f}")
        assert found == pytest.approx(expected, abs=1e-3)


def test_answers_end_at_stop_strings(model: HarnessModel) -> None:
    """Greedy, several side by side, each with its own options, in the order asked."""
    long = "and then " * 60
    given = [
        ("Once upon a time", {"until": ["\n\n"], "max_gen_toks": 12}),
        ("The king said", {"until": "a", "max_gen_toks": 30, "do_sample": False}),
        ("One day", {"until": ["", "\n\n"], "max_gen_toks": 12}),
        (long, {"until": [], "max_new_tokens": 8, "temperature": 0.0}),
        ("Two girls", {"until": ["\n\n"], "max_gen_toks": 12}),
    ]
    found = model.generate_until(requests(*given))
    for (prompt, options), text in zip(given, found, strict=True):
        length = options.get("max_gen_toks", options.get("max_new_tokens"))
        ids = model.lm.encode(prompt)[-(96 - length) :]
        stop = [s for s in ([*options["until"]]) if s]
        expected = model.lm.generate(ids, temperature=0.0, max_new_tokens=length, stop=stop)
        assert text == expected.text
    assert "a" not in found[1] and len(model.lm.encode(long)) > 96
    with pytest.raises(UsageError, match="max_gen_toks is 96"):
        model.generate_until(requests(("Hello", {"max_gen_toks": 96})))
    with pytest.raises(UsageError, match="num_beams: did you mean beams"):
        model.generate_until(requests(("Hello", {"num_beams": 4, "max_gen_toks": 4})))


def test_options_of_sampling() -> None:
    assert harness._options({"temperature": 0.7})["temperature"] == 0.7
    assert harness._options({"do_sample": True, "top_p": 0.9}) == {
        "top_p": 0.9, "max_new_tokens": 256, "temperature": 1.0, "stop": [],
    }  # fmt: skip
    assert harness._options({"do_sample": False, "temperature": 0.7})["temperature"] == 0.0


def test_chat_templates_are_read_as_tokens(demo: Path) -> None:
    """What the template wrote becomes special tokens; the numbers are those of the ids."""
    with edgelm.load(demo, context=128) as lm:
        model = HarnessModel(lm)
        history = [{"role": "user", "content": "Is the sky blue?"}]
        text = model.apply_chat_template(history)
        assert model.tokenizer_name and model.chat_template(True) == lm.tokenizer.chat_template
        [(found, _)] = model.loglikelihood(requests((text, "Yes")))
        ids = [*lm.chat_ids(history), *lm.tokenizer.encode("Yes", add_special=False)]
        assert found == pytest.approx(float(lm.log_likelihoods(ids)[-1]), abs=1e-2)
        with pytest.raises(UsageError, match="apply_chat_template is 'other'"):
            model.chat_template("other")


def test_the_harness_agrees_with_eval_and_transformers(assets: Path, tmp_path: Path) -> None:
    """Two items of each task; `python benches/lm_eval_agreement.py` takes 200."""
    rows = agreement(assets / "nano" / "gemma2", assets / "tasks", 2, tmp_path)
    for row in rows:
        print(row)
    assert len(rows) == 4 and all(row.agrees for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "llama", "gemma2"])
def test_the_harness_agrees_on_200_items(assets: Path, tmp_path: Path, name: str) -> None:
    source = name if name == "demo" else assets / "nano" / name
    assert all(row.agrees for row in agreement(source, assets / "tasks", 200, tmp_path))
