"""Tasks whose answers the model writes: their files, prompts, examples, scores and output."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgelm
from edgelm.cli.main import main
from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.evaluation.answer_scores import bleu, exact_match, last_number, normalised, same_number
from edgelm.evaluation.answering import Asked
from edgelm.evaluation.few_shot import drawn, shown_items
from edgelm.evaluation.tasks import read_items
from edgelm.evaluation.written_tasks import WRITTEN_TASKS, read_questions, wordings
from edgelm.models.model_files import ModelFiles
from edgelm.text.tokenizer import Tokenizer

SAMPLES = Path(__file__).parent / "data" / "tasks"


def sample(name: str) -> Path:
    return SAMPLES / f"{name}.jsonl"


@pytest.fixture
def tokenizer(assets: Path) -> Tokenizer:
    return ModelFiles.open(assets / "nano" / "llama").tokenizer


@pytest.mark.parametrize("name", WRITTEN_TASKS)
def test_samples_are_read(name: str, tokenizer: Tokenizer) -> None:
    """Five rows of each task, in every wording, whose prompts end where the answer begins."""
    questions = read_questions(name, sample(name))
    assert len(questions) == 5 and len({q.accepted for q in questions}) == 5
    asked = Asked.read(name, sample(name), tokenizer, prompts=len(WRITTEN_TASKS[name].prompts))
    first = [tokenizer.decode(own[0]) for own in asked.prompts]
    assert len(set(first)) == len(first)
    for text in first:
        assert all(value in text for value in questions[0].fields.values())
        assert text == text.rstrip() and questions[0].shown not in text


def test_prompts_begin_with_examples_of_their_language(tokenizer: Tokenizer) -> None:
    asked = Asked.read("mkqa", sample("mkqa"), tokenizer, shots=1)
    german = [q.language == "de" for q in asked.questions]
    assert len(asked.questions) == 3 and 0 < sum(german) < 3
    for question, ids in zip(asked.questions, asked.prompts[0], strict=True):
        text = tokenizer.decode(ids)
        example, _, rest = text.partition("\n\n")
        others = [q for q in read_questions("mkqa", sample("mkqa")) if q not in asked.questions]
        [own] = [q for q in others if q.language == question.language]
        assert example == f"Question: {own.fields['question']}\nAnswer: {own.shown}"
        assert rest == f"Question: {question.fields['question']}\nAnswer:"


def test_examples_depend_on_the_seed_alone(tokenizer: Tokenizer) -> None:
    def prompts(**options: Any) -> list[list[int]]:
        return Asked.read("gsm8k", sample("gsm8k"), tokenizer, **options).prompts[0]

    assert prompts(shots=2, seed=1) == prompts(shots=2, seed=1)
    assert len({str(prompts(shots=2, seed=seed)) for seed in range(8)}) > 1
    assert prompts(shots=2, seed=1, limit=1) == prompts(shots=2, seed=1)[:1]
    examples, left = drawn(range(20), 5, 3, lambda item: "", "a file")
    assert sorted([*examples[""], *left]) == list(range(20)) and len(left) == 15


def test_choices_have_examples_too(assets: Path) -> None:
    """With the right choice of each, and with one text after the prompts where these differ."""
    path = assets / "tasks" / "arc_easy.jsonl"
    every = {item.pairs[0][0]: item for item in read_items("arc_easy", path)}
    items = shown_items("arc_easy", path, 4, 2, 7)
    assert len(items) == 4 and items == shown_items("arc_easy", path, 4, 2, 7)
    shown = items[0].pairs[0][0].split("\n\n")[:2]
    for item in items:
        *examples, asked = item.pairs[0][0].split("\n\n")
        assert examples == shown and item.pairs == tuple(
            ("\n\n".join((*shown, prompt)), choice) for prompt, choice in every[asked].pairs
        )
        for example in examples:
            prompt = example[: example.index("Answer:") + 7]
            own = every[prompt]
            assert example == f"{prompt} {own.pairs[own.gold][1]}" and prompt != asked


def test_too_few_items_for_examples(tokenizer: Tokenizer, assets: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"shots is 5, and .*gsm8k.jsonl holds 5 items in en: 5"):
        Asked.read("gsm8k", sample("gsm8k"), tokenizer, shots=5)
    with pytest.raises(UsageError, match="holds 2 items in fr"):
        Asked.read("mkqa", sample("mkqa"), tokenizer, shots=2)
    few = tmp_path / "few.jsonl"
    lines = (assets / "tasks" / "arc_easy.jsonl").read_text().splitlines()[:3]
    few.write_text("\n".join(lines))
    with pytest.raises(UsageError, match=r"shots is 3, and .* holds 3 items: 3 are shown"):
        shown_items("arc_easy", few, None, 3, 0)
    with pytest.raises(UsageError, match="prompts is 4; triviaqa has 3"):
        wordings("triviaqa", 4)


@pytest.mark.parametrize(
    ("name", "row", "told"),
    [
        ("triviaqa", {"question": "a", "answer": {"value": "b"}}, "no field 'aliases'"),
        ("triviaqa", {"question": "a", "answer": "b"}, "indices"),
        ("natural_questions", {"question": "a", "answer": []}, "no answer is accepted"),
        ("natural_questions", {"question": "a", "answer": ["b", 3]}, "answer is 3, not a text"),
        ("mkqa", {"question": "a", "answers": ["b"]}, "no field 'language'"),
        ("flores", {"from": "English", "source": "a", "target": "b"}, "no field 'to'"),
        ("gsm8k", {"question": "a", "answer": "so it is 4"}, "no '####' before its result"),
        ("gsm8k", {"question": " ", "answer": "#### 4"}, "question is ' ', not a text"),
        ("gsm8k", ["a"], "not a JSON object"),
    ],
)
def test_wrong_lines_are_named(name: str, row: Any, told: str, tmp_path: Path) -> None:
    """With the number of the line and what a line of the task holds."""
    path = tmp_path / "wrong.jsonl"
    path.write_text(sample(name).read_text().splitlines()[0] + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ModelFileError, match=re.escape(told)) as raised:
        read_questions(name, path)
    print(raised.value)
    assert "line 2" in str(raised.value) and "A line of it is {" in str(raised.value)
    path.write_text("\n")
    with pytest.raises(ModelFileError, match=f"no questions of {name}"):
        read_questions(name, path)


def test_exact_match_as_squad_has_it() -> None:
    assert normalised("The  Cat's  tail, a (long) one!") == "cats tail long one"
    assert exact_match("the Beatles.", ["Beatles", "Fab Four"]) == 1
    assert exact_match("fab four", ["Beatles", "Fab Four"]) == 1
    assert exact_match("Beatles or Stones", ["Beatles"]) == 0
    assert exact_match("„Die Zauberflöte“", ["Zauberflöte"], "de") == 1
    assert exact_match("Die Zauberflöte", ["Zauberflöte"], "en") == 0
    assert exact_match("l'Odéon", ["Odéon"], "fr") == exact_match("l’Odéon", ["Odéon"], "fr") == 1
    assert exact_match("", ["a"]) == 0


def test_the_last_number_counts() -> None:
    assert last_number("3 boxes of 4 make 12.") == 12
    assert last_number("that is $1,234.50 in all") == Decimal("1234.5")
    assert last_number("-7 degrees") == -7 and last_number("none") is None
    assert same_number("so 18.00 dollars", ["18"]) == 1
    assert same_number("18 apples, 2 left", ["18"]) == 0 and same_number("none", ["18"]) == 0


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    answers = ["The cat sits on the mat, I think.", "It rained all day long in the city."]
    accepted = [("The cat sat on the mat, I think.",), ("It rained all day in the city.",)]
    expected = sacrebleu.BLEU(tokenize="13a").corpus_score(answers, [[a[0] for a in accepted]])
    assert bleu(answers, accepted) == pytest.approx(expected.score) and 30 < expected.score < 90


def test_without_sacrebleu_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(EdgeLMError, match=r"edgelm\[bleu\]"):
        bleu(["a"], [("a",)])


class Parrot:
    """A model that answers a prompt's question from a table, and nothing else."""

    def __init__(self, tokenizer: Tokenizer, answers: dict[str, str], context: int = 4096) -> None:
        self.tokenizer, self.answers = tokenizer, answers
        self.plan = SimpleNamespace(context=context, rows=2)
        self.asked: list[list[int]] = []

    def generate(self, prompts: list[list[int]], **options: Any) -> list[Any]:
        assert options["temperature"] == 0.0 and len(prompts) <= 2
        self.asked += prompts
        texts = [self.tokenizer.decode(ids).split("\n\n")[-1] for ids in prompts]
        return [
            SimpleNamespace(text=next((f" {a} " for q, a in self.answers.items() if q in t), ""))
            for t in texts
        ]


