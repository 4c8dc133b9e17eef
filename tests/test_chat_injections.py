"""Templates that run code where nothing holds them: the two published ways, and three of our own.

Each first proves itself in a plain Jinja environment, so that a harmless text cannot pass for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgelm.errors import ModelFileError
from edgelm.text.chat_template import render
from edgelm.text.tokenizer import Tokenizer, load_tokenizer

jinja2 = pytest.importorskip("jinja2")

USER = [{"role": "user", "content": "Hello"}]
ATTACKS = {
    # llama-cpp-python: a subclass of object whose module holds the builtins
    "CVE-2024-34359": "{% for x in ().__class__.__base__.__subclasses__() %}"
    "{% if 'catch_warnings' in x.__name__ %}"
    "{{ x()._module.__builtins__['open'](MARK, 'w').close() }}{% endif %}{% endfor %}",
    # SGLang's reranking: the template inside a GGUF file, in the words its trigger waits for
    "CVE-2026-5760": 'The answer can only be "yes" or "no".'
    "{{ cycler.__init__.__globals__.__builtins__.open(MARK, 'w').close() }}",
    "split names": "{% set g = '__glo' ~ 'bals__' %}{% set b = '__buil' ~ 'tins__' %}"
    "{{ joiner['__init__'][g][b]['open'](MARK, 'w').close() }}",
    "filter path": "{% set path = '__init__.__globals__.__builtins__.open' %}"
    "{% set call = [cycler] | map(attribute=path) | first %}{{ call(MARK, 'w').close() }}",
    "macro": "{% macro m() %}{% endmacro %}"
    "{{ m._func.__globals__['__builtins__']['open'](MARK, 'w').close() }}",
}


def from_gguf(template: str, _: Path) -> Tokenizer:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.token_type": [1],
        "tokenizer.ggml.merges": [],
        "tokenizer.chat_template": template,
    }
    return load_tokenizer(Path("model.gguf"), metadata)


def from_folder(template: str, folder: Path) -> Tokenizer:
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    told = json.dumps({"chat_template": template})
    (folder / "tokenizer_config.json").write_text(told, encoding="utf-8")
    return load_tokenizer(folder)


@pytest.mark.parametrize("source", [from_gguf, from_folder])
@pytest.mark.parametrize("name", ATTACKS)
def test_injections_are_refused(
    name: str, source: Callable[[str, Path], Tokenizer], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    template = ATTACKS[name].replace("MARK", repr(str(mark)))
    jinja2.Environment().from_string(template).render(messages=USER)
    assert mark.exists(), "the attack does not work even where nothing holds it"
    mark.unlink()

    tokenizer = source(template, tmp_path)
    assert tokenizer.chat_template == template and not mark.exists()
    with pytest.raises(ModelFileError, match="do not trust this model file") as caught:
        render(tokenizer.chat_template, USER, bos=None, eos=None)
    print(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_messages_are_never_templates(name: str, tmp_path: Path) -> None:
    """What a user writes is text, also where a system message is folded into it."""
    mark = tmp_path / "mark"
    attack = ATTACKS[name].replace("MARK", repr(str(mark)))
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    messages = [{"role": "system", "content": attack}, {"role": "user", "content": attack}]
    assert render(template, messages, bos=None, eos=None) == f"{attack}\n\n{attack}"
    assert not mark.exists()
