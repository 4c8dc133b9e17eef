"""Chat templates: render messages to the text format a model was trained on.

A template is an untrusted program from a model file, so ``template_process`` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.errors import UsageError
from edgelm.text.template_process import run_template


def render(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str | None,
    eos: str | None,
    add_generation_prompt: bool = True,
    **extra: Any,
) -> str:
    """The prompt text of a conversation.

    messages: mappings with ``role`` and ``content``, oldest first. bos, eos: the tokens' text,
    None if the model has none. extra: other variables of the template (``tools=`` ...).
    Encode the result with ``add_special=False, parse_special=True``: the template writes BOS.
    If the template refuses a system message, it is prepended to the first user message, as
    Gemma's authors do: its text, an empty line, the user's text.

    Raises UsageError for invalid messages or a missing template; ModelFileError for a template
    that is broken, tries to leave its sandbox, or exceeds the sandbox's limits.
    """
    if not template:
        raise UsageError(
            "This model has no chat template. Use generate with a prompt you write yourself, "
            "or put a chat_template.jinja into the model's folder."
        )
    _check(messages)
    tokens = {"bos_token": bos, "eos_token": eos}
    variables = {
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **{name: token for name, token in tokens.items() if token is not None},
        **extra,
    }
    try:
        return run_template(template, variables)
    except UsageError:
        if (folded := _folded(messages)) is None:
            raise
    return run_template(template, variables | {"messages": folded})


def _folded(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """Merge the system message into the user message after it; None if they are not texts."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, user = (message.get("content") for message in messages[:2])
    if not (isinstance(system, str) and isinstance(user, str)):
        return None
    return [{**messages[1], "content": f"{system}\n\n{user}"}, *messages[2:]]


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise UsageError("A chat needs at least one message, e.g. {'role': 'user', 'content': …}.")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(
                f"Message {i} is {message!r:.80}; each must be a mapping with 'role' and "
                "'content', e.g. {'role': 'user', 'content': 'Hello!'}."
            )
