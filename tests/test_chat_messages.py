"""Messages of a chat: contents in every form, and nothing that is said gets lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_chat import CHATML, TEMPLATES, TOOLS, WITHOUT_FILES, prompt

import edgelm
from edgelm.errors import UsageError

ALL = [*TEMPLATES, *WITHOUT_FILES]
# As Gemma 3's: a loop over the parts, whose texts stand side by side.
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text | trim }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def source(assets: Path, name: str) -> str:
    if name in WITHOUT_FILES:
        return WITHOUT_FILES[name]
    return (assets / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def text(*parts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in parts]


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with edgelm.load(assets / "nano" / "llama", quant="none", context=200) as model:
        model.tokenizer.chat_template = CHATML
        yield model


@pytest.mark.parametrize("name", ALL)
def test_parts_are_joined(assets: Path, name: str) -> None:
    template = source(assets, name)
    for parts in (text("one"), text("one", "two"), tuple(text("", "one\n", "two "))):
        joined = "\n".join(part["text"] for part in parts)
        for role in ("user", "assistant"):
            said = [{"role": "user", "content": "q"}, {"role": role, "content": "x"}]
            said = said[-1:] if role == "user" else said
            ours = prompt(template, [*said[:-1], {"role": role, "content": parts}])
            assert ours == prompt(template, [*said[:-1], {"role": role, "content": joined}])
    system = [{"role": "system", "content": text("S", "T")}, {"role": "user", "content": text("q")}]
    assert "S\nT" in prompt(template, system)


def test_a_template_that_prints_parts_gets_them() -> None:
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [
        {"role": "user", "content": text(" one", " two")},
        {"role": "assistant", "content": " three "},
    ]
    expected = oracle.render_jinja_template([messages], chat_template=PARTS)[0][0]
    assert prompt(PARTS, messages) == expected == "[user]onetwo[assistant] three "
    as_json = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert prompt(as_json, messages[:1]) == '" one\\n two"'


@pytest.mark.parametrize("name", [*ALL, "parts"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "a part of type 'image_url'"),
        ([*text("a"), {"type": "input_audio"}], "a part of type 'input_audio'"),
        (["a"], "'a' in its content"),
        ([{"type": "text"}], "{'type': 'text'} in its content"),
        ([{"type": "text", "text": None}], "'text': None"),
        ([None], "None in its content"),
        (None, "has no content"),
        (3, "the content 3"),
        (b"a", "the content b'a'"),
        ({"type": "text", "text": "a"}, "the content {"),
    ],
)
def test_contents_that_are_no_text(assets: Path, name: str, content: Any, words: str) -> None:
    template = PARTS if name == "parts" else source(assets, name)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]
    with pytest.raises(UsageError) as raised:
        prompt(template, messages)
    assert words in str(raised.value) and "Message 1 (role 'assistant')" in str(raised.value)
    if content is None:
        with pytest.raises(UsageError, match=r"Message 1 .* has no content"):
            prompt(template, [messages[0], {"role": "assistant"}])


@pytest.mark.parametrize("messages", ["Hello", {"role": "user", "content": "x"}, 3, None, {3}])
def test_what_is_no_list_of_messages(messages: Any) -> None:
    with pytest.raises(UsageError, match="a list of at least one message"):
        prompt(CHATML, messages)


KNOWN = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ m.role }}:{{ m.content }}\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("content", ["zebra", "e", "user", "q", "developer", "0", text("zebra")])
@pytest.mark.parametrize("role", ["developer", "tool", "User", ""])
def test_a_message_that_would_vanish_is_refused(role: str, content: Any) -> None:
    """Also where its text happens to stand elsewhere in the prompt."""
    messages = [{"role": "user", "content": "q"}, {"role": role, "content": content}]
    with pytest.raises(UsageError, match=rf"Message 1 \(role '{role}'\) would be missing"):
        prompt(KNOWN, messages)
    prompt(KNOWN, [messages[0], {"role": role, "content": " \n"}])


@pytest.mark.parametrize("name", ALL)
def test_real_templates_lose_no_message(assets: Path, name: str) -> None:
    """Roles that a template drops are refused; those that it prints are printed."""
    for role in ("developer", "tool", "function", "Assistant"):
        try:
            shown = prompt(source(assets, name), [{"role": role, "content": "zebra"}])
        except UsageError as error:
            print(f"{role}: {error}")
            continue
        assert "zebra" in shown


@pytest.mark.parametrize(
    "template",
    ["{{ messages[-1].content }}", "{{ messages[0].content }}",
     "{% for m in messages %}{{ m.content[:10] }}{% endfor %}",
     "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}"],
)  # fmt: skip
def test_lost_texts_are_found_whatever_the_reason(template: str) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "a")]
    with pytest.raises(UsageError, match="would be missing"):
        prompt(template, [{"role": role, "content": content} for role, content in turns])


def test_what_templates_do_to_texts_is_theirs(assets: Path) -> None:
    """Trimming, JSON, thoughts that are left out, words that switch something on."""
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}"
        "{{ m.content.split('</think>')[-1] | trim | upper }}{% endif %}|{% endfor %}"
    )
    messages = [
        {"role": "user", "content": "  why \n"},
        {"role": "assistant", "content": "<think>hm</think> so"},
        {"role": "tool", "content": 'a "b"\n'},
    ]
    assert prompt(template, messages) == 'WHY|SO|"a \\"b\\"\\n"|'
    smol = source(assets, "HuggingFaceTB-SmolLM3-3B")
    system = [{"role": "system", "content": "Be brief. /no_think"}, messages[0]]
    assert "Be brief.\n\n<|im_end|>" in prompt(smol, system)


def test_calls_of_tools(assets: Path) -> None:
    """A call needs no content; a template that does not print it is found out."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Bern"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "no"},
    ]
    llama = source(assets, "meta-llama-Llama-3.1-8B-Instruct")
    shown = prompt(llama, messages, variables={"tools": TOOLS})
    assert '{"name": "weather", "parameters": {"place": "Bern"}}' in shown and '"no"' in shown
    with pytest.raises(UsageError, match=r"Message 1 .* has tool_calls, which"):
        prompt(source(assets, "HuggingFaceTB-SmolLM3-3B"), messages)
    for calls in (3, "weather", ["weather"], {"a": 1}):
        wrong = {"role": "assistant", "content": "", "tool_calls": calls}
        with pytest.raises(UsageError, match=r"Message 1 .* has tool_calls .*give a list"):
            prompt(llama, [messages[0], wrong])
    with pytest.raises(UsageError, match="has no content"):
        prompt(llama, [messages[0], messages[1] | {"tool_calls": []}])


