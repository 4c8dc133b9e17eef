"""The application: routes, and one model from its loading to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgelm.errors import EdgeLMError
from edgelm.model import LanguageModel
from edgelm.server import texts
from edgelm.server.chat import chat_parts, folded_chat, read_chat
from edgelm.server.completions import completion_parts, folded_completion, read_completion
from edgelm.server.desk import MOST_WAITING, Desk
from edgelm.server.events import EventStream, body_of, event, until_gone
from edgelm.server.fields import MOST_BODY_BYTES, Fields
from edgelm.server.guard import Guard, require_key
from edgelm.server.measures import Measures
from edgelm.server.messages import folded_message, message_events, read_messages
from edgelm.server.openapi import document
from edgelm.server.page import page
from edgelm.server.refusals import Refusal
from edgelm.server.responses import folded_response, read_response, response_events

logger = logging.getLogger("edgelm.server")
Parts = AsyncGenerator[dict[str, Any], None]


class Server:
    """One model's server.

    Args:
        load: makes the model, in a thread of its own while the server says 503.
        failed: called when it cannot be made.
        waiting: requests that may wait for a row.

    Raises:
        UsageError: other machines reach the host, and there is no key.
    """

    def __init__(
        self, load: Callable[[], LanguageModel], host: str = "127.0.0.1", key: str | None = None,
        failed: Callable[[BaseException], None] = lambda _: None, waiting: int = MOST_WAITING,
    ) -> None:  # fmt: skip
        require_key(host, key)
        self._load, self._failed, self._waiting = load, failed, waiting
        self._measures = Measures()
        self._desk: Desk | None = None
        routes = [
            Route("/", page),
            Route("/v1/models", self._get(texts.models)),
            *(
                Route(path, self._answering(*functions), methods=["POST"])
                for path, functions in (
                    ("/v1/chat/completions", (read_chat, chat_parts, folded_chat, _unnamed)),
                    (
                        "/v1/completions",
                        (read_completion, completion_parts, folded_completion, _unnamed),
                    ),
                    ("/v1/responses", (read_response, response_events, folded_response, _named)),
                    ("/v1/messages", (read_messages, message_events, folded_message, _named)),
                )
            ),
            *(
                Route(path, self._post(function), methods=["POST"])
                for path, function in (
                    ("/v1/embeddings", texts.embeddings),
                    ("/classify", texts.classify),
                    ("/tokenize", texts.tokenize),
                    ("/detokenize", texts.detokenize),
                )
            ),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/openapi.json", self._get(lambda lm: document(lm.name))),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._life,
            exception_handlers={
                EdgeLMError: _refuse,
                ClientDisconnect: _gone,
                404: _no_such_path,
                405: _no_such_path,
                Exception: _broken,
            },
        )
        paths = [route.path for route in routes]
        self.app: ASGIApp = Guard(app, host, key, self._measures, paths)

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(self._open())
        try:
            yield
        finally:
            await loading
            if self._desk is not None:
                desk, self._desk = self._desk, None
                await asyncio.to_thread(desk.close)
                desk.lm.close()

    async def _open(self) -> None:
        try:
            lm = await asyncio.to_thread(self._load)
        except BaseException as error:
            self._failed(error)
            return
        self._measures.watch(lm)
        self._desk = Desk(lm, self._measures, self._waiting)

    def _ready(self) -> Desk:
        if self._desk is None:
            raise Refusal(503, "The model is still being loaded; try again.", "loading")
        return self._desk

    def _get(self, function: Callable[[LanguageModel], Any]) -> Callable[..., Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            return JSONResponse(function(self._ready().lm))

        return answer

    def _post(
        self, function: Callable[[Fields, Desk], Awaitable[Any]]
    ) -> Callable[..., Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            desk = self._ready()
            fields = await _fields(request, desk)

            async def work() -> Any:
                return await function(fields, desk)

            return JSONResponse(await until_gone(request.receive, work()))

        return answer

    def _answering(
        self, read: Callable[[Fields, LanguageModel], Any], make: Callable[[Any, Desk], Parts],
        fold: Callable[[list[dict[str, Any]]], dict[str, Any]],
        lines: Callable[[Parts, bool], AsyncGenerator[str, None]],
    ) -> Callable[..., Awaitable[Response]]:  # fmt: skip
        """An endpoint that answers in parts: as they come, or folded to one document."""

        async def answer(request: Request) -> Response:
            desk = self._ready()
            fields = await _fields(request, desk)
            call = await desk.read(lambda: read(fields, desk.lm))
            desk.check(call.requests)
            parts = make(call, desk)
            if call.stream:
                return EventStream(lines(await _begun(request, parts), call.include_usage))
            return JSONResponse(fold(await until_gone(request.receive, _listed(parts))))

        return answer

    async def _health(self, _: Request) -> Response:
        self._ready()
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        return Response(self._measures.text(), media_type="text/plain; version=0.0.4")


async def _fields(request: Request, desk: Desk) -> Fields:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"The body is {kind!r:.60}; send application/json.")
    try:
        body = await body_of(request, MOST_BODY_BYTES)
    except ValueError:
        raise Refusal(413, f"The body is larger than {MOST_BODY_BYTES} bytes.") from None
    fields = Fields.of(body)
    name = fields.peek("model")
    if name not in (None, desk.name):
        raise Refusal(
            404, f"There is no model {name!r:.80}; this server has {desk.name!r}.",
            "model_not_found", "model",
        )  # fmt: skip
    return fields


async def _listed(parts: Parts) -> list[dict[str, Any]]:
    async with aclosing(parts):
        return [part async for part in parts]


async def _begun(request: Request, parts: Parts) -> Parts:
    """The same parts; a full line is told before anything is sent."""

    async def first() -> dict[str, Any]:
        return await anext(parts)

    begun = await until_gone(request.receive, first())

    async def whole() -> Parts:
        async with aclosing(parts):
            yield begun
            async for part in parts:
                yield part

    return whole()


async def _unnamed(parts: Parts, include_usage: bool) -> AsyncGenerator[str, None]:
    """OpenAI's events: parts alone, then the word that ends them."""
    async with aclosing(parts):
        try:
            async for part in parts:
                if part["choices"]:
                    yield event(part | ({"usage": None} if include_usage else {}))
                elif include_usage:
                    yield event(part)
        except EdgeLMError as error:
            yield event(Refusal.of(error).body())
    yield event("[DONE]")


async def _named(parts: Parts, _: bool) -> AsyncGenerator[str, None]:
    """Events of which each stands under its type."""
    async with aclosing(parts):
        try:
            async for part in parts:
                yield event(part, part["type"])
        except EdgeLMError as error:
            yield event(Refusal.of(error).body(anthropic=True), "error")


def _is_anthropic(request: Request) -> bool:
    return request.url.path.startswith("/v1/messages")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeLMError)
    return Refusal.of(error).response(_is_anthropic(request))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _no_such_path(request: Request, error: Exception) -> Response:
    path = request.url.path
    return Refusal(
        404, f"There is no {request.method} {path!r:.80}; see edgelm serve --help."
    ).response(_is_anthropic(request))


async def _broken(request: Request, error: Exception) -> Response:
    logger.error("a fault in the server", exc_info=error)
    return Refusal(500, "A fault in the server; its log says more.").response(
        _is_anthropic(request)
    )
