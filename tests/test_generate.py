"""Generation: the loop, stop strings, streams, cancelling, threads, prefixes, statistics."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgelm
from edgelm.generation.writer import StopStrings


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=160, chunk=16) as model:
        yield model


PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good"


def test_a_stream_is_the_result_in_pieces(lm: edgelm.LanguageModel) -> None:
    whole = lm.generate(PROMPT, max_new_tokens=30)
    chunks = list(lm.stream(PROMPT, max_new_tokens=30))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    assert len(whole.token_ids) == 30 and whole.finish_reason == "length"
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].stats is not None and whole.text.strip()


def test_the_loop_equals_forward(lm: edgelm.LanguageModel) -> None:
    """Greedy ids of the loop (chunks of 16) are the arg-max of one forward over everything."""
    import torch

    out = lm.generate(PROMPT, max_new_tokens=25)
    prompt = lm.encode(PROMPT)
    assert len(prompt) > 16
    whole = torch.tensor([[*prompt, *out.token_ids]])
    best = lm.forward(whole).logits[0].argmax(-1)
    assert tuple(best[len(prompt) - 1 : -1].tolist()) == out.token_ids


def test_a_chunk_is_filled(lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt runs in as few steps as the plan's chunk of 16 allows."""
    sizes, original = [], lm._session.engine.run

    def counted(cache, batch):
        sizes.append(sum(len(entry.tokens) for entry in batch))
        return original(cache, batch)

    monkeypatch.setattr(lm._session.engine, "run", counted)
    lm.generate([5] * 40, max_new_tokens=3)
    assert sizes == [16, 16, 8, 1, 1]


def test_list_input_gives_a_list(lm: edgelm.LanguageModel) -> None:
    prompts = [PROMPT, "The whale"]
    both = lm.generate(prompts, max_new_tokens=8)
    assert [r.text for r in both] == [lm.generate(p, max_new_tokens=8).text for p in prompts]


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_rows_of_a_batch_get_what_each_gets_alone(assets: Path, rows: int) -> None:
    """Five prompts of different lengths, limits, seeds and temperatures on fewer or more rows."""
    prompts = [PROMPT, "The whale", PROMPT[:30], "Call me", "She said that " * 4]
    options = {
        "max_new_tokens": [7, 20, 3, 12, 9],
        "seed": [1, 2, 3, 4, 5],
        "temperature": [0.0, 0.8, 0.0, 1.2, 0.0],
    }
    folder = assets / "nano" / "llama"
    with edgelm.load(folder, quant="none", context=96, chunk=16, rows=rows) as lm:
        together = lm.generate(prompts, **options)
        for index, prompt in enumerate(prompts):
            own = {name: values[index] for name, values in options.items()}
            alone = lm.generate(prompt, **own)
            assert together[index].token_ids == alone.token_ids, prompt
            assert together[index].text == alone.text
            assert together[index].finish_reason == alone.finish_reason
            assert together[index].stats.seed == options["seed"][index]
        stop = together[1].text[8:11]
        stopped = lm.generate(prompts, stop=stop, **options)
        assert stopped[1].text == together[1].text[: together[1].text.index(stop)]
        with pytest.raises(edgelm.UsageError, match="5 prompts"):
            lm.generate(prompts, seed=[1, 2])


def test_stop_strings_cut_the_text(lm: edgelm.LanguageModel) -> None:
    whole = lm.generate(PROMPT, max_new_tokens=40).text
    stop = whole[20:26]
    out = lm.generate(PROMPT, max_new_tokens=40, stop=stop)
    assert out.text == whole[: whole.index(stop)]
    assert out.finish_reason == "stop" and out.stats.new_tokens < 40
    unmet = lm.generate(PROMPT, max_new_tokens=40, stop=["\x00never", whole[-3:] + "\x00"])
    assert unmet.text == whole and unmet.finish_reason == "length"


def test_stop_strings_across_pieces() -> None:
    stops = StopStrings(("abcd", "xyz"))
    assert stops.push("12ab") == "12"
    assert stops.push("c3") == "abc3"
    assert stops.push("xxy") == "x"
    assert stops.push("z99") == "" and stops.found
    assert stops.finish() == ""