@pytest.mark.parametrize("content", ["The capital is", "ends in spaces  ", "", text("a", "b c")])
@pytest.mark.parametrize("name", [*ALL, "parts"])
def test_a_last_message_is_continued_as_in_transformers(
    assets: Path, name: str, content: Any
) -> None:
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    template = PARTS if name == "parts" else source(assets, name)
    joined = "\n".join(part["text"] for part in content) if isinstance(content, list) else content
    for role in ("assistant", "user"):
        before = [{"role": "user", "content": "Capital?"}] if role == "assistant" else []
        expected = oracle.render_jinja_template(
            [[*before, {"role": role, "content": content if name == "parts" else joined}]],
            chat_template=template, continue_final_message=True, bos_token="<s>", eos_token="</s>",
        )[0][0]  # fmt: skip
        messages = [*before, {"role": role, "content": content}]
        assert prompt(template, messages, continue_final_message=True) == expected
        assert content == "" or expected.rstrip().endswith(joined.rstrip().rpartition("\n")[2])


def test_what_cannot_be_continued() -> None:
    messages = [{"role": "user", "content": "q"}]
    hides = "{% for m in messages %}{{ m.content.split('\uf8fe')[0] }}{% endfor %}"
    with pytest.raises(UsageError, match="cannot be continued"):
        prompt(hides, messages, continue_final_message=True)
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    with pytest.raises(UsageError, match=r"Message 1 .* has no content to go on with"):
        prompt(CHATML, [*messages, call], continue_final_message=True)


def test_an_answer_goes_on_with_the_last_message(lm: edgelm.LanguageModel) -> None:
    """Its first word keeps the space before it, which the reply to a message does not have."""
    messages = [{"role": "user", "content": "Call me"}, {"role": "assistant", "content": "I am"}]
    ids = lm.chat_ids(messages, continue_final_message=True)
    assert lm.decode(ids).endswith("assistant\nI am")
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.0}
    longer = lm.chat(messages, continue_final_message=True, **options)
    assert longer.text == lm.generate(ids, **options).text and longer.text.startswith(" ")
    assert longer.text == lm.decode([*ids, *longer.token_ids])[len(lm.decode(ids)) :]
    reply = lm.chat(messages, **options)
    assert reply.text == lm.decode(reply.token_ids) and not reply.text.startswith(" ")


