"""``/openapi.json``: it names what the endpoints read, and is valid OpenAPI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
import httpx
import jsonschema
from running_server import NEEDED_S, running, wait_until_ready

import edgelm
from edgelm.server.app import Server
from edgelm.server.fields import Fields
from edgelm.server.openapi import BODIES, PAGES

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
USER = [{"role": "user", "content": "Call me Ishmael."}]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER, "max_tokens": 1},
    "/v1/completions": {"prompt": "whale", "max_tokens": 1},
    "/v1/responses": {"input": "whale", "max_output_tokens": 1},
    "/v1/messages": {"messages": USER, "max_tokens": 1},
    "/v1/embeddings": {"input": "whale"},
    "/classify": {"input": "whale"},
    "/tokenize": {"text": "whale"},
    "/detokenize": {"tokens": [5]},
}


@pytest.fixture(scope="module")
def url(assets: Path) -> Iterator[str]:
    lm = edgelm.load(assets / "nano" / "llama", quant="int8", context=64, threads=1)
    lm.tokenizer.chat_template = TEMPLATE
    with running(Server(lambda: lm)) as address:
        wait_until_ready(address)
        yield address


@pytest.mark.parametrize("path", BODIES)
def test_every_field_that_is_read_is_described(
    url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    take, leave_out = Fields.take, Fields.leave_out

    def taking(self: Fields, name: str, *given: Any, **more: Any) -> Any:
        read.update([name] if not self._where else [])
        return take(self, name, *given, **more)

    def leaving(self: Fields, *names: str) -> None:
        read.update(names if not self._where else [])
        leave_out(self, *names)

    monkeypatch.setattr(Fields, "take", taking)
    monkeypatch.setattr(Fields, "leave_out", leaving)
    answer = httpx.post(f"{url}{path}", json=LEAST[path], timeout=NEEDED_S)
    assert answer.status_code == (400 if path == "/classify" else 200), answer.text
    assert read == set(BODIES[path][2])


def test_the_description_is_served(url: str) -> None:
    told = httpx.get(f"{url}/openapi.json").json()
    assert told["openapi"].startswith("3.1") and set(told["paths"]) == {*BODIES, *PAGES}
    for path in PAGES:
        assert httpx.get(f"{url}{path}").status_code == 200
    for path, body in LEAST.items():
        content = told["paths"][path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(body, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(body | {"unknown": 1}, schema)
