"""Special tokens in prompts written by hand, and in what stops an answer."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli import Run, nano, run  # noqa: F401  (fixtures)

import edgelm
from edgelm.errors import UsageError
from edgelm.generation.request import Request
from edgelm.generation.writer import Writer, write
from edgelm.text.tokenizer import Tokenizer, load_tokenizer

BOS, EOS = 1, 2
PROMPT = "It is a truth universally acknowledged, that a single man"


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=160, rows=3) as model:
        yield model


@pytest.fixture(scope="module")
def tokenizer(assets: Path) -> Tokenizer:
    return load_tokenizer(assets / "nano" / "llama")


HAND = "<s>Call me</s><s>Ishmael"


@pytest.mark.parametrize("form", ["generate", "list", "stream", "request"])
@pytest.mark.parametrize("given", [None, True, False])
def test_special_tokens_of_a_prompt(
    lm: edgelm.LanguageModel, caplog: pytest.LogCaptureFixture, form: str, given: bool | None
) -> None:
    """Read as in transformers; said where nobody asked for it; plain text on demand."""
    wanted = lm.tokenizer.encode(HAND, parse_special=given is not False)
    assert (wanted.count(BOS), wanted.count(EOS)) == ((1, 0) if given is False else (2, 1))
    options: dict[str, Any] = {"max_new_tokens": 3, "parse_special": given}
    with caplog.at_level(logging.WARNING, "edgelm"):
        if form == "list":
            stats = lm.generate(["x", HAND], **options)[1].stats
        elif form == "stream":
            stats = [*lm.stream(HAND, **options)][-1].stats
        elif form == "request":
            assert list(lm.request(HAND, **options).prompt_ids) == wanted
            stats = None
        else:
            stats = lm.generate(HAND, **options).stats
    assert stats is None or stats.prompt_tokens == len(wanted)
    told = [entry.message for entry in caplog.records if "parse_special" in entry.message]
    assert len(told) == (given is None)
    assert given is not None or "(<s>, </s>)" in told[0]


def test_a_prompt_without_special_tokens_is_not_talked_about(
    lm: edgelm.LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "edgelm"):
        lm.generate(PROMPT + " <b> \x00", max_new_tokens=1)
        lm.generate([1, 5, 2, 6], max_new_tokens=1)
        lm.score(HAND, "</s>")
    assert not caplog.records


def test_scores_read_no_special_tokens(lm: edgelm.LanguageModel) -> None:
    assert lm.encode("<s>a</s>").count(EOS) == 0
    parsed = lm.tokenizer.encode("</s>", parse_special=True)
    assert lm.score_all([("a", "</s>")])[0].token_log_likelihoods and parsed[-1] == EOS
    assert len(lm.score_all([("a", "</s>")])[0].token_log_likelihoods) > 1


@pytest.mark.parametrize("flag", [[], ["--parse-special"], ["--no-parse-special"]])
def test_the_command_line_reads_them_too(run: Run, nano: Path, flag: list[str]) -> None:  # noqa: F811
    done = run("generate", nano, HAND, "--max-tokens", 1, "--json", *flag)
    counted = done.document["stats"]["prompt_tokens"]
    reads = flag != ["--no-parse-special"]
    assert counted == len(load_tokenizer(nano).encode(HAND, parse_special=reads))
    assert ("special tokens (<s>, </s>)" in done.err) == (not flag)


def without(text: str) -> str:
    return text.replace("<s>", "").replace("</s>", "")


def brute(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[str, bool]:
    """The answer's text before the first stop string of the text with special tokens in it."""
    for count in range(len(ids) + 1):
        shown = tokenizer.decode(ids[:count], skip_special=False, continues=True)
        plain = tokenizer.decode(ids[:count], continues=True)
        cuts = [plain[: plain.index(stop)] for stop in stops if stop in plain]
        for stop in stops:
            if stop in shown and stop not in plain:
                cuts.append(without(shown[: shown.index(stop)]))
        if cuts:
            return min(cuts, key=len), True
    return tokenizer.decode(ids, continues=True), False


