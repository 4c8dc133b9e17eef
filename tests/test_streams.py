"""A stream is one call, whatever thread reads it; a call from where it is read is refused."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm import call_lock

PROMPT = "Once upon a time"
TOKENS = 12
NEEDED_S = 30.0
DONE = object()


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=128, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def expected(lm: edgelm.LanguageModel) -> tuple[int, ...]:
    return lm.generate(PROMPT, max_new_tokens=TOKENS).token_ids


def ids_of(chunks: list[Any]) -> tuple[int, ...]:
    return sum((chunk.token_ids for chunk in chunks), ())


def ask(lm: edgelm.LanguageModel) -> tuple[int, ...]:
    return lm.generate(PROMPT, max_new_tokens=TOKENS).token_ids


def test_every_piece_is_read_by_another_thread(
    lm: edgelm.LanguageModel, expected: tuple[int, ...]
) -> None:
    stream, chunks = lm.stream(PROMPT, max_new_tokens=TOKENS), []
    with ExitStack() as pools:  # all live on: a thread gets the number of one that has ended
        while True:
            pool = pools.enter_context(ThreadPoolExecutor(1))
            chunk = pool.submit(next, stream, DONE).result(NEEDED_S)
            if chunk is DONE:
                break
            chunks.append(chunk)
    assert ids_of(chunks) == expected == ask(lm)


@pytest.mark.parametrize("read", [next, lambda stream: next(stream)], ids=["bare", "in a function"])
def test_a_request_on_a_thread_that_read_is_served_in_turn(
    lm: edgelm.LanguageModel, expected: tuple[int, ...], read: Callable[[Any], Any]
) -> None:
    """As a framework's pool does: one thread reads a piece and is given another request."""
    stream = lm.stream(PROMPT, max_new_tokens=TOKENS)
    with closing(stream), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        chunks = [one.submit(read, stream).result(NEEDED_S) for _ in range(2)]
        served = one.submit(ask, lm)
        chunks.append(other.submit(next, stream).result(NEEDED_S))
        time.sleep(0.2)
        assert not served.done()
        chunks += stream  # by the main thread
        assert served.result(NEEDED_S) == expected
    assert ids_of(chunks) == expected


def test_many_streams_and_requests_on_one_pool(
    lm: edgelm.LanguageModel, expected: tuple[int, ...]
) -> None:
    """``asyncio.to_thread`` reads; requests wait in the same threads, and none is refused."""

    async def streamed() -> tuple[int, ...]:
        stream, chunks = lm.stream(PROMPT, max_new_tokens=TOKENS), []
        while (chunk := await asyncio.to_thread(next, stream, DONE)) is not DONE:
            chunks.append(chunk)
        return ids_of(chunks)

    async def every() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(8))
        asked = [asyncio.to_thread(ask, lm) for _ in range(3)]
        return await asyncio.gather(streamed(), *asked, streamed(), streamed())

    assert asyncio.run(asyncio.wait_for(every(), NEEDED_S)) == [expected] * 6


def nested_in_a_loop(lm: edgelm.LanguageModel) -> None:
    for _ in lm.stream(PROMPT, max_new_tokens=TOKENS):
        ask(lm)


def nested_in_a_generator(lm: edgelm.LanguageModel) -> None:
    for _ in (chunk.text for chunk in lm.stream(PROMPT, max_new_tokens=TOKENS)):
        ask(lm)


def nested_in_a_chat(lm: edgelm.LanguageModel) -> None:
    for _ in lm.stream_chat([{"role": "user", "content": PROMPT}], max_new_tokens=TOKENS):
        list(lm.stream(PROMPT, max_new_tokens=TOKENS))


def nested_in_a_callback(lm: edgelm.LanguageModel) -> None:
    def each(act: Callable[[], Any]) -> None:
        for _ in lm.stream(PROMPT, max_new_tokens=TOKENS):
            act()

    each(lambda: lm.score("a", "b"))


def nested_in_the_making(lm: edgelm.LanguageModel) -> None:
    class Event(threading.Event):
        def is_set(self) -> bool:
            return bool(ask(lm))

    lm.generate(PROMPT, max_new_tokens=TOKENS, stop_event=Event())


