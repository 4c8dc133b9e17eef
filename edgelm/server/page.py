"""The page at ``/``: a chat in one file, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response


def _content() -> tuple[str, str]:
    """The page, and a policy under which a browser runs its own script and no other."""
    text = (files("edgelm.server") / "page.html").read_text(encoding="utf-8")
    sources = {"script-src": "script", "style-src": "style"}
    rules = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    rules.append("frame-ancestors 'none'")
    for rule, tag in sources.items():
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [
            base64.b64encode(hashlib.sha256(own.encode()).digest()).decode() for own in found
        ]
        rules.append(" ".join([rule, *(f"'sha256-{digest}'" for digest in digests)]))
    return text, "; ".join(rules)


async def page(_: Request) -> Response:
    text, policy = _content()
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(text, headers=headers | {"Referrer-Policy": "no-referrer"})
