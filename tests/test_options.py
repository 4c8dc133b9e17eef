"""The tables of options: everything follows from them, and a wrong name is told the right one."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import Run, nano, run  # noqa: F401  (fixtures)

import edgelm
from edgelm.budget.units import parse_budget
from edgelm.cli.commands import commands
from edgelm.cli.examples import EXAMPLES
from edgelm.generation import grammar
from edgelm.generation.option_table import CHAT, GENERATE, AnswerOptions
from edgelm.generation.request import Request
from edgelm.generation.sampling import SamplingSettings
from edgelm.option import options_in
from edgelm.planning.setting_table import LOAD
from edgelm.planning.settings import DTYPES, KV_DTYPES, Settings, given_chunk
from edgelm.tasks.forward_options import FORWARD
from quant import BACKENDS, CALIBRATED_METHODS, METHODS

COMMANDS = commands().commands


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=96) as model:
        yield model


def own_keywords(function: Callable[..., Any]) -> set[str]:
    """Keywords that stand in a signature, without those of its table."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}


def test_one_table() -> None:
    """What is written a second time, as a field or a keyword, is the table's."""
    answers, settings = set(options_in(AnswerOptions)), set(options_in(LOAD.table))
    assert settings == {field.name for field in dataclasses.fields(Settings)}
    fields = {field.name for field in dataclasses.fields(Request)}
    fields |= {field.name for field in dataclasses.fields(SamplingSettings)}
    # Of prompts, options and the model's defaults.
    made = {"prompt_ids", "sampling", "shares_prompt", "continues", "constraint"}
    made |= {"usual_limit", "rules", "pooling", "prompt_only", "prompt_logprobs"}
    assert answers - {"schema", "grammar"} == fields - made
    assert set(options_in(GENERATE.table)) - answers == {"parse_special"}
    prompts = own_keywords(edgelm.LanguageModel.chat_ids)
    assert set(options_in(CHAT.table)) - answers == prompts
    assert set(CHAT.own) == own_keywords(edgelm.LanguageModel.chat)
    assert set(GENERATE.own) == own_keywords(edgelm.LanguageModel.generate)
    assert set(LOAD.own) == own_keywords(edgelm.load)
    assert set(FORWARD.own) == {"input_ids", "cache"}
    for call in (GENERATE, LOAD, FORWARD):
        kinds = call.own | options_in(call.table)
        assert [name for name, option in kinds.items() if option.kind is None] in ([], ["schema"])


def flags(command: str) -> dict[str, Any]:
    """The options of a command by keyword."""
    return {option.name: option for option in COMMANDS[command].params}


def test_the_command_line_has_what_the_tables_have() -> None:
    for command, call in (("generate", GENERATE), ("generate", LOAD), ("chat", CHAT)):
        told = flags(command)
        for name, option in options_in(call.table).items():
            if option.flag is not None and (command, name) != ("chat", "logprobs"):
                assert told[name].help == f"{option.help} Allowed: {option.allowed}." or (
                    not option.allowed and told[name].help == option.help
                )
    assert flags("generate")["max_new_tokens"].opts == ["--max-tokens", "--max-new-tokens"]


@pytest.mark.parametrize(
    ("command", "name", "allowed"),
    [
        ("generate", "backend", ("auto", *BACKENDS)),
        ("generate", "method", tuple(METHODS)),
        ("quantize", "method", (*METHODS, *CALIBRATED_METHODS)),
        ("plan", "kv", ("auto", *KV_DTYPES)),
        ("bench", "dtype", ("auto", *DTYPES)),
        ("eval", "offload", ("none", "cpu", "disk")),
        ("chat", "speculate", ("auto", "off")),
    ],
)
def test_help_lists_every_allowed_value(command: str, name: str, allowed: tuple[str, ...]) -> None:
    found = flags(command)[name].help.partition("Allowed: ")[2].rstrip(".").split(", ")
    assert found == list(allowed)