def nested_in_a_task(lm: edgelm.LanguageModel) -> None:
    async def nested() -> None:
        stream = lm.astream(PROMPT, max_new_tokens=TOKENS)
        try:
            async for _ in stream:
                await lm.agenerate(PROMPT)
        finally:
            await stream.aclose()

    asyncio.run(asyncio.wait_for(nested(), NEEDED_S))


NESTED = [
    nested_in_a_loop, nested_in_a_generator, nested_in_a_chat, nested_in_a_callback,
    nested_in_the_making, nested_in_a_task,
]  # fmt: skip


@pytest.mark.parametrize("nested", NESTED, ids=lambda nested: nested.__name__)
@pytest.mark.parametrize("pooled", [False, True], ids=["main thread", "pool"])
def test_nesting_is_refused_at_once(
    lm: edgelm.LanguageModel, expected: tuple[int, ...], nested: Callable[..., None], pooled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(call_lock, "PATIENCE_S", 5.0)  # then with other words
    monkeypatch.setattr(lm, "chat_ids", lambda messages: [1, 5, 9])  # it has no template
    with ThreadPoolExecutor(1) as pool:
        refused = "(being streamed|running) in this t.*before the next call"
        with pytest.raises(edgelm.UsageError, match=refused):
            if pooled:
                pool.submit(nested, lm).result(NEEDED_S)
            else:
                nested(lm)
        gc.collect()
        assert pool.submit(ask, lm).result(NEEDED_S) == expected


def test_a_half_read_stream_does_not_block_its_thread_for_ever(
    lm: edgelm.LanguageModel, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing on the stack tells: a helper read, as an earlier cell of a notebook did."""
    monkeypatch.setattr(call_lock, "PATIENCE_S", 0.1)

    def helper(stream: Any) -> Any:
        return next(stream)

    stream = lm.stream(PROMPT, max_new_tokens=TOKENS)
    chunks = [helper(stream)]
    with pytest.raises(edgelm.UsageError, match=r"nobody has read on for 0.1 seconds"):
        ask(lm)
    chunks += stream
    assert ids_of(chunks) == expected == ask(lm)


def test_an_abandoned_stream_gives_its_turn_back(
    lm: edgelm.LanguageModel, expected: tuple[int, ...]
) -> None:
    """When its last reference goes, in whatever thread; nothing of ours refers to it."""
    kept = []

    def first() -> Any:
        stream = lm.stream(PROMPT, max_new_tokens=TOKENS)
        kept.append(stream)
        return next(stream)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(first).result(NEEDED_S)
        waiting = pool.submit(ask, lm)
        assert not waiting.done()
        kept.clear()
        assert waiting.result(NEEDED_S) == expected
    for _ in lm.stream(PROMPT, max_new_tokens=TOKENS):
        break
    assert ask(lm) == expected


def test_closing_waits_for_a_step_of_another_thread(assets: Path) -> None:
    """The thread that read a stream last gives it up; one that reads on finds the model closed."""
    lm = edgelm.load(assets / "nano" / "llama", quant="none", context=128, threads=1)
    stream = lm.stream(PROMPT, max_new_tokens=TOKENS)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, stream).result(NEEDED_S)
        next(stream)
        lm.close()
        [last] = pool.submit(list, stream).result(NEEDED_S)
    assert last.finish_reason == "cancelled"


def test_each_thread_that_reads_enters_what_belongs_to_the_call() -> None:
    """A CUDA device is current in one thread: it is made so in each, and never left behind."""
    entered: list[tuple[str, int]] = []

    class Within:
        def __enter__(self) -> None:
            entered.append(("in", threading.get_ident()))

        def __exit__(self, *exception: object) -> None:
            entered.append(("out", threading.get_ident()))

    lock = call_lock.CallLock(Within)

    def made() -> Iterator[int]:
        with lock.take(shared=True) as call:
            for piece in range(3):
                with call.paused():
                    yield piece

    stream = made()
    threads = []
    for _ in range(4):
        with ThreadPoolExecutor(1) as pool:
            threads.append(pool.submit(threading.get_ident).result())
            pool.submit(next, stream, DONE).result(NEEDED_S)
    assert entered == [(way, thread) for thread in threads for way in ("in", "out")]