def test_tools_and_variables_reach_the_template(lm: edgelm.LanguageModel, assets: Path) -> None:
    llama = source(assets, "meta-llama-Llama-3.2-3B-Instruct")
    smol = source(assets, "HuggingFaceTB-SmolLM3-3B")
    messages = [{"role": "user", "content": "q"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.tokenizer, "chat_template", llama)
        ids = lm.chat_ids(messages, tools=TOOLS, template_variables={"date_string": "1 May 1999"})
        told = lm.tokenizer.decode(ids)
        assert "1 May 1999" in told and "weather" in told and "Zürich" in told
        assert lm.chat_ids(messages, tools=TOOLS) != lm.chat_ids(messages)
        patch.setattr(lm.tokenizer, "chat_template", smol)
        off = lm.chat_ids(messages, template_variables={"enable_thinking": False})
        assert "/no_think" in lm.decode(off) and "/no_think" not in lm.decode(lm.chat_ids(messages))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": TOOLS}, "does not read tools"),
        ({"template_variables": {"enable_thinking": False}}, "the variable 'enable_thinking'"),
        ({"template_variables": {"mesages": 1}}, "the variable 'mesages'"),
        ({"template_variables": {"messages": []}}, "'messages', which is set elsewhere"),
        ({"template_variables": {"tools": []}}, "'tools', which is set elsewhere"),
        ({"template_variables": {"bos_token": ""}}, "'bos_token', which is set elsewhere"),
        ({"template_variables": [1]}, "template_variables is .*allowed: a mapping"),
        ({"template_variables": {1: 2}}, "template_variables is .*allowed: a mapping"),
        ({"tools": "weather"}, "tools is 'weather'; allowed: a list of mappings"),
        ({"tools": [print]}, "tools is .*allowed: a list of mappings"),
        ({"tools": TOOLS[0]}, "tools is .*allowed: a list of mappings"),
        ({"continue_final_message": "yes"}, "continue_final_message is 'yes'; allowed: True"),
        ({"continue_final_message": 1}, "continue_final_message is 1; allowed: True"),
        ({"parse_special": True}, r"parse_special is an option of generate\(\)"),
        ({"n": 2}, r"n is an option of generate\(\)"),
        ({"enable_thinking": False}, "write template_variables"),
    ],
)
def test_what_a_chat_refuses(lm: edgelm.LanguageModel, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        lm.chat([{"role": "user", "content": "q"}], max_new_tokens=1, **options)
    none = dict.fromkeys(("tools", "template_variables", "continue_final_message"))
    lm.chat([{"role": "user", "content": "q"}], max_new_tokens=1, **none)  # type: ignore[arg-type]


def test_deep_messages_are_refused(lm: edgelm.LanguageModel) -> None:
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    cycle: list[Any] = []
    cycle.append(cycle)
    for more in (deep, cycle):
        with pytest.raises(UsageError, match="nested too deeply"):
            lm.chat_ids([{"role": "user", "content": "q", "more": more}])
    assert lm.chat_ids([{"role": "user", "content": "q", "more": [[[]]]}], tools=[])


def test_a_trial_that_fails_refuses_nothing() -> None:
    """A template that wants a content of its own form has had it."""
    template = (
        "{% for m in messages %}{% if m.content[0] != 'q' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    assert prompt(template, [{"role": "user", "content": "quite"}]) == "quite"


def test_saved_messages_come_back_whole(lm: edgelm.LanguageModel, tmp_path: Path) -> None:
    """With parts, names and calls; what JSON cannot hold is refused."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": text("a", "b"), "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]},
    ]
    lm.chat(messages[:1], max_new_tokens=2)
    lm.save_conversation(tmp_path / "talk", messages)
    assert lm.restore_conversation(tmp_path / "talk") == messages
    for wrong in ([{"role": "user", "content": "a", "at": tmp_path}], [{"role": "user"}], ["a"]):
        with pytest.raises(UsageError):
            lm.save_conversation(tmp_path / "wrong", wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "wrong").exists()
