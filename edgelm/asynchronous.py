"""The forms for asyncio: the same calls in a thread of their own, cancelled with their task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, Unpack, overload

from edgelm.errors import UsageError
from edgelm.generation.option_table import GENERATE, ChatOptions, GenerateOptions
from edgelm.generation.request import Chunk, Result
from edgelm.generation.text_calls import Answers, Prompt, Prompts, TextCalls
from edgelm.text.messages import Messages

T = TypeVar("T")


class AsyncForms(TextCalls):
    """``agenerate``, ``achat`` and ``astream`` over the blocking calls of the same names.

    The event loop goes on meanwhile. Cancelling the task, or closing the stream, cancels the
    answer within one token. Calls of several tasks share steps. A task that reads a stream must
    end or close it before it awaits another call on the same model, which is refused.
    """

    _reading: set[asyncio.Task[Any] | None]  # who read streams last, until somebody reads on

    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, *, n: Literal[1] = 1, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> Result: ...  # fmt: skip
    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, prompt: Prompts, *, n: Literal[1] = 1, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...  # fmt: skip
    @overload
    async def agenerate(
        self, prompt: Prompt, *, n: int, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...  # fmt: skip
    @overload
    async def agenerate(
        self, prompt: Prompts, *, n: int, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> list[list[Result]]: ...  # fmt: skip
    async def agenerate(self, prompt: Prompt | Prompts, **options: Any) -> Answers:
        """As ``generate``."""
        return await self._call(self.generate, prompt, options)

    async def achat(
        self, messages: Messages, *, stop_event: threading.Event | None = None,
        **options: Unpack[ChatOptions],
    ) -> Result:  # fmt: skip
        """As ``chat``."""
        return await self._call(self.chat, messages, {"stop_event": stop_event, **options})

    async def astream(
        self, prompt: Prompt, *, stop_event: threading.Event | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Chunk, None]:  # fmt: skip
        """As ``stream``; little is generated ahead of what is read."""
        self._refuse_nesting()
        stop = _Stop(stop_event)
        with _worker(stop) as run:
            chunks = self.stream(prompt, stop_event=stop, **options)
            try:
                while (chunk := await run(next, chunks, None)) is not None:
                    reader = asyncio.current_task()
                    self._reading.add(reader)
                    try:
                        yield chunk
                    finally:
                        self._reading.discard(reader)
            finally:
                run(chunks.close)  # behind the step that may still run; nobody waits for it

    async def _call(
        self, function: Callable[..., T], given: object, options: Mapping[str, Any]
    ) -> T:
        self._refuse_nesting()
        stop = _Stop(options.get("stop_event"))
        with _worker(stop) as run:
            answer: T = await run(partial(function, given, **{**options, "stop_event": stop}))
            return answer

    def _refuse_nesting(self) -> None:
        if asyncio.current_task() in self._reading:
            raise UsageError(
                "An answer is still being streamed in this task; read it to its end or close it "
                "before the next call."
            )


class _Stop(threading.Event):
    """Set by us, or by whoever holds the event that the caller gave."""

    def __init__(self, given: threading.Event | None) -> None:
        super().__init__()
        [self._given] = GENERATE.require(stop_event=given)

    def is_set(self) -> bool:
        return super().is_set() or (self._given is not None and self._given.is_set())


@contextmanager
def _worker(stop: _Stop) -> Iterator[Callable[..., asyncio.Future[Any]]]:
    """One thread that runs calls in order; at the end ``stop`` is set."""
    thread = ThreadPoolExecutor(1, "edgelm")
    try:
        yield partial(asyncio.get_running_loop().run_in_executor, thread)
    finally:
        stop.set()
        thread.shutdown(wait=False)
