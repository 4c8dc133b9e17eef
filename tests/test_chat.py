"""Chat templates: equal to transformers', and nothing a hostile one can do to the process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.models import persimmon
from edgelm.models.model_files import ModelFiles
from edgelm.text.chat_template import render
from edgelm.text.template_process import run_template

USER = [{"role": "user", "content": 'Hi <b>é</b> "quoted"\n'}]
TURNS = [*USER, {"role": "assistant", "content": " Hello. "}, {"role": "user", "content": "Why?"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS]
FOLDED = [{"role": "user", "content": "Be brief.\n\n" + USER[0]["content"]}, *TURNS[1:]]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wie ist das Wetter in Zürich?",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
TEMPLATES = [
    "HuggingFaceTB-SmolLM3-3B",
    "google-gemma-2-2b-it",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
]


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_FILES = {
    "ChatML": CHATML,
    "SmolLM2": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
    "AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" + CHATML,
    "Persimmon": persimmon.CHAT_TEMPLATE,
}


def render_one(template: str, messages: Any = USER, **extra: Any) -> str:
    """What a template prints, whether or not that holds the messages."""
    variables = {"tools": None, "bos_token": "<s>", "eos_token": "</s>"}
    return run_template(template, {"messages": messages, **variables, **extra})


def prompt(template: str | None, messages: Any = USER, **options: Any) -> str:
    return render(template, messages, bos="<s>", eos="</s>", **options)


@pytest.mark.parametrize("extra", [{}, {"tools": TOOLS}], ids=["plain", "tools"])
@pytest.mark.parametrize("opens", [True, False], ids=["prompt", "no-prompt"])
@pytest.mark.parametrize("messages", [USER, TURNS, SYSTEM], ids=["user", "turns", "system"])
@pytest.mark.parametrize("name", [*TEMPLATES, *WITHOUT_FILES])
def test_equals_transformers(
    assets: Path, name: str, messages: list[dict[str, str]], opens: bool, extra: dict[str, Any]
) -> None:
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    template = WITHOUT_FILES.get(name)
    if template is None:
        template = (assets / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    folds = name in ("google-gemma-2-2b-it", "Persimmon") and messages is SYSTEM
    expected = oracle.render_jinja_template(
        [FOLDED if folds else messages],
        chat_template=template,
        add_generation_prompt=opens,
        bos_token="<s>",
        eos_token="</s>",
        **extra,
    )[0][0]
    ours = prompt(template, messages, add_generation_prompt=opens, variables=extra)
    assert ours == expected


def test_persimmon_reads_as_documented() -> None:
    hello = [{"role": "user", "content": "Hello"}]
    assert prompt(persimmon.CHAT_TEMPLATE, hello) == "<s>human: Hello\n\nadept:"
    turns = [*hello, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Why?"}]
    told = "<s>human: Hello\n\nadept: Hi.\n\nhuman: Why?\n\nadept:"
    assert prompt(persimmon.CHAT_TEMPLATE, turns) == told


def test_families_template_where_the_files_hold_none(assets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(assets / "nano/persimmon", folder)
    assert ModelFiles.open(folder).tokenizer.chat_template == persimmon.CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text("its own", encoding="utf-8")
    assert ModelFiles.open(folder).tokenizer.chat_template == "its own"
    assert ModelFiles.open(assets / "nano/llama").tokenizer.chat_template is None


def test_system_message_is_folded_only_where_it_can_be() -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    shows = "{% for m in messages %}[{{ m.role }}:{{ m.content }}:{{ m.name }}]{% endfor %}"
    system = {"role": "system", "content": "S"}
    user = {"role": "user", "content": "U", "name": "n"}
    parts = {"role": "user", "content": [{"type": "text", "text": "U"}]}
    assert prompt(refuses + shows, [system, user]) == "[user:S\n\nU:n]"
    assert prompt(refuses + shows, [system, parts]) == "[user:S\n\nU:]"
    assert prompt(shows, [system, user]) == "[system:S:][user:U:n]"
    for messages in ([system], [system, {"role": "assistant", "content": "A"}]):
        with pytest.raises(UsageError, match="no system"):
            prompt(refuses + shows, messages)
    with pytest.raises(UsageError, match="no user either"):
        prompt(refuses + "{{ raise_exception('no user either') }}", [system, user])
    assert (system["content"], user["content"]) == ("S", "U")


def test_environment_is_transformers() -> None:
    template = (
        "{% for m in messages %}\n  {% if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}"
        "{{ tools is none }} {{ strftime_now('%Y') | length }}"
    )
    expected = '{"role": "user", "content": "Hi <b>é</b> \\"quoted\\"\\n"}True 4'
    assert render_one(template, TURNS) == expected


def test_absent_tokens_are_undefined() -> None:
    template = "[{{ bos_token }}|{{ eos_token is defined }}]"
    assert render(template + "{{ messages[0].content }}", USER, bos=None, eos=None) == (
        f"[|False]{USER[0]['content']}"
    )


def test_no_template_says_what_to_do() -> None:
    for template in (None, ""):
        with pytest.raises(UsageError, match=r"no chat template.*chat_template\.jinja"):
            prompt(template)


@pytest.mark.parametrize("messages", [[], ["Hi"], [{"content": "Hi"}], [{"role": 3}]])
def test_messages_must_be_messages(messages: Any) -> None:
    with pytest.raises(UsageError, match="role"):
        prompt("{{ messages }}", messages)


def test_a_message_the_template_cannot_use() -> None:
    with pytest.raises(UsageError, match="cannot render these messages"):
        render_one("{{ messages[0]['content'] + 1 }}")
    with pytest.raises(UsageError, match="type object"):
        render_one("{{ thing }}", thing=object())


def test_broken_template_names_the_line() -> None:
    with pytest.raises(ModelFileError, match="line 2"):
        render_one("ok\n{% for %}")


def test_messages_stay_as_they_were() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    for attack in ("{{ messages.append(1) }}", "{{ messages[0].update(role='system') }}"):
        with pytest.raises(ModelFileError, match="stopped"):
            render_one(attack, messages)
    assert messages == [{"role": "user", "content": "Hi"}]


# The first is the shape of CVE-2024-34359 (llama-cpp-python rendered outside a sandbox).
ESCAPES = {
    "subclasses": "{% for c in ().__class__.__base__.__subclasses__() %}{% if 'warning' in "
    "c.__name__ %}{{ c()._module.__builtins__['__import__']('os').popen('id').read() }}"
    "{% endif %}{% endfor %}",
    "globals": "{{ raise_exception.__globals__['sys'].modules['os'].system('id') }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "attr-filter": "{{ (messages | attr('__class__')) | attr('__mro__') }}",
    "map-attribute": "{{ messages | map(attribute='__class__.__mro__') | list }}",
    "undefined": "{{ nothing.__init__.__globals__ }}",
    "frame": "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "namespace": "{% set n = namespace(__class__=1) %}{{ n }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
}


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES.keys())
def test_escape_attempts_reach_nothing(template: str) -> None:
    try:
        text = render_one(template)
    except EdgeLMError as error:
        text = str(error)
    print(text)
    for leak in ("uid=", "class 'object'", "<class", "root:", "code object", "builtins"):
        assert leak not in text


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "range": "{{ range(10**9) | list | length }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "times": "{{ 'x' * 10**12 }}",
    "list-times": "{{ [0] * 10**12 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power-chain": "{% set n = namespace(x=9) %}{% for i in range(99) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "power-negative": "{{ (-10) ** (10 ** 10) }}",
    "plus": "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "tilde": "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "block": "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set y %}{{ n.x }}{{ n.x }}"
    "{% endset %}{% set n.x = y %}{% endfor %}",
    "nested": "{% set n = namespace(x=['x']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% endfor %}{{ n.x }}",
    "nested-json": "{% set n = namespace(x=['x']) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson | length }}",
    "replace": "{% set n = namespace(x='xx') %}{% for i in range(9) %}"
    "{% set n.x = n.x.replace('x', n.x) %}{% endfor %}",
    "replace-filter": "{% set n = namespace(x='xx') %}{% for i in range(9) %}"
    "{% set n.x = n.x | replace('x', n.x) %}{% endfor %}",
    "replace-empty": "{% set x = 'x' * 9999999 %}{{ x.replace('', x) }}",
    "join": "{{ (('x' * 9999999).join(range(99999) | map('string') | list)) | length }}",
    "join-lazy": "{{ (('x' * 9999999).join(range(99999) | map('string'))) | length }}",
    "join-filter": "{{ range(99999) | join('x' * 9999999) | length }}",
    "format": "{{ '{:>999999999999}'.format(1) }}",
    "format-nested": "{{ '{:>{}}'.format(1, 999999999999) }}",
    "format-many": "{{ ('{:999}' * 999999).format(*range(99999)) }}",
    "percent": "{{ '%999999999999d' % 1 }}",
    "percent-star": "{{ '%*d' % (999999999999, 1) }}",
    "ljust": "{{ 'x'.ljust(999999999999) }}",
    "ljust-attr": "{{ ('x' | attr('ljust'))(999999999999) }}",
    "center": "{{ 'x' | center(999999999999) }}",
    "indent": "{{ 'x\ny' | indent(999999999999) }}",
    "json-indent": "{{ messages | tojson(indent=999999999999) }}",
    "batch": "{{ [1] | batch(999999999999, 0) | list }}",
    "lipsum": "{{ lipsum(n=999999999) }}",
    "deep": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "long": "x" * (2**20 + 1),
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_stopped(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(EdgeLMError) as caught:
        render_one(template)
    took = time.monotonic() - start
    print(f"{took:.2f} s: {caught.value}")
    assert took < 8  # the limit is 2 s of the template's own time; the machine may be busy


def test_arithmetic_of_real_templates_passes() -> None:
    template = (
        "{{ 8192 * 8192 }} {{ 2 ** 20 }} {{ 7 % 4 }} {{ '%02d-%s' % (3, 'x') }} {{ '-' * 5 }}"
    )
    template += " {{ '{:03d}'.format(7) }} {{ [1] + [2] }} {{ ', '.join(['a', 'b']) }}"
    assert render_one(template) == "67108864 1048576 3 03-x ----- 007 [1, 2] a, b"


def test_filters_of_real_templates_pass() -> None:
    template = (
        "{{ messages | map(attribute='role') | join(',') }} "
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
        "{{ messages | rejectattr('role', 'equalto', 'user') | map('length') | list }} "
        "{{ messages | map(attribute='content') | map('trim') | list | last }}"
    )
    assert render_one(template, TURNS) == "user,assistant,user 2 [2] Why?"


def test_long_conversations_pass() -> None:
    messages = [{"role": "user", "content": "word " * 200} for _ in range(2000)]
    template = "{% for m in messages %}{{ m['content'] | trim ~ '\n' }}{% endfor %}"
    assert len(render_one(template, messages)) == 2000 * 1000