def test_stop_strings_with_special_tokens(tokenizer: Tokenizer) -> None:
    """Random answers; stops cut out of them, of text, special tokens and both."""
    draw = random.Random(3)
    letters = [i for i in range(300, 2000) if tokenizer.token_of(i).isascii()]  # type: ignore[union-attr]
    found = held = 0
    for _ in range(400):
        ids = [draw.choice([BOS, EOS, *draw.sample(letters, 4)]) for _ in range(10)]
        shown = tokenizer.decode(ids, skip_special=False, continues=True)
        starts = [draw.randrange(len(shown)) for _ in range(2)]
        stops = [shown[at : at + draw.randrange(3, 9)] for at in starts]
        special = ["<s>", "</s>", draw.choice("ab") + "<s>", "</s><s>", "<s>" + draw.choice("ab")]
        stops += draw.sample(special, draw.randrange(2))
        # A part of a special token's text is no text of an answer.
        stops = [stop for stop in stops if not {*"<>/"} & set(without(stop))]
        expected, stopped = brute(tokenizer, ids, stops)
        request = Request((5,), stop=tuple(stops))
        writer, pieces = Writer(request, tokenizer), []
        for token in ids:
            pieces.append(writer.push(token, False))
            if writer.stopped:
                break
        written = "".join(pieces) + writer.finish()
        assert (written, writer.stopped) == (expected, stopped), (shown, stops)
        found += stopped
        held += any("<s>" in stop or "</s>" in stop for stop in stops)
    print(f"{found} of 400 answers stopped, {held} had special stops")
    assert 100 < found < 390 and held > 150


def test_the_end_token_counts_for_a_stop_string(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("so it is", add_special=False), EOS]
    for stop, text in (("is</s>", "so it "), ("</s>", "so it is"), ("is<s>", "so it is")):
        request = Request((5,), stop=(stop,))
        written, stopped = write(request, tokenizer, ids, frozenset({EOS}))
        assert (written.strip(), stopped) == (text.strip(), stop != "is<s>")
    spelled = tokenizer.encode("so </s> is", add_special=False)
    assert write(Request((5,), stop=("</s>",)), tokenizer, spelled, frozenset())[1]


@pytest.mark.parametrize(
    "stop",
    [
        {"stop": "<s>"},
        {"stop": ["never", "<s>"]},
        {"stop_token_ids": [BOS]},
        {"stop_token_ids": (7, BOS)},
    ],
)
@pytest.mark.parametrize("form", ["one", "batch", "stream", "chat", "beams", "n"])
def test_special_tokens_stop(lm: edgelm.LanguageModel, form: str, stop: dict[str, Any]) -> None:
    """A special token that ends nothing by itself, made the likeliest."""
    lm.tokenizer.chat_template = "{{ messages[0].content }}"
    options: dict[str, Any] = {"max_new_tokens": 5, "logit_bias": {BOS: 1000.0}, **stop}
    free = lm.generate(PROMPT, max_new_tokens=5, logit_bias={BOS: 1000.0})
    assert free.token_ids == (BOS,) * 5 and free.finish_reason == "length"
    if form == "one":
        answers = [lm.generate(PROMPT, **options)]
    elif form == "batch":
        answers = lm.generate([PROMPT, "The"], **options)
    elif form == "n":
        answers = lm.generate(PROMPT, n=2, **options)
    elif form == "beams":
        answers = [lm.generate(PROMPT, beams=2, **options)]
    elif form == "chat":
        answers = [lm.chat([{"role": "user", "content": PROMPT}], **options)]
    else:
        chunks = [*lm.stream(PROMPT, **options)]
        assert "".join(chunk.text for chunk in chunks) == ""
        assert chunks[-1].finish_reason == "stop"
        return
    for answer in answers:
        assert (answer.token_ids, answer.text, answer.finish_reason) == ((BOS,), "", "stop")


