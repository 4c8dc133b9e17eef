"""The server, asked by the clients that people have: OpenAI's, Anthropic's and plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
import httpx
from running_server import NEEDED_S, running, wait_until_ready

import edgelm
from edgelm.cli.serve import serve
from edgelm.generation.scheduler import Scheduler
from edgelm.server.app import Server
from edgelm.server.guard import is_loopback
from edgelm.server.sampling import IGNORED
from edgelm.server.tool_calls import CallFinder, ToolCall

CONTEXT = 256
PROMPT = "Once upon a time"
USER = [{"role": "user", "content": "Call me Ishmael."}]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} answer in <tool_call></tool_call>\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}"
    "{{ m.tool_calls[0].function.name }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    folder = assets / "nano" / "llama"
    model = edgelm.load(folder, quant="int8", context=CONTEXT, chunk=32, rows=3, threads=1)
    model.tokenizer.chat_template = TEMPLATE
    yield model
    model.close()


@pytest.fixture(scope="module")
def url(lm: edgelm.LanguageModel) -> Iterator[str]:
    with running(Server(lambda: lm)) as address:
        wait_until_ready(address)
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=NEEDED_S)


def post(url: str, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=NEEDED_S, **options)


def test_a_completion_is_what_generate_gives(client: Any, lm: edgelm.LanguageModel) -> None:
    """Text and ids, one and many; with a seed, stop strings and penalties."""
    options = {"temperature": 0.8, "seed": 5, "frequency_penalty": 0.5}
    own = lm.generate(PROMPT, max_new_tokens=12, **options)
    ids = lm.encode(PROMPT)
    for prompt in (PROMPT, ids, [PROMPT, PROMPT], [ids, ids]):
        found = client.completions.create(model=lm.name, prompt=prompt, max_tokens=12, **options)
        assert {choice.text for choice in found.choices} == {own.text}
        assert found.choices[0].finish_reason == own.finish_reason == "length"
    assert found.usage.prompt_tokens == 2 * len(ids) and found.usage.completion_tokens == 24
    stop = own.text[5:8]
    found = client.completions.create(
        model=lm.name, prompt=PROMPT, max_tokens=12, stop=stop, **options
    )
    assert found.choices[0].text == own.text[: own.text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_streams_are_the_answer_in_parts(client: Any, lm: edgelm.LanguageModel) -> None:
    asked = {"model": lm.name, "messages": USER, "max_tokens": 10, "seed": 1, "temperature": 0.9}
    whole = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2)
    parts = list(
        client.chat.completions.create(
            **asked, n=2, logprobs=True, top_logprobs=2, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    for index, choice in enumerate(whole.choices):
        own = [c for part in parts for c in part.choices if c.index == index]
        assert "".join(c.delta.content or "" for c in own) == choice.message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
        tokens = [t for c in own if c.logprobs for t in c.logprobs.content]
        assert tokens == choice.logprobs.content and len(tokens) == 10
        assert all(len(token.top_logprobs) == 2 for token in tokens)
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens == 20
    assert parts[-1].usage.prompt_tokens == whole.usage.prompt_tokens and not parts[-1].choices
    expected = lm.chat(USER, max_new_tokens=10, seed=2, temperature=0.9)
    assert whole.choices[1].message.content == expected.text
    without = client.chat.completions.create(**asked, stream=True)
    assert all(part.usage is None for part in without)


def test_prompts_are_scored(client: Any, lm: edgelm.LanguageModel) -> None:
    """As lm-evaluation-harness asks: echo, log-probabilities, one token more or none."""
    ids = lm.encode(PROMPT + ", there was a whale")
    scores = lm.log_likelihoods(ids).tolist()
    for limit in (0, 1):
        found = client.completions.create(
            model=lm.name, prompt=[ids], max_tokens=limit, echo=True, logprobs=1, temperature=0
        ).choices[0]
        told = found.logprobs
        assert told.token_logprobs[0] is None and len(told.tokens) == len(ids) + limit
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(scores, abs=1e-3)
        entries = zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)
        for name, value, top in list(entries)[1:]:
            assert top[name] == value and max(top.values()) >= value
        assert found.text.endswith(lm.tokenizer.decode(ids)) or limit
        text = "".join(told.tokens)
        places = zip(told.text_offset, told.tokens, strict=True)
        assert all(text[at:].startswith(name) for at, name in places)


def test_answers_follow_a_schema(client: Any, lm: edgelm.LanguageModel) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    found = client.chat.completions.create(
        model=lm.name, messages=USER, response_format=form, max_tokens=60
    )
    assert isinstance(json.loads(found.choices[0].message.content)["ok"], bool)


def test_an_assistants_beginning_goes_on(client: Any, lm: edgelm.LanguageModel) -> None:
    messages = [*USER, {"role": "assistant", "content": "The whale is"}]
    found = client.chat.completions.create(
        model=lm.name, messages=messages, max_tokens=6, temperature=0
    )
    own = lm.chat(messages, continue_final_message=True, max_new_tokens=6, temperature=0.0)
    assert found.choices[0].message.content == own.text


def test_embeddings_and_tokens(client: Any, url: str, lm: edgelm.LanguageModel) -> None:
    vectors = lm.embed([PROMPT, "whale"])
    found = client.embeddings.create(model=lm.name, input=[PROMPT, "whale"])  # in base64
    plain = client.embeddings.create(
        model=lm.name, input=[PROMPT, "whale"], encoding_format="float"
    )
    for index, own in enumerate(vectors):
        assert found.data[index].embedding == pytest.approx(own.tolist(), abs=1e-5)
        assert plain.data[index].embedding == pytest.approx(own.tolist(), abs=1e-5)
    ids = post(url, "/tokenize", {"text": PROMPT}).json()["tokens"]
    assert ids == lm.encode(PROMPT)
    text = post(url, "/detokenize", {"tokens": ids, "keep_special": False}).json()["text"]
    assert text == PROMPT


def test_the_model_tells_its_plan(client: Any, url: str, lm: edgelm.LanguageModel) -> None:
    [own] = httpx.get(f"{url}/v1/models").json()["data"]
    assert own["id"] == lm.name == next(iter(client.models.list())).id
    assert own["plan"]["rows"] == 3 and own["plan"]["predicted_peak_bytes"] > 0
    text = httpx.get(f"{url}/metrics").text
    for part in lm.plan.parts:
        assert f'edgelm_part_planned_bytes{{part="{part.name}"}}' in text
    assert 'edgelm_requests_total{path="/v1/models",status="200"}' in text


CHAT = {"messages": USER, "max_tokens": 2}


def block(kind: str, **fields: Any) -> dict[str, Any]:
    """A message of one block, in Anthropic's form."""
    message = {"role": "user", "content": [{"type": kind, **fields}]}
    return {"max_tokens": 2, "messages": [message]}