def test_end_tokens_are_a_union(lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of config and tokenizer both stop; the end token is in the ids, not in the text."""
    free = lm.generate(PROMPT, max_new_tokens=20)
    third = free.token_ids[2]
    for owner in ("config", "tokenizer"):
        with monkeypatch.context() as patch:
            if owner == "config":
                changed = type(lm.config)(**{**lm.config.__dict__, "eos_ids": (third,)})
                patch.setattr(lm, "config", changed)
            else:
                patch.setattr(lm.tokenizer, "eos_ids", frozenset({third}))
            out = lm.generate(PROMPT, max_new_tokens=20)
        index = free.token_ids.index(third)
        assert out.token_ids == free.token_ids[: index + 1], owner
        assert out.finish_reason == "stop" and free.text.startswith(out.text), owner


def test_a_seed_repeats_and_is_reported(lm: edgelm.LanguageModel) -> None:
    options = {"max_new_tokens": 30, "temperature": 1.5}
    first = lm.generate(PROMPT, seed=11, **options)
    assert lm.generate(PROMPT, seed=11, **options).token_ids == first.token_ids
    assert lm.generate(PROMPT, seed=12, **options).token_ids != first.token_ids
    drawn = lm.generate(PROMPT, **options)
    again = lm.generate(PROMPT, seed=drawn.stats.seed, **options)
    assert again.token_ids == drawn.token_ids


def test_a_kept_prefix_is_not_run_again(lm: edgelm.LanguageModel) -> None:
    first = lm.generate(PROMPT, max_new_tokens=6)
    longer = [*lm.encode(PROMPT), *first.token_ids, *lm.encode(" and the whale")[1:]]
    fresh = lm.generate(longer, max_new_tokens=10)
    assert fresh.stats.kept_tokens == 0
    lm.generate(PROMPT, max_new_tokens=6)
    kept = lm.generate(longer, max_new_tokens=10, keep_prefix=True)
    assert kept.stats.kept_tokens >= len(lm.encode(PROMPT)) + 5
    assert kept.token_ids == fresh.token_ids


def test_cancelled_within_one_token_and_the_next_call_works(lm: edgelm.LanguageModel) -> None:
    expected = lm.generate(PROMPT, max_new_tokens=12)
    event, seen = threading.Event(), 0
    for chunk in lm.stream(PROMPT, max_new_tokens=100, stop_event=event):
        seen += len(chunk.token_ids)
        if seen >= 5:
            event.set()
    assert chunk.finish_reason == "cancelled" and seen <= 7
    stream = lm.stream(PROMPT, max_new_tokens=100)
    next(stream)
    stream.close()
    assert lm.generate(PROMPT, max_new_tokens=12).token_ids == expected.token_ids


def test_an_interrupt_leaves_the_model_usable(
    lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lm.generate(PROMPT, max_new_tokens=12)
    original, calls = lm._session.engine.run, 0

    def interrupted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(lm._session.engine, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.generate(PROMPT, max_new_tokens=12)
    assert lm.generate(PROMPT, max_new_tokens=12).token_ids == expected.token_ids


def test_other_threads_wait(lm: edgelm.LanguageModel) -> None:
    expected = lm.generate(PROMPT, max_new_tokens=10).token_ids
    found: list[tuple[int, ...]] = []
    stream = lm.stream(PROMPT, max_new_tokens=10)
    next(stream)
    other = threading.Thread(
        target=lambda: found.append(lm.generate(PROMPT, max_new_tokens=10).token_ids)
    )
    other.start()
    time.sleep(0.05)
    assert not found
    with pytest.raises(edgelm.UsageError, match="still being streamed"):
        lm.generate("nested")
    list(stream)
    other.join(timeout=60)
    assert found == [expected]


def test_statistics_add_up(lm: edgelm.LanguageModel) -> None:
    start = time.perf_counter()
    stats = lm.generate(PROMPT, max_new_tokens=9).stats
    wall = time.perf_counter() - start
    assert stats.prompt_tokens == len(lm.encode(PROMPT)) and stats.new_tokens == 9
    assert 0 < stats.prefill_s + stats.decode_s <= wall
    assert stats.decode_tok_s == pytest.approx(8 / stats.decode_s)
    assert stats.kernels["attn"] and stats.to_dict()["decode_tok_s"] == stats.decode_tok_s


def test_score_is_the_sum_of_log_likelihoods(lm: edgelm.LanguageModel) -> None:
    ids = lm.encode("The whale is white")
    start = len(lm.encode("The whale"))
    assert lm.encode("The whale") == ids[:start]
    expected = float(lm.log_likelihoods(ids)[start - 1 :].sum())
    assert lm.score("The whale", " is white") == pytest.approx(expected)
    assert expected < 0


def test_results_are_picklable_and_a_model_is_not(lm: edgelm.LanguageModel) -> None:
    out = lm.generate(PROMPT, max_new_tokens=3)
    assert pickle.loads(pickle.dumps(out)) == out
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(lm)


def test_wrong_requests(lm: edgelm.LanguageModel) -> None:
    for call in (
        lambda: lm.generate(""),
        lambda: lm.generate([]),
        lambda: lm.generate([1, 10**6]),
        lambda: lm.generate([1, -1]),
        lambda: lm.generate(PROMPT, max_new_tokens=0),
        lambda: lm.generate(PROMPT, stop=""),
        lambda: lm.generate(PROMPT, stop=["a", ""]),
        lambda: lm.generate(PROMPT, temperature=-1.0),
    ):
        with pytest.raises(edgelm.UsageError):
            call()
    with pytest.raises(edgelm.ContextLengthError) as caught:
        lm.generate([5] * 150, max_new_tokens=11)
    assert (caught.value.given, caught.value.allowed) == (161, 160)
    assert lm.generate([5] * 150, max_new_tokens=10).finish_reason in ("length", "stop")


def test_a_closed_model_says_so(assets: Path) -> None:
    model = edgelm.load(assets / "nano" / "llama", context=32)
    model.close()
    with pytest.raises(edgelm.EdgeLMError, match="closed"):
        model.generate("x")
