"""Templates that outrun any count of what they build, and what transformers' templates may use."""

from __future__ import annotations

import resource  # of POSIX, as the limits measured here
import time
from typing import Any

import pytest

from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.text import template_process
from edgelm.text.chat_template import render
from edgelm.text.limited_process import Limits
from edgelm.text.template_process import run_template

USER = [{"role": "user", "content": "Hello"}]
TWICE = "{% set n = namespace(x=START) %}{% for i in range(99) %}{% set n.x = GROWN %}{% endfor %}"


def grows(start: str, grown: str) -> str:
    return TWICE.replace("START", start).replace("GROWN", grown) + "{{ n.x | length }}"


BOMBS = {
    "shared lists compared": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "round": "{{ 1 | round(300000000, 'ceil') }}",
    "integer to bytes": "{{ (1).to_bytes(3000000000, 'big') | length }}",
    "floor division": "{% set ns = namespace(x=9) %}{% for i in range(24) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}{{ (ns.x // (ns.x // 7)) % 2 }}",
    "sum of lists": "{% set l = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set l.x = l.x + [range(300) | list] %}{% endfor %}{{ l.x | sum(start=[]) | length }}",
    "indent of tojson": "{{ [[[[1] * 99] * 99] * 9] | tojson(indent='x' * 1000000) | length }}",
    "punycode": "{{ ('\u00e9' * 3000000).encode('punycode') | length }}",
    "map of replace": "{{ (['a' * 100000] * 300) | map('replace', 'a', 'b' * 100) | list }}",
    "slots of a list": grows("[1]", "n.x * 2"),
    "mappings": grows("{'k': 1}", "dict(a=n.x, b=n.x | string)"),
    "filters in filters": grows("'xx'", "n.x | replace('x', 'xx') | center(n.x | length * 2)"),
    "escaping": grows("'&'", "n.x | replace('&', '&&') | escape | string"),
    "slices": "{{ range(99999) | slice(99999999) | list | length }}",
    "batches": "{{ range(9) | batch(2000000000, 0) | list | length }}",
    "products of loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a ~ b %}"
    "{% endfor %}{% endfor %}",
    "a method of a format": "{{ ('{0:>{1}}' * 9).format('x', 400000000) }}",
    "digits": "{{ (7 ** 9999999) | string | length }}",
    "powers of powers": "{{ ((3 ** 3) ** 9999999) % 7 }}",
    "blocks that call themselves": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "loops that call themselves": "{% for x in [[]] recursive %}{{ loop([[]]) }}{{ loop([[]]) }}"
    "{% endfor %}",
    "words": "{{ ('x ' * 20000000) | wordcount }}{{ ('x ' * 20000000) | wordwrap(1) | length }}",
    "sorting": "{% for i in range(999) %}{{ range(99999) | map('string') | sort | unique | list }}"
    "{% endfor %}",
    "groups": "{% for i in range(999) %}{{ range(99999) | groupby('real') | length }}{% endfor %}",
    "links": "{{ ('http://a.b/(' * 3000000) | urlize | length }}",
    "tags": "{{ ('<' * 300000) | striptags | length }}{{ ('<!--' * 3000000) | striptags }}",
    "brackets": "{{ " + "[" * 300000 + "]" * 300000 + " }}",
    "operators": "{{ " + "-" * 900000 + "1 }}",
    "branches": "{% if 1 %}" * 60000 + "{% endif %}" * 60000,
    "constants": "{{ (9" + "**9" * 9 + ") % 7 }}",
    "a long source": "{{ 1 }}" * 1500000,
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within their limits, which are the real ones but for the time."""
    monkeypatch.setattr(template_process, "LIMITS", Limits(0.5, template_process.LIMITS.nbytes))
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(EdgeLMError) as caught:
        render(template, USER, bos=None, eos=None)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{time.monotonic() - began:.2f} s, {grown_kib} KiB: {str(caught.value)[:200]}")
    assert time.process_time() - start < 1 and grown_kib < 100 * 2**10
    assert time.monotonic() - began < 10  # the machine may be busy
    assert render("{{ messages[0].content }}", USER, bos=None, eos=None) == "Hello"


def test_the_real_limits_hold_and_are_said() -> None:
    began = time.monotonic()
    with pytest.raises(ModelFileError, match=r"ran longer than 2 s.*do not trust"):
        render("{% for a in range(99999) %}" * 2 + "{% endfor %}" * 2, USER, bos=None, eos=None)
    assert time.monotonic() - began < 15
    with pytest.raises(ModelFileError, match="more than 192 MiB of memory"):
        render("{{ 'a' * 10 ** 10 }}", USER, bos=None, eos=None)
    with pytest.raises(ModelFileError, match="writes more than 16777216 characters"):
        render("{{ 'a' * (2 ** 24 + 1) }}", USER, bos=None, eos=None)


def test_long_values_come_through() -> None:
    messages = [{"role": "user", "content": "wörd 🎉\n" * 500_000}]
    assert (
        render("{{ messages[0].content }}", messages, bos=None, eos=None)
        == (messages[0]["content"])
    )
    surrogate = [{"role": "user", "content": "\ud800"}]
    assert render("{{ messages[0].content }}", surrogate, bos=None, eos=None) == "\ud800"


VALUES: dict[str, Any] = {
    "tools": [{"name": "é<b>", "parameters": {"b": [1, 2.5, None, True], "a": {}}}],
    "text": "  Ünïcode and 'quotes' \"too\"\n second line\n",
    "numbers": [3, 1, 2],
    "nested": {"x": [{"y": 1}, {"y": 2}], "empty": [], "none": None},
}
USED = {
    "tojson": "{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ nested | tojson(true) }}",
    "tojson arguments": "{{ tools | tojson(ensure_ascii=true, separators=(',', ':'), "
    "sort_keys=true) }}{{ tools | tojson(indent='\t') }}",
    "generation": "{% for n in numbers %}{% generation %}{% set x = n %}<{{ n }}>"
    "{% endgeneration %}{{ x }}{% endfor %}",
    "loop controls": "{% for n in numbers %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "methods of text": "{{ text.strip() }}|{{ text.lstrip('\n ') }}|{{ text.rstrip() }}|"
    "{{ text.split('\n') }}|{{ text.split('a')[-1] }}|{{ text.splitlines() }}|{{ text.upper() }}|"
    "{{ text.lower().title() }}|{{ text.replace('and', '&', 1) }}|{{ text.startswith(' ') }}|"
    "{{ text.endswith('\n') }}|{{ text.find('and') }}|{{ text.count('o') }}|"
    "{{ text.strip().partition(' ') }}|{{ text.rpartition('q') }}|{{ 'a-b'.rsplit('-', 1) }}|"
    "{{ 'x'.center(9) }}|{{ 'x'.ljust(4) }}|{{ '7'.zfill(3) }}|{{ 'ab'.join(['1', '2']) }}|"
    "{{ '%s of %d' % ('a', 3) }}|{{ '{:>5}|{x}'.format('a', x=1) }}|{{ 'aB'.swapcase() }}|"
    "{{ 'a'.isalpha() }}|{{ '1'.isdigit() }}|{{ 'ab'.capitalize() }}|{{ 'ab'.removeprefix('a') }}",
    "methods of mappings": "{% for k, v in nested.items() %}{{ k }}={{ v }};{% endfor %}"
    "{{ nested.keys() | list }}{{ nested.values() | list }}{{ nested.get('no', 'n') }}"
    "{{ nested.x[0].get('y') }}{{ nested.copy().none is none }}",
    "methods of lists": "{{ numbers.index(2) }}{{ numbers.count(1) }}{{ numbers[1:] }}"
    "{{ numbers[::-1] }}{{ numbers + [4] }}{{ 3 in numbers }}",
    "filters": "{{ numbers | sort | join(', ') }}{{ numbers | sum }}{{ numbers | min }}"
    "{{ numbers | max }}{{ numbers | reverse | list }}{{ numbers | batch(2) | list }}"
    "{{ numbers | slice(2) | list }}{{ nested | dictsort }}"
    "{{ nested.x | map(attribute='y') | list }}"
    "{{ nested.x | selectattr('y', 'gt', 1) | list }}{{ text | trim | indent(2) }}"
    "{{ text | wordcount }}"
    "{{ text | title }}{{ text | center(60) }}{{ '%s' | format('a') }}{{ text | length }}"
    "{{ text | truncate(9) }}{{ text | wordwrap(9) }}{{ numbers | first }}{{ numbers | last }}"
    "{{ nested.none | default('d', true) }}{{ tools | pprint }}{{ nested.x | groupby('y') | list }}"
    "{{ '1.5' | float + 1 }}{{ '7' | int }}{{ 2.567 | round(1) }}{{ -3 | abs }}{{ text | e }}"
    "{{ 'a b' | urlencode }}{{ nested | items | list }}{{ 1024 | filesizeformat }}"
    "{{ {'a': 1} | xmlattr }}{{ numbers | unique | list }}{{ 'http://a.bc' | urlize }}"
    "{{ '<b>x</b>' | striptags }}{{ numbers | string }}{{ text | list | length }}",
    "objects": "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}"
    "{% set c = cycler('x', 'y') %}{{ c.next() }}{{ c.next() }}{{ dict(a=1) }}"
    "{{ range(3) | list }}{% macro m(a, b=2) %}"
    "{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{% macro w() %}{{ caller() }}{% endmacro %}"
    "{% call w() %}x{% endcall %}"
    "{% filter upper %}up{% endfilter %}{% with z = 3 %}{{ z }}{% endwith %}"
    "{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b{{ lipsum is defined }}",
    "operators": "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 40 }}{{ 'a' ~ 1 }}{{ 'a' * 3 }}{{ 1 < 2 <= 2 }}"
    "{{ 'x' if numbers else 'y' }}{{ numbers is iterable and text is string }}{{ 1 / 3 }}",
    "strftime_now": "{{ strftime_now('%Y-%m-%d') }}",
}


@pytest.mark.parametrize("template", USED.values(), ids=USED.keys())
def test_what_templates_use_is_transformers(template: str) -> None:
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    variables = {"messages": USER, "documents": None, "add_generation_prompt": True, **VALUES}
    expected = oracle._compile_jinja_template(template).render(**variables)
    assert run_template(template, variables) == expected


def test_raise_exception_is_a_refusal() -> None:
    with pytest.raises(UsageError, match="refuses these messages: 7 turns"):
        render("{{ raise_exception(7 ~ ' turns') }}", USER, bos=None, eos=None)
