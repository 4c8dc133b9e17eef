"""generation_config.json: every key as in transformers, or named; wrong values; who wins."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import load_exact
from test_speculation import knowing

import edgelm
from edgelm.generation.beams import BeamSearch
from edgelm.generation.generation_keys import APPLIED, NO_MEANING, OFF
from edgelm.generation.model_defaults import model_defaults
from edgelm.generation.options import build_request
from edgelm.generation.processors import SoFar
from edgelm.generation.sampling import Sampler

FILE = Path("generation_config.json")
TEXTS = ("The king said to the king", "It is a truth universally", "Once upon a time the")
ENDS = [2, 397]


def defaults(told: dict[str, Any], vocab_size: int = 97) -> Any:
    return model_defaults(json.loads(json.dumps(told)), FILE, vocab_size)


def folder_with(assets: Path, into: Path, told: dict[str, Any], name: str = FILE.name) -> Path:
    """A copy of nano/llama whose file ``name`` also says ``told``."""
    folder = into / "model"
    folder.mkdir()
    for file in (assets / "nano" / "llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | told), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shared(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with load_exact(assets / "nano" / "llama", context=64, chunk=16, rows=3) as model:
        yield model


@pytest.fixture
def lm(shared: edgelm.LanguageModel) -> Iterator[edgelm.LanguageModel]:
    """A model whose defaults and guesses a test may replace."""
    kept = shared.defaults, shared._session.speculation
    yield shared
    shared.defaults, shared._session.speculation = kept


@pytest.fixture(scope="module")
def theirs(assets: Path) -> Any:
    import transformers

    folder = assets / "nano" / "llama"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_every_key_of_transformers_is_known() -> None:
    """In one table each; what is off says what transformers does without the key."""
    import transformers

    made = transformers.GenerationConfig()
    known = {*vars(made), *made.to_dict()} - {"_original_object_hash"}
    assert known <= {*APPLIED, *NO_MEANING, *OFF}
    assert len({*APPLIED, *NO_MEANING, *OFF}) == len(APPLIED) + len(NO_MEANING) + len(OFF)
    theirs = made._get_default_generation_params()
    for key, value in OFF.items():
        assert theirs.get(key, value) == value, key


RULES: list[dict[str, Any]] = [
    {"sequence_bias": [[[3], 2.5], [[7, 2, 4], -9.0], [[9, 7, 7, 2, 5], 8.0], [[7], 1]]},
    {"sequence_bias": [[[3], 2.5], [[3], -1.5]], "repetition_penalty": 1.7},
    {"bad_words_ids": [[3], [2, 4], [7], [5, 9, 7, 7, 2, 6]]},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": "1.2"},
    {"min_new_tokens": 3},
    {"min_length": 6},
    {"min_length": 9, "min_new_tokens": 1},
    {"forced_eos_token_id": 11},
    {"forced_eos_token_id": [11, 12], "max_new_tokens": 2},
    {"forced_bos_token_id": 5},
    {"begin_suppress_tokens": [1, 2, 3]},
    {"begin_suppress_tokens": [1, 2, 3], "forced_bos_token_id": 5},
    {"suppress_tokens": [4, 0, 4000]},
    {"exponential_decay_length_penalty": [1, 1.5]},
    {"exponential_decay_length_penalty": [0, 0.5], "suppress_tokens": [7]},
    {"do_sample": True, "epsilon_cutoff": 0.02},
    {"do_sample": True, "eta_cutoff": 0.05},
    {"do_sample": True, "temperature": "0.7", "top_k": 40.0, "top_p": 0.9, "min_p": 0.01,
     "typical_p": 0.9, "epsilon_cutoff": 0.005, "eta_cutoff": 0.03},
    {"do_sample": True, "temperature": 1.3, "min_new_tokens": 2, "no_repeat_ngram_size": 1,
     "sequence_bias": [[[5], 4.0]], "bad_words_ids": [[1]], "suppress_tokens": [9],
     "begin_suppress_tokens": [6], "exponential_decay_length_penalty": [0, 1.1],
     "forced_eos_token_id": 7, "repetition_penalty": 1.3},
]  # fmt: skip


@pytest.mark.parametrize("prompt", [(3, 5, 5, 9), (5,)])
@pytest.mark.parametrize("told", RULES, ids=lambda told: "+".join(told))
def test_processors_are_those_of_transformers(
    told: dict[str, Any], prompt: tuple[int, ...]
) -> None:
    """Random logits after none to five new ids, of six: the same tokens stay, with their logits."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    settings = transformers.GenerationConfig(**_typed(told))
    settings.top_k = settings.top_k or 0  # 50 is what transformers fills in
    if settings.min_new_tokens:  # as generate() prepares it
        settings.min_length = None
    settings.max_length = len(prompt) + (settings.max_new_tokens or 6)
    settings._eos_token_tensor = torch.tensor([7, 11])
    chain = model._get_logits_processor(settings, len(prompt), model_kwargs={})
    own = defaults(told | {"eos_token_id": [7, 11]})
    request = build_request(prompt, {}, own, lambda *_: pytest.fail("no grammar"))
    sampling = request.sampling
    chosen = [*sampling.adjustments(), *(sampling.filters() if sampling.temperature else ())]
    changed, new = 0, [7, 7, 2, 5, 7]
    for count in range(6):
        ids = SoFar(
            prompt, new[:count], frozenset([7, 11, 4000]), request.limit(len(prompt) + 6, 97)
        )
        logits = torch.randn(97, generator=torch.Generator().manual_seed(count)) * 2
        wanted = chain(torch.tensor([[*prompt, *new[:count]]]), logits[None].clone())[0]
        found = logits.clone()
        for process in chosen:
            process(found, ids)
        assert torch.equal(found.isinf(), wanted.isinf()), count
        torch.testing.assert_close(found, wanted)
        changed += not torch.equal(found, logits)
    assert changed or ("forced_bos_token_id" in told and len(prompt) > 1)


