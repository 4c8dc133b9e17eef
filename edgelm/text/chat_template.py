"""Chat templates: render messages to the text format a model was trained on.

A template is an untrusted program from a model file, so ``template_process`` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from edgelm.errors import EdgeLMError, UsageError
from edgelm.text.messages import (
    Message,
    Messages,
    checked_messages,
    continued,
    probes,
    require_told,
)
from edgelm.text.template_process import run_template

# Stands behind a text that is to go on; its space shows whether the template trims.
_CUT = "\uf8fe "


def render(
    template: str | None,
    messages: Messages,
    *,
    bos: str | None,
    eos: str | None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text of a conversation.

    messages: mappings with ``role`` and ``content``, oldest first; a content is a text, or a list
    of parts ``{"type": "text", "text": …}``, or None beside ``tool_calls``. bos, eos: the tokens'
    text, None if the model has none. continue_final_message: end behind the last message's text,
    which is to go on, instead of opening a turn. variables: others of the template (``tools`` ...).
    If the template refuses a system message, it is prepended to the first user message, as
    Gemma's authors do: its text, an empty line, the user's text.

    Encode the result with ``add_special=False, parse_special=True``: the template writes BOS. It
    reads special tokens in the contents too, unless they are hidden; see ``encode_chat``.

    Raises UsageError for invalid messages, messages that the template does not print, or a missing
    template; ModelFileError for a template that is broken, tries to leave its sandbox, or exceeds
    the sandbox's limits.
    """
    if not template:
        raise UsageError(
            "This model has no chat template. Use generate with a prompt you write yourself, "
            "or put a chat_template.jinja into the model's folder."
        )
    told = checked_messages(messages, lambda: _takes_parts(template))
    tokens = {"bos_token": bos, "eos_token": eos}
    given = {
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt and not continue_final_message,
        **{name: token for name, token in tokens.items() if token is not None},
        **(variables or {}),
    }
    text = _fold_and_run(template, continued(told, _CUT) if continue_final_message else told, given)
    _require_all_told(template, told, given)
    return _until_cut(text) if continue_final_message else text


def _require_all_told(
    template: str, messages: Sequence[Message], variables: dict[str, Any]
) -> None:
    try:
        shown = _fold_and_run(template, probes(messages), variables)
    except UsageError:
        return  # it wants contents of a certain form, and has had them
    require_told(messages, shown)


def _until_cut(text: str) -> str:
    """The text that ends in the last message; as in transformers' ``render_jinja_template``."""
    before, cut, _ = text.rpartition(_CUT.strip())
    if not cut:
        raise UsageError(
            "The chat template does not print the end of the last message, so it cannot be "
            "continued. Leave out continue_final_message."
        )
    return before if text.startswith(_CUT, len(before)) else before.rstrip()


@lru_cache(maxsize=8)
def _takes_parts(template: str) -> bool:
    """True if the template prints the texts of parts, and not their Python or JSON form."""
    parts = [{"type": "text", "text": text} for text in ("first part", "second part")]
    variables = {
        "messages": [{"role": "user", "content": parts}], "tools": None, "documents": None,
        "add_generation_prompt": False, "bos_token": "", "eos_token": "",
    }  # fmt: skip
    try:
        text = run_template(template, variables)
    except EdgeLMError:
        return False
    between, found, _ = text.partition("first part")[2].partition("second part")
    return bool(found) and "type" not in between


def _fold_and_run(template: str, messages: Sequence[Message], variables: dict[str, Any]) -> str:
    try:
        return run_template(template, variables | {"messages": messages})
    except UsageError:
        if (folded := _folded(messages)) is None:
            raise
    return run_template(template, variables | {"messages": folded})


def _folded(messages: Sequence[Message]) -> list[Message] | None:
    """Merge the system message into the user message after it; None if they are not texts."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, user = (message.get("content") for message in messages[:2])
    if not (isinstance(system, str) and isinstance(user, str)):
        return None
    return [{**messages[1], "content": f"{system}\n\n{user}"}, *messages[2:]]
