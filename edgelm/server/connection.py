"""Connection: what a client may keep open without asking anything, and without reading answers.

uvicorn bounds headers and idle time between requests, but not the time of a request that comes a
byte at a time (slow loris), nor that of an answer that nobody reads, which would hold its row.
"""

from __future__ import annotations

import asyncio
from typing import cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgelm.server.fields import MOST_CONNECTIONS

REQUEST_S = 30.0
"""Seconds for a whole request, from its first byte or from the opening of the connection."""
READ_S = 30.0
"""Seconds that a client may leave sent bytes unread while more are ready."""
IDLE_S = 30
"""Seconds that a connection stays open between requests."""
MOST_HEADER_BYTES = 64 << 10
GRACE_S = 5
"""Seconds for answers that still run when the server ends."""


def http_config(app: ASGIApp, host: str, port: int) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app, host, port, log_config=None, access_log=False, lifespan="on", server_header=False,
        http=Connection, ws="none", limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES, timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
    )  # fmt: skip


class Connection(H11Protocol):
    """One client's connection, closed when it owes its request, or the reading, for too long.

    Where all connections are taken, a new one takes the place of the one that owes a request for
    longest: who connects and asks nothing keeps nobody out.
    """

    _owed: asyncio.TimerHandle | None = None  # the rest of a request
    _unread: asyncio.TimerHandle | None = None  # bytes of an answer
    _since = 0.0  # event loop's time of the opening, or of the end of the last answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch()
        if len(self.connections) >= MOST_CONNECTIONS:
            own = cast("set[Connection]", self.connections)
            waiting = [other for other in own if other.owes and other is not self]
            if waiting:
                min(waiting, key=lambda other: other._since).drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owed, self._unread = _stopped(self._owed), _stopped(self._unread)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_S, self.drop)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = _stopped(self._unread)

    @property
    def owes(self) -> bool:
        """True while it is the client's turn: a request has not come, or not all of it."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def drop(self) -> None:
        """Close at once, whatever is still to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        if not self.owes:
            self._owed = _stopped(self._owed)
        elif self._owed is None and not self.transport.is_closing():
            self._owed = self.loop.call_later(REQUEST_S, self._late)

    def _late(self) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # nothing is answered yet
            refusal = h11.Response(
                status_code=408, reason=b"Request Timeout",
                headers=[("content-length", "0"), ("connection", "close")],
            )  # fmt: skip
            self.transport.write(self.conn.send(refusal) or b"")
        self.transport.close()


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What there is of a timer when it has been cancelled: nothing."""
    if timer is not None:
        timer.cancel()
    return None
