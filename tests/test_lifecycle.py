"""From load to close: turns, cancelling, asyncio, fork, interrupts, memory given back."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.cli.main import main
from edgelm.machine.hardware import resident_bytes

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good"
NEEDED_S = 60


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=160, chunk=16) as model:
        yield model


@pytest.fixture(scope="module")
def expected(lm: edgelm.LanguageModel) -> tuple[int, ...]:
    return lm.generate(PROMPT, max_new_tokens=12).token_ids


class Steps:
    """Counts the engine's steps; ``then[n]`` is called when step ``n`` (from 1) begins."""

    def __init__(self, lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.then: dict[int, Any] = {}
        assert lm._session.engine is not None
        original = lm._session.engine.run

        def counted(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self.then.get(self.count, bool)()
            return original(*arguments, **options)

        monkeypatch.setattr(lm._session.engine, "run", counted)


def test_cancelled_within_one_token_under_load(
    lm: edgelm.LanguageModel, expected: tuple[int, ...]
) -> None:
    """Eight threads; every second answer is cancelled by an event or by closing its stream."""

    def work(index: int) -> int:
        if index % 2:
            assert lm.generate(PROMPT, max_new_tokens=12).token_ids == expected
            return 0
        event, seen = threading.Event(), 0
        stream = lm.stream(PROMPT, max_new_tokens=60, stop_event=event)
        for chunk in stream:
            after = len(chunk.token_ids) if event.is_set() else 0
            seen += len(chunk.token_ids)
            if seen >= 3 and index % 4:
                stream.close()
            elif seen >= 3:
                event.set()
        return after

    with ThreadPoolExecutor(8) as pool:
        late = list(pool.map(work, range(16), timeout=NEEDED_S))
    print("tokens after the event:", late)
    assert max(late) <= 1
    assert lm.generate(PROMPT, max_new_tokens=12).token_ids == expected


def test_prefill_is_cancelled_between_chunks(
    lm: edgelm.LanguageModel, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of nine chunks, cancelled in the third, runs no fourth."""
    event = threading.Event()
    with monkeypatch.context() as patch:
        steps = Steps(lm, patch)
        steps.then[3] = event.set
        out = lm.generate([5] * 140, max_new_tokens=3, stop_event=event)
    assert (steps.count, out.finish_reason, out.token_ids) == (3, "cancelled", ())
    assert lm.generate(PROMPT, max_new_tokens=12).token_ids == expected


def test_a_waiting_call_is_cancelled(lm: edgelm.LanguageModel, expected: tuple[int, ...]) -> None:
    event = threading.Event()
    streams = [lm.stream(PROMPT, max_new_tokens=12) for _ in range(lm.plan.rows)]
    ids = [next(stream).token_ids for stream in streams]  # no row is free
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lm.generate, PROMPT, stop_event=event)
        while lm.load_of_rows()[1] == 0:
            time.sleep(0.001)
        event.set()
        try:
            with pytest.raises(edgelm.CancelledError, match="waited"):
                waiting.result(timeout=10)
        finally:
            for own, stream in enumerate(streams):
                ids[own] += sum((chunk.token_ids for chunk in stream), ())
    assert set(ids) == {expected}


def test_what_an_interrupted_step_wrote_is_not_kept(
    lm: edgelm.LanguageModel, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        Steps(lm, patch).then[5] = interrupt
        with pytest.raises(KeyboardInterrupt):
            lm.generate(PROMPT, max_new_tokens=12)
    out = lm.generate(PROMPT, max_new_tokens=12, keep_prefix=True)
    assert out.stats.kept_tokens == 0 and out.token_ids == expected


def test_closing_in_the_middle_of_an_answer_ends_it(assets: Path) -> None:
    lm = edgelm.load(assets / "nano" / "llama", quant="none", context=160)
    stream = lm.stream(PROMPT, max_new_tokens=100)
    next(stream)
    lm.close()
    rest = list(stream)
    assert [chunk.finish_reason for chunk in rest] == ["cancelled"]


def test_asyncio_forms(lm: edgelm.LanguageModel, expected: tuple[int, ...]) -> None:
    """Two answers at once from one loop, which keeps ticking while they are made."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def streamed() -> tuple[int, ...]:
        chunks = [chunk async for chunk in lm.astream(PROMPT, max_new_tokens=12)]
        return sum((chunk.token_ids for chunk in chunks), ())

    async def both() -> Any:
        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(lm.agenerate(PROMPT, max_new_tokens=12), streamed())
        ticking.cancel()
        return found

    whole, ids = asyncio.run(asyncio.wait_for(both(), NEEDED_S))
    assert whole.token_ids == ids == expected
    print("ticks of the loop:", ticks)
    assert ticks >= 5


def test_a_cancelled_task_cancels_its_answer(
    lm: edgelm.LanguageModel, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sets an event: the task's end alone stops the engine, within one step."""

    async def cancelled(steps: Steps) -> None:
        task = asyncio.create_task(lm.agenerate(PROMPT, max_new_tokens=120))
        reached, loop = asyncio.Event(), asyncio.get_running_loop()
        gate = threading.Event()

        def wait_here() -> None:
            loop.call_soon_threadsafe(reached.set)
            gate.wait(NEEDED_S)

        steps.then[6] = wait_here
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()

    with monkeypatch.context() as patch:
        steps = Steps(lm, patch)
        asyncio.run(cancelled(steps))
        assert lm.generate(PROMPT, max_new_tokens=1).token_ids == expected[:1]
        own = steps.count
    prompt_steps = -(-len(lm.encode(PROMPT)) // 16)
    print("steps:", own, "of them the prompt of the next call:", prompt_steps)
    assert own == 6 + prompt_steps


def test_a_closed_async_stream_cancels(lm: edgelm.LanguageModel, expected: tuple[int, ...]) -> None:
    async def half_read() -> Any:
        stream = lm.astream(PROMPT, max_new_tokens=120)
        async for _ in stream:
            break
        await stream.aclose()
        return await lm.agenerate(PROMPT, max_new_tokens=12)

    out = asyncio.run(asyncio.wait_for(half_read(), NEEDED_S))
    assert out.token_ids == expected and out.stats.kept_tokens == 0


def _in_child(lm: edgelm.LanguageModel, told: Any) -> None:
    try:
        lm.generate("Once")
    except edgelm.EdgeLMError as error:
        told.put(str(error))
    lm.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told(lm: edgelm.LanguageModel, expected: tuple[int, ...]) -> None:
    """Even while an answer is being made in the parent, whose lock the child has a copy of."""
    context = multiprocessing.get_context("fork")
    told: Any = context.Queue()
    stream = lm.stream(PROMPT, max_new_tokens=12)
    ids = next(stream).token_ids
    child = context.Process(target=_in_child, args=(lm, told))
    child.start()
    message = told.get(timeout=20)
    child.join(20)
    assert child.exitcode == 0 and "after a fork" in message and "spawn" in message
    assert ids + sum((chunk.token_ids for chunk in stream), ()) == expected


def _load_in_child(folder: Path, told: Any) -> None:
    with pytest.raises(edgelm.UsageError, match="spawn"):
        edgelm.load(folder, quant="none", context=160, threads=2)
    with edgelm.load(folder, quant="none", context=160) as lm:
        told.put((torch.get_num_threads(), lm.generate(PROMPT, max_new_tokens=12).token_ids))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_loads_with_one_thread(
    assets: Path, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's other threads do not exist there: a product over two of them never ends."""
    monkeypatch.setenv("EDGELM_THREADS", "2")
    context = multiprocessing.get_context("fork")
    told: Any = context.Queue()
    child = context.Process(target=_load_in_child, args=(assets / "nano" / "llama", told))
    child.start()
    try:
        assert told.get(timeout=20) == (1, expected)
    finally:
        child.kill()


def test_a_plan_is_picklable(lm: edgelm.LanguageModel) -> None:
    assert pickle.loads(pickle.dumps(lm.plan)) == lm.plan


def _cycles(folder: Path, count: int, closing: bool) -> float:
    """MiB that ``count`` loads add to the process, after some that fill its pools."""
    for index in range(10 + count):
        lm = edgelm.load(folder, quant="none", context=64)
        lm.generate("Once", max_new_tokens=2)
        if closing:
            lm.close()
        if index == 9:
            gc.collect()
            start = resident_bytes()
    del lm
    gc.collect()
    return (resident_bytes() - start) / 2**20


@pytest.mark.parametrize("closing", [True, False], ids=["closed", "dropped"])
@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_loads_leave_nothing_behind(assets: Path, count: int, closing: bool) -> None:
    grown = _cycles(assets / "nano" / "llama", count, closing)
    print(f"{count} cycles: {grown:.1f} MiB")
    assert grown < 20


def test_the_library_prints_nothing(assets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with edgelm.load(assets / "nano" / "llama", quant="int4", context=64) as lm:
        lm.generate("Once", max_new_tokens=2)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_model_not_fetched_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert main(["inspect", "nobody/nothing", "--offline", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "HubError"


def test_a_real_ctrl_c_ends_with_130(demo: Path) -> None:
    """SIGINT to the program while it writes: one line on stderr, no traceback.

    Tokens that are nearly all alike likely end no answer, so it lasts until the signal comes.
    """
    options = ["--max-tokens", "1900", "--context", "2048", "--temperature", "9"]
    program = subprocess.Popen(
        [sys.executable, "-m", "edgelm", "generate", str(demo), PROMPT, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        cwd=Path(edgelm.__file__).parent.parent,
        # A shell without job control has its background jobs, and theirs, ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert program.stdout is not None and program.stdout.read(1)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=NEEDED_S)
    assert (program.returncode, err.decode()) == (130, "edgelm: stopped by Ctrl-C\n")
