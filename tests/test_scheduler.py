"""Answers of several calls share rows and steps; each is what it is alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import load_exact

import edgelm
from edgelm.generation import scheduler
from edgelm.generation.request import Request

NEEDED_S = 60.0
CHUNK = 16
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune "


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def lm(assets: Path, request: pytest.FixtureRequest) -> Iterator[edgelm.LanguageModel]:
    """Three rows; Gemma 2's window is 64, so that its rings go round."""
    folder = assets / "nano" / request.param
    with edgelm.load(folder, quant="int8", context=224, chunk=CHUNK, rows=3, threads=1) as model:
        yield model


class Steps:
    """The rows of every step; ``then[n]`` is called when step ``n`` (from 1) begins."""

    def __init__(self, lm: edgelm.LanguageModel, patch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[tuple[int, int]]] = []
        self.then: dict[int, Any] = {}
        assert lm._session is not None
        original = lm._session.engine.run

        def noted(cache: Any, batch: Any) -> Any:
            self.rows.append([(entry.row, len(entry.tokens)) for entry in batch])
            self.then.get(len(self.rows), bool)()
            return original(cache, batch)

        patch.setattr(lm._session.engine, "run", noted)


def options_of(index: int) -> dict[str, Any]:
    hot = {"temperature": 0.9, "seed": index, "top_k": 40}
    own: dict[str, Any] = {"max_new_tokens": 3 + 5 * (index % 4)}
    return own | (hot if index % 2 else {"temperature": 0.0}) | {"keep_prefix": index % 3 == 0}


def prompt_of(index: int) -> list[int]:
    generator = torch.Generator().manual_seed(index)
    shared = torch.randint(5, 900, (40,), generator=torch.Generator().manual_seed(77)).tolist()
    own = torch.randint(5, 900, (1 + 17 * (index % 6),), generator=generator).tolist()
    return [*(shared if index % 2 else []), *own]


def test_calls_of_many_threads_get_what_each_gets_alone(lm: edgelm.LanguageModel) -> None:
    """Mixed lengths, seeds and shared beginnings; every fourth is cancelled or closed half read."""
    alone = [lm.generate(prompt_of(i), **options_of(i)).token_ids for i in range(12)]

    def work(index: int) -> tuple[int, tuple[int, ...], bool]:
        event, ids = threading.Event(), ()
        stream = lm.stream(prompt_of(index), stop_event=event, **options_of(index))
        for chunk in stream:
            ids += chunk.token_ids
            if index % 4 == 3 and len(ids) >= 2:
                stream.close() if index % 8 == 3 else event.set()
        return index, ids, index % 4 == 3

    asked = [*range(12)] * 2
    random.Random(3).shuffle(asked)
    with ThreadPoolExecutor(8) as pool:
        for index, ids, cut in pool.map(work, asked, timeout=NEEDED_S):
            assert ids == (alone[index][: len(ids)] if cut else alone[index]), index
    assert lm.load_of_rows() == (0, 0)