WRONG = [
    ("/v1/chat/completions", CHAT | {"wrong": 1}, 400, "wrong"),
    ("/v1/chat/completions", CHAT | {"response_format": {"type": "xml"}}, 400, "type"),
    ("/v1/chat/completions", CHAT | {"n": 10**6}, 400, "n is"),
    ("/v1/chat/completions", CHAT | {"top_logprobs": 3}, 400, "top_logprobs"),
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 10**5}, 400, "top_logprobs"),
    ("/v1/chat/completions", CHAT | {"stop": ["x"] * 1000}, 400, "stop"),
    ("/v1/chat/completions", CHAT | {"temperature": "hot"}, 400, "temperature"),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ("/v1/chat/completions", CHAT | {"model": "another"}, 404, "another"),
    ("/v1/chat/completions", CHAT | {"tool_choice": "required"}, 400, "tool_choice"),
    ("/v1/chat/completions", {"messages": []}, 400, "message"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": 1}]}, 400, "content"),
    ("/v1/chat/completions", {"messages": [{"content": "x"}]}, 400, "role"),
    ("/v1/chat/completions", [1], 400, "JSON object"),
    ("/v1/completions", {"prompt": ""}, 400, "empty"),
    ("/v1/completions", {"prompt": [1, "x"]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [10**7]}, 400, "out of range"),
    ("/v1/completions", {"prompt": PROMPT, "suffix": "x"}, 400, "suffix"),
    ("/v1/completions", {}, 400, "prompt is missing"),
    ("/v1/embeddings", {"input": []}, 400, "input"),
    ("/v1/embeddings", {"input": PROMPT, "dimensions": 3}, 400, "dimensions"),
    ("/tokenize", {"text": 3}, 400, "text"),
    ("/detokenize", {"tokens": [-1]}, 400, "range"),
    ("/classify", {"input": PROMPT}, 400, "head"),
    ("/v1/messages", {"messages": USER}, 400, "max_tokens"),
    ("/v1/messages", block("text", text="x", colour="red"), 400, "content.colour"),
    ("/v1/messages", block("tool_result", tool_use_id="a", colour="red"), 400, "content.colour"),
    ("/v1/messages", block("tool_use", id="a", name="f", input={}, x=1), 400, "content.x"),
    ("/v1/messages", block("tool_result", tool_use_id="a", is_error=1), 400, "content.is_error"),
    ("/v1/responses", {"input": "x", "previous_response_id": "y"}, 400, "previous_response_id"),
    ("/v1/nothing", {}, 404, "nothing"),
]