def test_ids_that_stop_have_no_text(lm: edgelm.LanguageModel) -> None:
    free = lm.generate(PROMPT, max_new_tokens=20)
    third = free.token_ids[3]
    at = free.token_ids.index(third)
    for out in (
        lm.generate(PROMPT, max_new_tokens=20, stop_token_ids=[third]),
        lm.generate([PROMPT, PROMPT], max_new_tokens=20, stop_token_ids=[third])[1],
    ):
        assert out.token_ids == free.token_ids[: at + 1] and out.finish_reason == "stop"
        assert out.text == lm.tokenizer.decode(free.token_ids[:at], continues=True)


def test_beams_stop_at_strings(lm: edgelm.LanguageModel) -> None:
    """A beam is finished where its text holds the string, and shows what stands before it."""
    options: dict[str, Any] = {"beams": 2, "n": 2, "max_new_tokens": 10, "length_penalty": 0.0}
    stop = lm.generate(PROMPT, **options)[0].text[3:5]
    out = lm.generate(PROMPT, stop=stop, **options)
    for beam in out:
        assert stop not in beam.text
        whole = lm.tokenizer.decode(beam.token_ids, continues=True)
        assert whole.startswith(beam.text) and (beam.finish_reason == "stop") == (stop in whole)
    assert any(beam.finish_reason == "stop" for beam in out)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([-1], r"stop_token_ids is \[-1\]; allowed: ids"), (["</s>"], "stop_token_ids is"),
        ([1.0], "stop_token_ids is"), ([True], "stop_token_ids is"), (2, "stop_token_ids is 2"),
        ("2", "stop_token_ids is '2'"), ([10**6], "stop_token_ids holds 1000000; allowed: 0-"),
    ],
)  # fmt: skip
def test_what_is_no_id_to_stop_at(lm: edgelm.LanguageModel, ids: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        lm.generate(PROMPT, max_new_tokens=1, stop_token_ids=ids)
    assert lm.generate(PROMPT, max_new_tokens=1, stop_token_ids=[]).finish_reason == "length"


@pytest.mark.parametrize("value", ["yes", 1, 0, [True]])
def test_parse_special_is_yes_or_no(lm: edgelm.LanguageModel, value: Any) -> None:
    with pytest.raises(UsageError, match=r"parse_special is .*allowed: True, False"):
        lm.generate(PROMPT, max_new_tokens=1, parse_special=value)


def test_a_chat_on_the_command_line_has_tools_and_variables(
    run: Run, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    (nano / "chat_template.jinja").write_text(
        "{{ tools | tojson if tools else '' }}{{ mood }}{{ messages | map(attribute='content') "
        "| join }}"
    )
    (tmp_path / "tools.json").write_text('[{"type": "function", "function": {"name": "f"}}]')
    seen: list[Any] = []
    original = edgelm.LanguageModel.chat_ids
    monkeypatch.setattr(
        edgelm.LanguageModel, "chat_ids",
        lambda self, messages, **given: (
            seen.append(self.decode(ids := original(self, messages, **given))) or ids
        ),
    )  # fmt: skip
    flags = ["--tools", tmp_path / "tools.json", "--template-variables", '{"mood": "glad"}']
    done = run("chat", nano, "--max-tokens", 1, "--quiet", *flags, piped="Hello\n")
    assert done.code == 0 and '"name": "f"' in seen[0] and "gladHello" in seen[0]
    for wrong in (["--template-variables", "{mood: 1}"], ["--tools", nano / "chat_template.jinja"]):
        done = run("chat", nano, *wrong, piped="Hello\n")
        assert done.code == 2 and f"{wrong[0]} " in done.err and "is not JSON" in done.err
    done = run("chat", nano, "--template-variables", "[1]", piped="Hello\n")
    assert done.code == 2 and "--template-variables is [1]; allowed: a mapping" in done.err