def test_answers_of_two_calls_share_steps(
    lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that comes while another's answer runs joins its next step, in a row of its own."""
    alone = lm.generate(prompt_of(2), max_new_tokens=30, temperature=0.0).token_ids
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        steps, began = Steps(lm, patch), threading.Event()
        asked: list[Any] = []

        def ask() -> None:
            asked.append(pool.submit(lm.generate, [9, 8, 7], max_new_tokens=5, temperature=0.0))
            until = time.monotonic() + NEEDED_S
            while not lm.load_of_rows()[1] and time.monotonic() < until:
                began.wait(0.001)

        steps.then[3] = ask
        whole = lm.generate(prompt_of(2), max_new_tokens=30, temperature=0.0)
        assert len(asked[0].result(NEEDED_S).token_ids) == 5
    assert whole.token_ids == alone
    assert [len(rows) for rows in steps.rows].count(2) == 5


def test_a_prompt_runs_in_pieces_beside_running_answers(
    lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that runs gets its next id in every step, however long another's prompt is."""
    monkeypatch.setattr(scheduler, "LEAST_BESIDE", 4)
    stream = lm.stream([5, 6, 7], max_new_tokens=200, temperature=0.0)
    next(stream)
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        steps = Steps(lm, patch)
        long = pool.submit(lm.generate, prompt_of(5), max_new_tokens=2, temperature=0.0)
        for _ in stream:
            if long.done():
                break
    stream.close()
    own = steps.rows[0][0][0]
    beside = [rows for rows in steps.rows if len(rows) == 2]
    assert len(beside) >= len(prompt_of(5)) // 4 - scheduler.AHEAD
    assert all(dict(rows)[own] == 1 for rows in beside)
    assert max(count for rows in beside for _, count in rows) <= 4


def test_rows_are_given_by_arrival(lm: edgelm.LanguageModel) -> None:
    began: list[int] = []
    streams = [lm.stream([5, 6, 7 + i], max_new_tokens=20, temperature=0.0) for i in range(3)]
    for stream in streams:
        next(stream)

    def ask(index: int) -> None:
        for chunk in lm.stream([9, index + 5], max_new_tokens=2, temperature=0.0):
            began.append(index)
            del chunk

    threads = []
    for index in range(4):
        threads.append(threading.Thread(target=ask, args=(index,)))
        threads[-1].start()
        while lm.load_of_rows()[1] <= index:
            pass
    assert not began
    streams[0].close()
    for thread in threads:
        thread.join(NEEDED_S)
    for stream in streams:
        stream.close()
    assert list(dict.fromkeys(began)) == [0, 1, 2, 3]


def test_an_answer_runs_little_ahead_of_its_reader(lm: edgelm.LanguageModel) -> None:
    """Its ids are kept for whoever reads on; the others' steps go on without it."""
    alone = lm.generate([5, 6, 7], max_new_tokens=60, temperature=0.0).token_ids
    stream = lm.stream([5, 6, 7], max_new_tokens=60, temperature=0.0, speculate="off")
    ids = next(stream).token_ids
    lm.generate([8, 8, 8], max_new_tokens=50, temperature=0.0)
    assert lm._session is not None
    # The row of the first call may hold its answer still, which is whole.
    shortest = min(len(held) for held in lm._session.held if held[:3] == [5, 6, 7])
    ahead = shortest - 3 - len(ids)
    assert 0 < ahead <= scheduler.AHEAD
    assert ids + sum((chunk.token_ids for chunk in stream), ()) == alone


def test_a_step_that_breaks_off_is_run_again_for_the_others(
    lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = lm.generate(prompt_of(3), max_new_tokens=20, temperature=0.0).token_ids
    stream = lm.stream(prompt_of(3), max_new_tokens=20, temperature=0.0)
    ids = next(stream).token_ids

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        Steps(lm, patch).then[3] = interrupt
        with pytest.raises(KeyboardInterrupt):
            lm.generate([8, 8, 8], max_new_tokens=9, temperature=0.0)
    assert ids + sum((chunk.token_ids for chunk in stream), ()) == alone


def test_an_answer_that_fails_alone_leaves_the_others(lm: edgelm.LanguageModel) -> None:
    """Bans that leave no token end their own call."""
    alone = lm.generate(prompt_of(3), max_new_tokens=8, temperature=0.0).token_ids
    stream = lm.stream(prompt_of(3), max_new_tokens=8, temperature=0.0)
    ids = next(stream).token_ids
    everything = list(range(lm.config.vocab_size))
    with pytest.raises(edgelm.UsageError, match="Every token is banned"):
        lm.generate([5, 6], max_new_tokens=4, banned_tokens=everything)
    assert ids + sum((chunk.token_ids for chunk in stream), ()) == alone


def test_an_event_that_is_set_already_runs_nothing(lm: edgelm.LanguageModel) -> None:
    event = threading.Event()
    event.set()
    found = lm.generate([5, 6], max_new_tokens=3, stop_event=event)
    assert (found.finish_reason, found.token_ids) == ("cancelled", ())


def test_a_call_within_a_stream_runs_in_a_free_row(lm: edgelm.LanguageModel) -> None:
    alone = lm.generate([8, 9], max_new_tokens=6, temperature=0.0).token_ids
    for index, _ in enumerate(lm.stream([5, 6, 7], max_new_tokens=9, temperature=0.0)):
        if index < 3:
            assert lm.generate([8, 9], max_new_tokens=6, temperature=0.0).token_ids == alone


def test_a_call_that_no_row_comes_free_for_is_refused(lm: edgelm.LanguageModel) -> None:
    """This thread holds all three rows, and would wait for itself."""
    options: dict[str, Any] = {"max_new_tokens": 60, "min_new_tokens": 60, "temperature": 0.0}
    first, second, third = (lm.stream([5, 6, 7 + i], **options) for i in range(3))
    with pytest.raises(edgelm.UsageError, match="being streamed in this thread"):
        for _, _, _ in zip(first, second, third, strict=False):
            lm.generate([1, 2], max_new_tokens=2)
    for stream in (first, second, third):
        stream.close()
    assert len(lm.generate([1, 2], max_new_tokens=2, temperature=0.0).token_ids) == 2


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def two(assets: Path, request: pytest.FixtureRequest) -> Iterator[edgelm.LanguageModel]:
    """Two rows, in float32 throughout."""
    with load_exact(assets / "nano" / request.param, context=256, chunk=CHUNK, rows=2) as model:
        yield model


def turn(lm: edgelm.LanguageModel, ids: list[int], count: int = 8) -> tuple[list[int], int]:
    """An answer's ids and how much of the prompt was kept."""
    with lm.batch([Request(tuple(ids), count, keep_prefix=True)], frozenset()) as batch:
        return [token for _, token in batch.tokens()], batch.stats(0).kept_tokens


def test_conversations_keep_their_rows(two: edgelm.LanguageModel) -> None:
    """Two in turns: each goes on in its own row, whoever was answered last."""
    texts = [prompt_of(3) + prompt_of(4), prompt_of(6) + prompt_of(8) + [7, 7]]
    for round_ in range(3):
        for index, text in enumerate(texts):
            answer, kept = turn(two, text)
            assert kept == (0 if round_ == 0 else len(text) - 4), (round_, index)
            texts[index] = [*text, *answer, 50 + round_, 60, 70]


def test_a_shared_beginning_is_copied(two: edgelm.LanguageModel) -> None:
    """A second conversation takes the first one's beginning and leaves its row alone."""
    system, first, second = prompt_of(3), [11, 12, 13], [21, 22, 23]
    for other in (9, 10):
        turn(two, prompt_of(other)[::-1], 2)  # both rows hold something else
    answer, _ = turn(two, [*system, *first], 100)
    found, kept = turn(two, [*system, *second])
    assert kept == len(system)
    _, still = turn(two, [*system, *first, *answer, 5])
    assert still == len(system) + len(first) + len(answer) - 1
    with two.batch([Request((*system, *second), 8)], frozenset()) as batch:
        assert [token for _, token in batch.tokens()] == found


def test_logprobs_of_a_prompt_are_those_of_forward(two: edgelm.LanguageModel) -> None:
    ids = prompt_of(5)
    request = Request(tuple(ids), 3, prompt_logprobs=2)
    for asked in (request, replace(request, max_new_tokens=None, prompt_only=True)):
        with two.batch([asked], frozenset()) as batch:
            tokens = [token for _, token in batch.tokens()]
            found = batch.answers[0].take_prompt_logprobs()
        assert len(tokens) == (0 if asked.prompt_only else 3)
        expected = two.forward(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert [entry.token_id for entry in found] == ids[1:]
        for at, entry in enumerate(found):
            assert entry.logprob == pytest.approx(float(expected[at, ids[at + 1]]), abs=1e-4)
            assert entry.top[0][0] == int(expected[at].argmax())


def test_embeddings_are_means_of_the_last_hidden_states(two: edgelm.LanguageModel) -> None:
    ids = [prompt_of(5), prompt_of(4)]
    found = two.embed(ids)
    for own, vector in zip(ids, found, strict=True):
        out = two.forward(torch.tensor([own]), output_hidden_states=True)
        mean = out.hidden_states[-1][0].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-4)
    assert two.embed(ids[0]).shape == (two.config.hidden_size,)


def test_tasks_share_steps(lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """``agenerate`` from several tasks: fewer steps than one after the other."""
    prompts = [[5, 6, 7 + index] for index in range(3)]

    async def together() -> list[edgelm.Result]:
        asked = [lm.agenerate(own, max_new_tokens=40, temperature=0.0) for own in prompts]
        return await asyncio.gather(*asked)

    alone = [lm.generate(own, max_new_tokens=40, temperature=0.0).token_ids for own in prompts]
    with monkeypatch.context() as patch:
        steps = Steps(lm, patch)
        found = asyncio.run(asyncio.wait_for(together(), NEEDED_S))
    assert [own.token_ids for own in found] == alone
    print("steps:", len(steps.rows))
    assert len(steps.rows) < 100
