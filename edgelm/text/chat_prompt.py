"""A conversation as the token ids that a model answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.errors import UsageError
from edgelm.text.chat_template import render
from edgelm.text.hidden_tokens import HiddenTokens, turn_tokens
from edgelm.text.messages import Messages
from edgelm.text.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]]

# Variables of a template that have another source.
_SET = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


def encode_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    tools: Tools | None = None,
    template_variables: Mapping[str, Any] | None = None,
    continue_final_message: bool = False,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Ids of a conversation in the model's template, ready to be answered.

    Special tokens are read in what the template itself writes, and nowhere in messages, tools and
    variables. See ``render`` for the arguments; tools are a variable too.

    Raises UsageError also for variables that the template does not read.
    """
    variables = dict(template_variables or {})
    if taken := [name for name in variables if name in _SET]:
        raise UsageError(
            f"template_variables holds {taken[0]!r}, which is set elsewhere: by the messages, "
            "tools=, continue_final_message= or the tokenizer. Leave it out."
        )
    if tools:
        variables["tools"] = list(tools)
    _check_read(tokenizer.chat_template or "", variables)
    hidden = HiddenTokens(turn_tokens(tokenizer), messages, variables)
    text = render(
        tokenizer.chat_template,
        hidden.inside(messages),
        bos=tokenizer.token_of(tokenizer.bos_id),
        eos=tokenizer.token_of(tokenizer.eos_id),
        continue_final_message=continue_final_message,
        add_generation_prompt=add_generation_prompt,
        variables=hidden.inside(variables),
    )
    return tokenizer.encode(text, add_special=False, parse_special=True, mark=hidden.mark)


def _check_read(template: str, variables: Mapping[str, Any]) -> None:
    """A name that the template's source does not hold would do nothing there."""
    for name in variables:
        if template and not re.search(rf"\b{re.escape(name)}\b", template):
            what = "tools" if name == "tools" else f"the variable {name!r} of template_variables"
            raise UsageError(
                f"The model's chat template does not read {what}: the model would never see it. "
                "Check the name, or leave it out."
            )