def test_scores_by_language_and_wording(tokenizer: Tokenizer) -> None:
    """All right in German, none in French; every wording asks every question."""
    asked = Asked.read("mkqa", sample("mkqa"), tokenizer, prompts=2)
    right = {q.fields["question"]: q.accepted[-1] for q in asked.questions if q.language == "de"}
    lm: Any = Parrot(tokenizer, right)
    done: list[tuple[int, int]] = []
    answers = asked.answers(lm, lambda *told: done.append(told))
    score = asked.score(answers)
    assert len(lm.asked) == 10 and done[-1] == (10, 10)
    assert score.by_language == {"de": 1.0, "fr": 0.0} and score.score == pytest.approx(0.6)
    assert score.by_prompt == (pytest.approx(0.6),) * 2 and score.spread == 0
    assert score.stderr == pytest.approx((0.6 * 0.4 / 4) ** 0.5) and score.n == 5
    rows = asked.rows(answers)
    assert len(rows) == 10 and sum(row["score"] for row in rows) == 6
    one_wrong = [answers[0], ["", *answers[1][1:]]]
    assert asked.score(one_wrong).spread == pytest.approx(0.2)


def test_long_prompts_lose_their_beginning(tokenizer: Tokenizer, caplog: Any) -> None:
    asked = Asked.read("gsm8k", sample("gsm8k"), tokenizer, shots=2)
    lm: Any = Parrot(tokenizer, {}, context=256 + 20)
    asked.answers(lm, None)
    assert [ids[-20:] for ids in asked.prompts[0]] == lm.asked
    assert "gsm8k: 3 prompts do not fit the context of 276 tokens" in caplog.text


