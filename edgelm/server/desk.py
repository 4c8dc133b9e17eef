"""Desk: a model's answers for asyncio. Who comes waits in a line with an end.

A request that has its turn runs in a thread of its own, where it shares steps with the others; as
many have a thread as the model has rows.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from edgelm.generation.request import Chunk, Request
from edgelm.model import LanguageModel
from edgelm.server.measures import Measures
from edgelm.server.refusals import Refusal

T = TypeVar("T")
MOST_WAITING = 64
"""Requests that may wait for a row."""
_END = object()


class Desk:
    """Takes requests for one model.

    Args:
        waiting: how many may wait.
    """

    def __init__(self, lm: LanguageModel, measures: Measures, waiting: int = MOST_WAITING) -> None:
        self.lm, self.measures = lm, measures
        self.name = lm.name
        self._most_waiting = waiting
        self._turns = asyncio.Semaphore(lm.plan.rows)  # first come, first served
        self._answering = ThreadPoolExecutor(lm.plan.rows, "edgelm-answer")
        self._reading = ThreadPoolExecutor(1, "edgelm-read")
        self.waiting = 0

    async def read(self, function: Callable[[], T]) -> T:
        """Make requests of texts and schemas, one at a time and beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, function)

    async def answers(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Pieces of the answers, with the number of the request; closing it cancels them.

        Raises:
            Refusal: the line is full.
        """
        stop = threading.Event()
        async with self._turn():
            pieces = self._threaded(lambda: self.lm.stream_requests(requests, stop), stop)
            try:
                async for index, chunk in pieces:
                    self.measures.saw(chunk)
                    yield index, chunk
            finally:
                await pieces.aclose()

    async def call(self, function: Callable[[threading.Event], T]) -> T:
        """The result of another call of the model, in turn; given up when the task is cancelled."""
        stop = threading.Event()
        async with self._turn():
            pieces = self._threaded(lambda: iter([function(stop)]), stop)
            try:
                return await anext(pieces)
            finally:
                await pieces.aclose()

    def check(self, requests: Sequence[Request]) -> None:
        """Raise what the model would say of requests that cannot run, before they wait."""
        for request in requests:
            request.limit(self.lm.plan.context, self.lm.config.vocab_size)

    def close(self) -> None:
        self._answering.shutdown()
        self._reading.shutdown()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._turns.locked() and self.waiting >= self._most_waiting:
            raise Refusal(
                429,
                f"{self.waiting} requests are waiting already, which is the limit; try again "
                "later, or start the server with more --users.",
                "queue_full",
            )
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def _threaded(
        self, make: Callable[[], Iterator[Any]], stop: threading.Event
    ) -> AsyncGenerator[Any, None]:
        """What an iterator gives in a thread; the thread has left when this ends."""
        loop, found = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def run() -> None:
            failed: BaseException | None = None
            try:
                for piece in make():
                    loop.call_soon_threadsafe(found.put_nowait, (piece, None))
            except BaseException as error:
                failed = error
            loop.call_soon_threadsafe(found.put_nowait, (_END, failed))

        running = loop.run_in_executor(self._answering, run)
        try:
            while True:
                piece, error = await found.get()
                if error is not None:
                    raise error
                if piece is _END:
                    return
                yield piece
        finally:
            stop.set()
            await asyncio.shield(running)