FOREIGN = {
    "max_lenght": "did you mean max_new_tokens?",
    "max_length": "did you mean max_new_tokens?",
    "n_predict": "did you mean max_new_tokens?",
    "temprature": "did you mean temperature?",
    "temp": "did you mean temperature?",
    "repeat_penalty": "did you mean repetition_penalty?",
    "stop_sequences": "did you mean stop?",
    "num_return_sequences": "did you mean n?",
    "min_tokens": "did you mean min_new_tokens?",
    "do_sample": "set temperature above 0",
    "eos_token_id": "use stop='text'",
    "streamer": "call stream()",
    "n_ctx": "did you mean context? That is an option of load().",
    "max_seq_len": "did you mean context? That is an option of load().",
    "quant": "is an option of load()",
    "labels": "is an option of forward()",
    "tools": "is an option of chat()",
    "enable_thinking": "write template_variables={'enable_thinking'",
    "chat_template_kwargs": "did you mean template_variables? That is an option of chat().",
    "colour": "allowed: max_new_tokens, min_new_tokens, temperature, ",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_wrong_option_is_told_the_right_one(lm: edgelm.LanguageModel, name: str) -> None:
    for call in (lm.generate, lm.request):
        with pytest.raises(edgelm.UsageError, match=f"^{name}") as raised:
            call("Once", **{name: 1})
        assert FOREIGN[name] in str(raised.value)


FOREIGN_SETTINGS = {
    "qant": "did you mean quant?",
    "load_in_4bit": "write quant='int4'",
    "device_map": "did you mean device?",
    "torch_dtype": "did you mean dtype?",
    "n_threads": "did you mean threads?",
    "n_gpu_layers": "write device='cuda'",
    "max_seq_len": "did you mean context?",
    "cache_type_k": "did you mean kv?",
    "trust_remote_code": "leave it out",
    "max_tokens": "did you mean max_new_tokens? That is an option of generate().",
    "colour": "allowed: quant, method, ",
}


@pytest.mark.parametrize("name", FOREIGN_SETTINGS)
def test_a_wrong_setting_is_told_the_right_one(assets: Path, name: str) -> None:
    folder = assets / "nano" / "llama"
    for call in (edgelm.load, edgelm.plan):
        with pytest.raises(edgelm.UsageError, match=f"^{name}") as raised:
            call(folder, **{name: "auto"})  # type: ignore[operator]
        assert FOREIGN_SETTINGS[name] in str(raised.value)
    with pytest.raises(edgelm.UsageError, match=f"^{name}"):
        edgelm.evaluate(folder, text="nothing is read before", **{name: "auto"})


def test_an_argument_of_another_call_is_named(assets: Path, lm: edgelm.LanguageModel) -> None:
    with pytest.raises(edgelm.UsageError, match=r"threads is an option of load\(\), and not of"):
        edgelm.plan(assets / "nano" / "llama", threads=2)  # type: ignore[call-arg]
    with pytest.raises(edgelm.UsageError, match=r"n is an option of generate\(\), and not of"):
        list(lm.stream("Once", n=2))  # type: ignore[call-arg]
    with pytest.raises(edgelm.UsageError, match="did you mean attention_mask"):
        lm.forward(torch.tensor([[5]]), atention_mask=None)  # type: ignore[call-arg]


def test_max_tokens_is_max_new_tokens(lm: edgelm.LanguageModel) -> None:
    """In every form of the call, though type checkers know one name only."""
    both: dict[str, Any] = {"max_tokens": 3}
    assert len(lm.generate("Once", **both).token_ids) == 3
    assert [len(own.token_ids) for own in lm.generate(["Once", "It"], max_tokens=[2, 3])] == [2, 3]  # type: ignore[call-overload]
    assert sum(len(chunk.token_ids) for chunk in lm.stream("Once", **both)) == 3
    assert len(asyncio.run(lm.agenerate("Once", **both)).token_ids) == 3
    assert lm.request("Once", **both).max_new_tokens == 3
    with pytest.raises(edgelm.UsageError, match="are the same option"):
        lm.generate("Once", max_new_tokens=3, **both)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"typical_p": 0}, "typical_p is 0; allowed: above 0 and up to 1"),
        ({"temperature": "hot"}, "temperature is 'hot'; allowed: 0, or 1e-6 to 1e6"),
        ({"speculate": "maybe"}, "speculate is 'maybe'; allowed: auto, off"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: a count of 1 or more"),
        ({"seed": [1, 2]}, "seed has 2 entries for 1 prompts"),
    ],
)
def test_values_are_checked_by_the_table(
    lm: edgelm.LanguageModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(edgelm.UsageError, match=message):
        lm.generate("Once", **options)


def test_counts_and_sizes() -> None:
    for text, count in (("4k", 4096), ("4K", 4096), ("100", 100)):
        assert given_chunk(Settings(chunk=text)) == count
    for wrong in ("4kk", "", "k", "0", "1e3", 0):
        with pytest.raises(edgelm.UsageError, match="allowed: auto, or a count"):
            Settings(chunk=wrong)
    for text in ("8", "1", "6144"):
        with pytest.raises(edgelm.UsageError, match=f"no unit; did you mean {text}GiB"):
            Settings(budget=text)
    assert Settings(budget=str(6 << 30)).budget == str(6 << 30)
    sizes = [parse_budget(text, 1000) for text in ("6G", "6GiB", "6144MiB", "6144m", "70%")]
    assert sizes == [6 << 30, 6 << 30, 6 << 30, 6 << 30, 700]


FLAGGED = {
    "--context is '0';": ("--context", 0),
    "--temperature is -1": ("--temperature", -1),
    "--max-tokens is '0';": ("--max-new-tokens", 0),
    "--backend is 'magic'; allowed: auto, native": ("--backend", "magic"),
    "--method 'magic'": ("--method", "magic"),
    "--budget 'lots'": ("--budget", "lots"),
    "--quant: unknown scheme": ("--quant", "int3"),
    "--threads is 0": ("--threads", 0),
    "-n is 0": ("-n", 0),
    "--offload disk": ("--budget", "300KiB"),
}


@pytest.mark.parametrize("message", FLAGGED)
def test_errors_on_the_command_line_name_flags(
    nano: Path, run: Run, message: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    if message == "--offload disk":
        monkeypatch.setattr("edgelm.loading.is_below_runtime", lambda plan: False)
    ran = run("generate", nano, "Once", "--quiet", *FLAGGED[message], "--json")
    print(ran.err)
    assert message in ran.err and message in ran.document["error"]["message"]


@pytest.mark.parametrize("name", ["draft", "quant=int4/m", "budget=1", "context"])
def test_errors_on_the_command_line_keep_the_names_of_files(
    nano: Path, run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    nano.rename(name)
    ran = run("generate", name, "Once", "--budget", "1MiB")
    assert ran.code == 3 and ran.err.startswith(f"edgelm: {name} does not fit"), ran.err


def test_ids_need_no_tokenizer_and_no_grammar(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of ids to a model without a tokenizer; nothing compiles a grammar for it."""
    monkeypatch.setattr(grammar.Constraint, "parse", lambda *_: pytest.fail("compiled a grammar"))
    with edgelm.load(assets / "tiny-random" / "llama", context=32) as lm:
        request = lm.request([1, 2, 3], max_new_tokens=3, temperature=0.0)
        with lm.batch([request], frozenset()) as batch:
            assert len(list(batch.tokens())) == 3
        with pytest.raises(edgelm.ModelFileError, match="no tokenizer"):
            lm.request("a text")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_can_be_typed(command: str) -> None:
    assert set(EXAMPLES) == set(COMMANDS)
    told = {name for option in COMMANDS[command].params for name in option.opts}
    for example in EXAMPLES[command]:
        words = shlex.split(example)
        assert words[:2] == ["edgelm", command]
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= told
    assert "Examples:" in COMMANDS[command].epilog


def test_help_shows_panels_and_examples(
    run: Run, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "120")
    shown = run("generate", "--help").out
    places = [shown.index(f"─ {panel} ─") for panel in ("Source", "Loading", "Sampling", "Output")]
    assert places == sorted(places) and "edgelm generate demo" in shown