def test_ignored_fields_are_named_in_the_help() -> None:
    help_ = inspect.getdoc(serve) or ""
    assert [name for name in IGNORED if name not in help_] == []


@pytest.mark.parametrize(("path", "body", "status", "said"), WRONG)
def test_wrong_requests_are_told_why(
    url: str, path: str, body: Any, status: int, said: str
) -> None:
    for stream in (
        ({}, {"stream": True}) if isinstance(body, dict) and "completions" in path else ({},)
    ):
        asked = body | stream if stream else body
        answer = post(url, path, asked)
        error = answer.json()["error"]
        assert (answer.status_code, said in error["message"]) == (status, True), error


def test_what_cannot_fit_is_told_with_both_numbers(client: Any, lm: edgelm.LanguageModel) -> None:
    openai = pytest.importorskip("openai")
    for asked in ({"prompt": [5] * 300, "max_tokens": 1}, {"prompt": [5], "max_tokens": 256}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=lm.name, **asked)
        assert caught.value.code == "context_length_exceeded"
        assert str(CONTEXT) in str(caught.value)


def test_bodies_have_limits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.server.app.MOST_BODY_BYTES", 2000)
    assert post(url, "/tokenize", {"text": "x" * 3000}).status_code == 413
    for body in (b"{", b"\xff", b"[" * 100_000, b'{"text": NaN}'):
        wrong = httpx.post(
            f"{url}/tokenize", content=body, headers={"content-type": "application/json"}
        )
        assert wrong.status_code in (400, 413)
    plain = httpx.post(f"{url}/tokenize", content=b'{"text": "x"}')
    assert plain.status_code == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "127.0.0.1@evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
    ],
)
def test_other_sites_are_refused(url: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.get(f"{url}/v1/models", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_a_key_is_asked_for(lm: edgelm.LanguageModel) -> None:
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.com"):
        assert not is_loopback(host)
        with pytest.raises(edgelm.UsageError, match="--key"):
            Server(lambda: lm, host)
    told: list[int] = []

    async def ask() -> None:
        transport = httpx.ASGITransport(Server(lambda: lm, "0.0.0.0", "a long secret").app)
        async with httpx.AsyncClient(transport=transport, base_url="http://anything") as client:
            for headers in (
                {}, {"authorization": "Bearer a wrong secret"}, {"authorization": "Bearer é"},
                {"authorization": "Bearer a long secret"}, {"x-api-key": "a long secret"},
            ):  # fmt: skip
                raw = {name: value.encode() for name, value in headers.items()}
                told.append((await client.get("/v1/models", headers=raw)).status_code)
            told.append((await client.get("/health")).status_code)

    asyncio.run(ask())
    assert told == [401, 401, 401, 503, 503, 503]  # nothing is loaded


def test_503_while_loading(lm: edgelm.LanguageModel) -> None:
    gate, failures = threading.Event(), []

    def load() -> Any:
        gate.wait(NEEDED_S)
        raise edgelm.UsageError("no such model")

    with running(Server(load, failed=failures.append)) as address:
        for path in ("/health", "/v1/models"):
            answer = httpx.get(f"{address}{path}")
            assert answer.status_code == 503 and answer.headers["retry-after"]
        assert httpx.get(f"{address}/metrics").status_code == 200
        gate.set()
    assert [str(own) for own in failures] == ["no such model"]


def test_a_full_line_is_429(lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three run, one waits, the next is refused; those are not disturbed."""
    waits = threading.Event()
    original = lm._session.engine.run  # type: ignore[union-attr]

    def slow(*given: Any) -> Any:
        waits.wait(NEEDED_S)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(lm, "close", lambda: None)  # the other tests go on with it
        patch.setattr(lm._session.engine, "run", slow)  # type: ignore[union-attr]
        with running(Server(lambda: lm, waiting=1)) as address:
            wait_until_ready(address)

            async def ask() -> list[int]:
                async with httpx.AsyncClient(base_url=address, timeout=NEEDED_S) as client:
                    body = {"prompt": [5, 6], "max_tokens": 2}
                    asked = []
                    for _ in range(4):
                        asked.append(asyncio.create_task(client.post("/v1/completions", json=body)))
                        await asyncio.sleep(0.2)
                    refused = await client.post("/v1/completions", json=body | {"stream": True})
                    waits.set()
                    return [refused.status_code, *[(await own).status_code for own in asked]]

            assert asyncio.run(ask()) == [429, 200, 200, 200, 200]


def test_who_goes_is_not_answered(
    url: str, lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streaming or not, running or in the line: the rows are free at once."""
    step, steps = Scheduler._step, [0]

    def counted(self: Scheduler) -> None:
        steps[0] += 1
        step(self)

    monkeypatch.setattr(Scheduler, "_step", counted)
    body = {"messages": USER, "max_tokens": 200, "temperature": 0}
    body["logit_bias"] = {str(token): -1e6 for token in lm.end_ids}

    async def ask_and_go() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=NEEDED_S) as client:
            asked = [
                asyncio.create_task(
                    client.post("/v1/chat/completions", json=body | {"stream": index % 2 == 0})
                )
                for index in range(6)
            ]
            while lm.load_of_rows()[0] < 3:
                await asyncio.sleep(0.001)
            for own in asked:
                own.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(asyncio.wait_for(ask_and_go(), NEEDED_S))
    until = time.monotonic() + 10
    while lm.load_of_rows() != (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    assert lm.load_of_rows() == (0, 0) and steps[0] < 200


def test_eight_clients_get_what_each_gets_alone(url: str, lm: edgelm.LanguageModel) -> None:
    """Mixed lengths and kinds, some cancelled, some wrong; the others have the same tokens."""
    bodies = [
        {"prompt": [[5 + i, 6, 7] * (1 + 5 * (i % 5))], "max_tokens": 3 + 9 * (i % 4), "seed": i,
         "temperature": 0.9 * (i % 2), "logprobs": 0}
        for i in range(16)
    ]  # fmt: skip
    alone = [post(url, "/v1/completions", body).json()["choices"][0] for body in bodies]

    async def ask(client: httpx.AsyncClient, at: int) -> None:
        if at % 5 == 4:
            asked = client.post("/v1/completions", json=bodies[at] | {"max_tokens": 150})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asked, 0.02)
            return
        if at % 5 == 3:
            assert (await client.post("/v1/completions", json={"x": 1})).status_code == 400
        answer = await client.post("/v1/completions", json=bodies[at])
        assert answer.json()["choices"][0] == alone[at], at

    async def every() -> None:
        limits = httpx.Limits(max_connections=8)
        async with httpx.AsyncClient(base_url=url, timeout=NEEDED_S, limits=limits) as client:
            await asyncio.gather(*(ask(client, at % 16) for at in range(32)))

    asyncio.run(asyncio.wait_for(every(), NEEDED_S))


def test_anthropics_client(url: str, lm: edgelm.LanguageModel) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=NEEDED_S)
    asked: dict[str, Any] = {"model": lm.name, "max_tokens": 12, "messages": USER}
    greedy = {"temperature": 0.0}
    own = lm.chat([{"role": "system", "content": "Be brief."}, *USER], max_new_tokens=12,
                  temperature=0.0)  # fmt: skip
    found = client.messages.create(system="Be brief.", extra_body=greedy, **asked)
    assert found.content[0].text == own.text and found.stop_reason == "max_tokens"
    assert found.usage.output_tokens == 12
    with client.messages.stream(system="Be brief.", extra_body=greedy, **asked) as stream:
        assert "".join(stream.text_stream) == own.text
        assert stream.get_final_message().usage == found.usage
    stop = own.text[4:7]
    cut = client.messages.create(
        system="Be brief.", stop_sequences=[stop, "\0"], extra_body=greedy, **asked
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    with pytest.raises(anthropic.BadRequestError, match="wrong"):
        client.messages.create(**asked, extra_body={"wrong": 1})


def test_the_responses_interface(client: Any, lm: edgelm.LanguageModel) -> None:
    asked = {"model": lm.name, "input": "Call me Ishmael.", "instructions": "Be brief."}
    asked |= {"max_output_tokens": 12, "temperature": 0, "store": False}
    own = lm.chat([{"role": "system", "content": "Be brief."}, *USER], max_new_tokens=12,
                  temperature=0.0)  # fmt: skip
    found = client.responses.create(**asked)
    assert found.output_text == own.text and found.usage.output_tokens == 12
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == own.text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == own.text


def test_tools_reach_the_template_and_calls_come_back(
    client: Any, url: str, lm: edgelm.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is too small to call: its text is replaced piece by piece."""
    text = 'Hm. <tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'
    seen: list[Any] = []
    original = lm.stream_requests

    def calling(requests: Any, stop: Any = None) -> Iterator[Any]:
        seen.append(lm.tokenizer.decode(requests[0].prompt_ids))
        *_, (index, last) = original(requests, stop)
        for at in range(0, len(text), 7):
            yield index, edgelm.Chunk(text[at : at + 7])
        yield index, edgelm.Chunk("", (), "stop", last.stats)

    monkeypatch.setattr(lm, "stream_requests", calling)
    asked = {"model": lm.name, "messages": USER, "tools": [TOOL], "max_tokens": 1}
    found = client.chat.completions.create(**asked).choices[0]
    assert '"look"' in seen[0] and found.finish_reason == "tool_calls"
    assert found.message.content == "Hm. "
    assert json.loads(found.message.tool_calls[0].function.arguments) == {"at": "sea"}
    deltas = [
        c.delta for p in client.chat.completions.create(**asked, stream=True) for c in p.choices
    ]
    [call] = [call for delta in deltas for call in delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "look")
    back = found.message.model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call.id, "content": "a whale"}
    assert client.chat.completions.create(**asked | {"messages": [*USER, back, result]})
    tool = {"type": "function", "name": "look", "parameters": {}, "strict": False}
    [_, item] = client.responses.create(model=lm.name, input="Look!", tools=[tool]).output
    assert (item.type, item.name, json.loads(item.arguments)) == (
        "function_call", "look", {"at": "sea"},
    )  # fmt: skip
    body = {"max_tokens": 1, "messages": USER, "tools": [{"name": "look", "input_schema": {}}]}
    told = post(url, "/v1/messages", body).json()
    assert told["stop_reason"] == "tool_use"
    assert told["content"][1]["input"] == {"at": "sea"}


TEXTS = [
    ("<tool_call>", 'a <tool_call>{"name": "f", "arguments": {}}</tool_call>', ["a ", ("f", "{}")]),
    ("<tool_call>", "a < b <tool", ["a < b <tool"]),
    ("<tool_call>", "<tool_call>no</tool_call> b", ["<tool_call>no</tool_call> b"]),
    ("<tool_call>", '<tool_call>{"name": "f"', ['<tool_call>{"name": "f"']),
    ('"parameters"', '{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
    ('"parameters"', '{"other": 1}', ['{"other": 1}']),
    ('"parameters"', "Hello {", ["Hello {"]),
    ("nothing", '<tool_call>{"name": "f"}</tool_call>', ['<tool_call>{"name": "f"}</tool_call>']),
]


@pytest.mark.parametrize(("template", "text", "expected"), TEXTS)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_calls_are_found_in_any_pieces(
    template: str, text: str, expected: list[Any], size: int
) -> None:
    finder, found = CallFinder(template, offered=True), []
    pieces = [p for at in range(0, len(text), size) for p in finder.push(text[at : at + size])]
    for piece in [*pieces, *finder.finish()]:
        if isinstance(piece, ToolCall):
            found.append((piece.name, piece.arguments))
        elif found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    assert found == expected


def test_the_page_loads_and_runs_nothing_of_others(url: str) -> None:
    """One file whose policy names its own script by digest; a model's text never becomes HTML."""
    answer = httpx.get(url)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    [script] = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "http:",
                 "https:", " src=", " style=", " onclick="):  # fmt: skip
        assert word not in answer.text, word


def test_logs_hold_no_contents(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "edgelm.server"):
        post(url, "/v1/completions", {"prompt": "a secret whale", "max_tokens": 2})
        post(url, "/secret/path", {})
    lines = [json.loads(r.message) for r in caplog.records if r.name == "edgelm.server"]
    assert [line["path"] for line in lines] == ["/v1/completions", "other"]
    assert "secret" not in caplog.text and lines[0]["status"] == 200