def _typed(told: dict[str, Any]) -> dict[str, Any]:
    """As transformers wants it: it takes no plain spellings."""
    typed = dict(told)
    for key in ("temperature", "repetition_penalty"):
        if key in typed:
            typed[key] = float(typed[key])
    if "top_k" in typed:
        typed["top_k"] = int(typed["top_k"])
    if "sequence_bias" in typed:
        typed["sequence_bias"] = [[own, float(bias)] for own, bias in typed["sequence_bias"]]
    return typed


ANSWERS: list[dict[str, Any]] = [
    {"bad_words_ids": [[265], [263, 262]]},
    {"begin_suppress_tokens": [265, 263]},
    {"sequence_bias": [[[265], -20.0], [[261, 397], -20.0]]},
    {"min_new_tokens": 12},
    {"min_length": 19},
    {"max_length": 12},
    {"max_new_tokens": 3},
    {"no_repeat_ngram_size": 1},
    {"forced_eos_token_id": 2, "min_new_tokens": 20},
    {"exponential_decay_length_penalty": [0, 2.5]},
    {"suppress_tokens": [265], "min_new_tokens": 5, "no_repeat_ngram_size": 3},
]


@pytest.mark.parametrize("told", ANSWERS, ids=lambda told: "+".join(told))
def test_answers_are_those_of_transformers(
    lm: edgelm.LanguageModel, theirs: Any, told: dict[str, Any]
) -> None:
    """Alone, in a batch, with guesses and as beams; and none of the keys is without effect."""
    prompts = [lm.encode(text) for text in TEXTS]
    limit = {} if {"max_length", "max_new_tokens"} & told.keys() else {"max_new_tokens": 16}
    wanted = [_their_answer(theirs, ids, told | limit) for ids in prompts]
    assert wanted != [_their_answer(theirs, ids, {"max_new_tokens": 16}) for ids in prompts]
    lm.defaults = defaults(told | {"eos_token_id": ENDS}, lm.config.vocab_size)
    requests = [lm.request(ids, **limit) for ids in prompts]
    assert [_answers(lm, [own])[0] for own in requests] == wanted
    assert _answers(lm, requests) == wanted
    for own, ids in zip(requests, wanted, strict=True):
        knowing(lm, tuple(ids))
        assert _answers(lm, [own]) == [ids]
    with lm._running() as session:
        ends = frozenset(ENDS)
        search = BeamSearch(session, requests[0], 3, 1.0, ends, lambda: lm.tokenizer)
        beams = [list(beam.ids) for beam in search.run()]
    found = _their_answer(theirs, prompts[0], told | limit, num_beams=3, num_return_sequences=3)
    assert [ids[: len(own)] for ids, own in zip(found, beams, strict=True)] == beams


