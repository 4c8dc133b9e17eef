"""Guard: which requests are looked at at all, and what is written down of each.

A page in a browser may send requests to this machine, under a name of its own that it lets point
here (DNS rebinding, as in CVE-2024-28224). So the Host must be one of ours, and an Origin that same
host. Anything but this machine needs a key.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgelm.errors import UsageError
from edgelm.server.measures import Measures
from edgelm.server.refusals import Refusal

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_OPEN = ("/health", "/")
logger = logging.getLogger("edgelm.server")


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_key(host: str, key: str | None) -> None:
    """Raise UsageError for an open server, or a key that is too simple."""
    if key is None and not is_loopback(host):
        raise UsageError(
            f"host is {host}, which other machines reach: give --key with a secret, or leave out "
            "--host to serve this machine alone."
        )
    if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
        raise UsageError("The key must have at least 8 printable ASCII characters.")


class Guard:
    """ASGI application around the server's own.

    Args:
        host: that the server listens on. key: that clients must send; None: none.
        paths: that are counted by name; all others are one.
    """

    def __init__(
        self, app: ASGIApp, host: str, key: str | None, measures: Measures, paths: Iterable[str]
    ) -> None:
        self._app, self._host, self._key = app, host, key
        self._measures, self._paths = measures, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 499  # the client went

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in self._paths else "other"
        try:
            self._check(Headers(scope=scope), scope["path"])
            await self._app(scope, receive, noted)
        except Refusal as refusal:
            await refusal.response(path.startswith("/v1/messages"))(scope, receive, noted)
        finally:
            self._measures.served(path, status)
            took_ms = round(1000 * (time.perf_counter() - start))
            told = {"method": scope["method"], "path": path, "status": status, "ms": took_ms}
            logger.info("%s", json.dumps(told))

    def _check(self, headers: Headers, path: str) -> None:
        host = headers.get("host", "")
        name = None if set(host) & set("@/?#\\") else _parsed(f"//{host}").hostname
        if self._key is None and name not in (*LOOPBACK_NAMES, self._host):
            raise Refusal(
                403, f"The Host {host!r:.80} is not this server; ask for localhost.", "wrong_host"
            )
        origin = headers.get("origin")
        if origin is not None and _parsed(origin).netloc != host:
            raise Refusal(
                403, f"The Origin {origin!r:.80} is another site than {host!r:.80}.", "wrong_origin"
            )
        if self._key is not None and path not in _OPEN and not self._has_key(headers):
            raise Refusal(
                401, "The key is missing or wrong; send 'Authorization: Bearer KEY'.", "wrong_key"
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            sent = headers.get("x-api-key", "")
        assert self._key is not None
        return secrets.compare_digest(sent.encode(), self._key.encode())


def _parsed(address: str) -> SplitResult:
    """The parts of an address, all empty where it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