def test_evaluate_asks_both_kinds(assets: Path, tmp_path: Path) -> None:
    """Written answers beside multiple choice; the same as generate gives; one line an item."""
    model, details = assets / "nano" / "llama", tmp_path / "items.jsonl"
    tasks = {"piqa": assets / "tasks" / "piqa.jsonl", "triviaqa": sample("triviaqa")}
    found = edgelm.evaluate(
        model, tasks=tasks, limit=2, shots=1, quant="int8", details=details, prompts=2
    )
    assert set(found.tasks) == {"piqa"} and found.written["triviaqa"].n == 2
    data = found.to_dict()
    assert set(data["tasks"]) == {"piqa", "triviaqa"} and "written" not in data
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    assert [row["task"] for row in rows] == ["piqa"] * 2 + ["triviaqa"] * 4
    for row in rows[:2]:
        scores = row["log_likelihoods"]
        assert row["picked"] == scores.index(max(scores)) and len(scores) == len(row["pairs"])
    asked = Asked.read("triviaqa", sample("triviaqa"), ModelFiles.open(model).tokenizer,
                       limit=2, shots=1, prompts=2)  # fmt: skip
    with edgelm.load(model, quant="int8", context=512) as lm:
        for wording, prompts in enumerate(asked.prompts):
            for place, ids in enumerate(prompts):
                text = lm.generate(ids, temperature=0.0, max_new_tokens=24, stop="\n").text.strip()
                assert rows[2 + 2 * wording + place]["answer"] == text


def test_written_tasks_need_no_baseline(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, task = assets / "nano" / "llama", f"mkqa={sample('mkqa')}"
    given = ["eval", str(model), "--quant", "int8", "--task", task, "--limit", "3"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "mkqa" in shown and "exact match" in shown and re.search(r"^ +de ", shown, re.M)
    assert main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tasks"]["mkqa"]["n"] == 3 and told["noise_floor"] is None
    assert main([*given, "--details", str(tmp_path / "no" / "file.jsonl")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main([*given, "--shots", "-1"]) == 2 and "--shots" in capsys.readouterr().err
    assert main(["eval", str(model), "--task", f"chess={sample('mkqa')}"]) == 2
    assert "arc_easy" in (told := capsys.readouterr().err) and "gsm8k" in told