def _answers(lm: edgelm.LanguageModel, requests: list[Any]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    with lm.batch(requests, frozenset(ENDS)) as batch:
        for answer, token in batch.tokens():
            found[answer.index].append(token)
    return found


def _their_answer(model: Any, prompt: list[int], told: dict[str, Any], **beams: Any) -> Any:
    import transformers

    settings = transformers.GenerationConfig(eos_token_id=ENDS, pad_token_id=2, **told, **beams)
    made = model.generate(torch.tensor([prompt]), generation_config=settings)
    rows = made[:, len(prompt) :].tolist()
    return rows if beams else rows[0]


WRONG: list[tuple[str, Any, str]] = [
    ("do_sample", "maybe", "true or false"),
    ("do_sample", [], "true or false"),
    ("temperature", "hot", "a number, 0, or 1e-6 to 1e6"),
    ("temperature", float("nan"), "a number, 0, or 1e-6 to 1e6"),
    ("temperature", True, "a number"),
    ("temperature", -0.5, "0, or 1e-6 to 1e6"),
    ("top_k", 1.5, "a whole number, 0 "),
    ("top_k", -1, "a whole number, 0 "),
    ("top_k", 2**31, "a whole number, 0 "),
    ("top_k", float("inf"), "a whole number, 0 "),
    ("top_p", [], "a number, above 0 and up to 1"),
    ("top_p", 1.5, "above 0 and up to 1"),
    ("min_p", [1], "a number, 0 "),
    ("typical_p", {}, "a number, above 0"),
    ("epsilon_cutoff", 2, "a number, 0 "),
    ("eta_cutoff", "x", "a number, 0 "),
    ("repetition_penalty", 0, "a number, above 0"),
    ("repetition_penalty", 10**400, "a number, above 0"),
    ("no_repeat_ngram_size", "two", "a whole number, 0 "),
    ("max_new_tokens", 0, "a count of 1 or more"),
    ("max_new_tokens", True, "a count of 1 or more"),
    ("max_length", -3, "a whole number, 1 or more"),
    ("min_new_tokens", {}, "a whole number, 0 "),
    ("min_length", 10**30, "a whole number, 0 "),
    ("stop_strings", "", "a text or a list of texts"),
    ("stop_strings", [5], "a text or a list of texts"),
    ("suppress_tokens", [-1], "a list of token ids"),
    ("suppress_tokens", {"5": 1}, "a list of token ids"),
    ("begin_suppress_tokens", [[5]], "a list of token ids"),
    ("bad_words_ids", [5], "a list of lists of token ids"),
    ("bad_words_ids", [[]], "a list of lists of token ids"),
    ("bad_words_ids", "word", "a list of lists of token ids"),
    ("sequence_bias", {"(5,)": -1.0}, "a list of pairs"),
    ("sequence_bias", [[5, -1.0]], "a list of pairs"),
    ("sequence_bias", [[[5], float("-inf")]], "a list of pairs"),
    ("sequence_bias", [[[5], 1e39]], "a list of pairs"),
    ("sequence_bias", [[[97], 1.0]], "allowed: 0-96"),
    ("forced_bos_token_id", 97, "allowed: 0-96"),
    ("forced_eos_token_id", [5, 97], "allowed: 0-96"),
    ("exponential_decay_length_penalty", [5], "a pair"),
    ("exponential_decay_length_penalty", "51", "a pair"),
    ("exponential_decay_length_penalty", [5, 0], "a factor above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_wrong_values_are_named(key: str, value: Any, allowed: str) -> None:
    """The file, the key, what was given and what is allowed; for each key that is applied."""
    assert {own for own, _, _ in WRONG} == set(APPLIED)
    with pytest.raises(edgelm.ModelFileError, match=rf"^{FILE}: {key} ") as raised:
        defaults({key: value})
    told = str(raised.value)
    print(told)
    assert allowed in told and (repr(value)[:60] in told or "allowed: 0-96" in told)
    assert "delete it" in told and len(told) < 400


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.sampled_from(["1", "0.5", "-1", "true"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*APPLIED, *OFF, *NO_MEANING, "x"]), _VALUES, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_values_are_taken_or_refused(told: dict[str, Any]) -> None:
    """Nothing but ModelFileError, and what is taken draws a token."""
    try:
        own = defaults(told)
    except edgelm.ModelFileError:
        return
    request = build_request((3, 5), {"max_new_tokens": 4}, own, lambda *_: pytest.fail("none"))
    with suppress(edgelm.UsageError):  # every token may be banned
        ids = SoFar((3, 5), [7], frozenset([7]), 4)
        assert 0 <= Sampler(request.sampling)(torch.linspace(-1, 1, 97), 96, ids) < 97


@pytest.mark.parametrize(
    ("plain", "meant"),
    [
        ({"do_sample": "True", "temperature": "0.7"}, {"do_sample": True, "temperature": 0.7}),
        ({"do_sample": 1, "top_k": 50.0}, {"do_sample": True, "top_k": 50}),
        ({"repetition_penalty": "1"}, {"repetition_penalty": 1.0}),
        ({"suppress_tokens": 5}, {"suppress_tokens": [5]}),
        ({"suppress_tokens": [5.0, "6"]}, {"suppress_tokens": [5, 6]}),
        ({"stop_strings": "x"}, {"stop_strings": ["x"]}),
        ({"max_length": "12"}, {"max_length": 12}),
        ({"top_p": None}, {}),
    ],
)
def test_plain_spellings_are_taken(plain: dict[str, Any], meant: dict[str, Any]) -> None:
    assert defaults(plain) == defaults(meant)
    assert defaults(meant) != defaults({}) or not meant or meant == {"repetition_penalty": 1.0}


def test_one_warning_names_what_is_not_applied(
    assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {
        "num_beams": 3, "max_time": 2.5, "guidance_scale": 1.5, "chat_format": "chatml",
        "length_penalty": 1.0, "early_stopping": False, "cache_implementation": "hybrid",
        "num_assistant_tokens": 5, "top_k": 50, "penalty_alpha": None,
    }  # fmt: skip
    folder = folder_with(assets, tmp_path, told)
    with caplog.at_level(logging.WARNING, "edgelm"), load_exact(folder, context=64) as lm:
        for _ in range(2):
            lm.generate("Once", max_new_tokens=2)
    [warning] = [own.message for own in caplog.records if "not applied" in own.message]
    print(warning)
    assert str(folder / FILE) in warning
    for named in ("num_beams': 3 (write beams=", "max_time': 2.5", "scale': 1.5", "t': 'chatml'"):
        assert named in warning
    for silent in ("length_penalty", "early", "cache", "assistant", "top_k", "alpha", "eos", "use"):
        assert silent not in warning


def test_files_of_the_assets_are_silent(assets: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [*assets.rglob("generation_config.json"), *assets.rglob("config.json")]
    for path in found:
        model_defaults(json.loads(path.read_text("utf-8")), path, 1 << 20)
    assert len(found) > 10 and not caplog.records


def test_an_old_model_says_it_in_its_config(assets: Path, tmp_path: Path) -> None:
    """As in transformers: only without a generation_config.json."""
    told = {"do_sample": True, "top_k": 7, "temperature": 0.6, "num_beams": 1, "chat_format": "x"}
    folder = folder_with(assets, tmp_path, told, "config.json")
    for top_k in (0, 7):
        with load_exact(folder, context=64) as lm:
            assert lm.request("a").sampling.top_k == top_k
        (folder / FILE).unlink(missing_ok=True)


def test_what_the_caller_says_counts(lm: edgelm.LanguageModel) -> None:
    told = {
        "do_sample": True, "temperature": 0.7, "top_k": 20, "max_new_tokens": 5,
        "stop_strings": "x", "min_new_tokens": 3, "no_repeat_ngram_size": 2, "suppress_tokens": [5],
        "repetition_penalty": 1.2,
    }  # fmt: skip
    lm.defaults = defaults(told, lm.config.vocab_size)
    own, ids = lm.request("a"), lm.encode("a")
    assert (own.sampling.temperature, own.sampling.top_k, own.stop) == (0.7, 20, ("x",))
    assert own.sampling.min_new_tokens == 3 and own.limit(64, 512) == 5
    given = lm.request(
        "a", temperature=0.0, top_k=0, max_new_tokens=40, stop=[], min_new_tokens=0,
        no_repeat_ngram_size=0, banned_tokens=[], repetition_penalty=1.0,
    )  # fmt: skip
    assert given.limit(64, 512) == 40 and given.stop == () and not given.sampling.adjustments()
    assert given.sampling.temperature == 0
    lm.defaults = defaults(told | {"do_sample": False}, lm.config.vocab_size)
    assert lm.request("a").sampling.temperature == 0  # greedy, and filters for who samples
    assert lm.request("a", temperature=0.5).sampling.top_k == 20
    # A limit of the file may be above what the context holds; one of the caller may not.
    lm.defaults = defaults({"max_new_tokens": 1000}, lm.config.vocab_size)
    assert len(lm.generate("a", stop=[]).token_ids) <= 64 - len(ids)
    with pytest.raises(edgelm.ContextLengthError):
        lm.generate("a", max_new_tokens=1000)


def test_a_prompt_as_long_as_max_length(lm: edgelm.LanguageModel) -> None:
    lm.defaults = defaults({"max_length": 5}, lm.config.vocab_size)
    ids = lm.encode(TEXTS[0])
    with pytest.raises(edgelm.UsageError, match=rf"{len(ids)} tokens.*max_length.*max_new_tokens"):
        lm.generate(ids)
    assert len(lm.generate(ids, max_new_tokens=2).token_ids) == 2
    assert len(lm.generate(ids[:4]).token_ids) == 1


def test_stop_strings_of_the_file_stop(lm: edgelm.LanguageModel, theirs: Any, assets: Path) -> None:
    """The ids of transformers, whose last one holds the stop string; the text ends before it."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(assets / "nano" / "llama")
    ids = lm.encode(TEXTS[0])
    free = lm.generate(ids, max_new_tokens=16)
    stop = free.text[8:10]
    lm.defaults = defaults({"stop_strings": [stop]}, lm.config.vocab_size)
    wanted = theirs.generate(
        torch.tensor([ids]), max_new_tokens=16, stop_strings=[stop], tokenizer=tokenizer
    )
    out = lm.generate(ids, max_new_tokens=16)
    assert list(out.token_ids) == wanted[0, len(ids) :].tolist() and out.finish_reason == "stop"
    assert out.text == free.text[: free.text.index(stop)]
    best = lm.generate(ids, beams=2, stop=[], max_new_tokens=16)
    cut = lm.generate(ids, beams=2, max_new_tokens=16)
    assert stop not in cut.text and (stop in best.text) == (cut.text != best.text)


@pytest.mark.parametrize("told", [{"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.2}])
def test_draws_obey_cutoffs(told: dict[str, Any]) -> None:
    """The library's sampler has no cutoffs: it is not asked, or unlikely tokens would come."""
    logits = torch.tensor([2.0, 1.5, 0.0, -0.5, -1.0, -1.0, -1.5])
    request = build_request((1,), {}, defaults({"do_sample": True} | told), lambda *_: None)  # type: ignore[arg-type,return-value]
    sample = Sampler(request.sampling)
    kept = logits.clone()
    for process in request.sampling.filters():
        process(kept, SoFar())
    drawn = {sample(logits.clone(), 0, SoFar(new=[0] * index)) for index in range(300)}
    assert drawn == set(kept.isfinite().nonzero().flatten().tolist()) and len(drawn) == 2
