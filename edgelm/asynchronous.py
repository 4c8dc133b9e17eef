"""The forms for asyncio: the same calls in a thread of their own, cancelled with their task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from edgelm.generation.request import Chunk, Result


class AsyncForms:
    """``agenerate``, ``achat`` and ``astream`` over the blocking calls of the same names.

    The event loop goes on meanwhile. Cancelling the task, or closing the stream, cancels the
    answer within one token; the next call waits for that token. A task that reads a stream must
    end or close it before it awaits another call on the same model.
    """

    generate: Callable[..., Any]
    chat: Callable[..., Result]
    stream: Callable[..., Generator[Chunk, None, None]]

    async def agenerate(self, prompt: Any, **options: Any) -> Any:
        """As ``generate``."""
        return await _call(self.generate, prompt, options)

    async def achat(self, messages: Any, **options: Any) -> Result:
        """As ``chat``."""
        answer: Result = await _call(self.chat, messages, options)
        return answer

    async def astream(self, prompt: Any, **options: Any) -> AsyncGenerator[Chunk, None]:
        """As ``stream``; nothing is generated ahead of what is read."""
        with _worker(options) as run:
            chunks = self.stream(prompt, **options)
            try:
                while (chunk := await run(next, chunks, None)) is not None:
                    yield chunk
            finally:
                run(chunks.close)  # behind the step that may still run; nobody waits for it


class _Stop(threading.Event):
    """Set by us, or by whoever holds the event that the caller gave."""

    def __init__(self, given: threading.Event | None) -> None:
        super().__init__()
        self._given = given

    def is_set(self) -> bool:
        return super().is_set() or (self._given is not None and self._given.is_set())


@contextmanager
def _worker(options: dict[str, Any]) -> Iterator[Callable[..., asyncio.Future[Any]]]:
    """One thread that runs calls in order; at the end ``options["stop_event"]`` is set."""
    stop = options["stop_event"] = _Stop(options.get("stop_event"))
    thread = ThreadPoolExecutor(1, "edgelm")
    try:
        yield partial(asyncio.get_running_loop().run_in_executor, thread)
    finally:
        stop.set()
        thread.shutdown(wait=False)


async def _call(function: Callable[..., Any], given: Any, options: dict[str, Any]) -> Any:
    with _worker(options) as run:
        return await run(partial(function, given, **options))
