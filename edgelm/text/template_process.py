"""Runs chat templates: programs from model files, in the process that holds their sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.errors import ModelFileError, UsageError
from edgelm.text.limited_process import LimitedProcess, LimitExceededError, Limits, QuestionError

MAX_TEMPLATE_CHARS = 2**20
LIMITS = Limits(seconds=2.0, nbytes=192 * 2**20)  # real templates take milliseconds and 1 MiB

_PROCESS = LimitedProcess("sandbox.py", ["jinja2", "markupsafe"])


def run_template(template: str, variables: Mapping[str, Any]) -> str:
    """The text that the template makes of the variables.

    Raises UsageError for variables that are no JSON, and if the template refuses or cannot render
    them; ModelFileError if it is broken, tries to leave its sandbox, or exceeds its limits.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise _stopped(
            f"it has {len(template)} characters, at most {MAX_TEMPLATE_CHARS} are allowed"
        )
    try:
        reply = _PROCESS.ask({"template": template, "variables": _plain(variables)}, LIMITS)
    except LimitExceededError as error:
        raise _stopped(str(error)) from error
    except QuestionError as error:
        raise _failed(str(error)) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or an extreme integer
        raise _failed(f"{type(error).__name__}: {error}") from error
    [(outcome, told)] = reply.items()
    if outcome == "broken":
        raise ModelFileError(
            f"The chat template does not parse: {told}. "
            "Put a corrected chat_template.jinja into the model's folder."
        )
    if outcome == "refused":
        raise UsageError(f"The chat template refuses these messages: {told}")
    if outcome == "stopped":
        raise _stopped(told)
    return str(told)


def _stopped(why: str) -> ModelFileError:
    return ModelFileError(
        f"The chat template was stopped: {why}. Templates may only turn messages into text; "
        "do not trust this model file."
    )


def _failed(why: str) -> UsageError:
    return UsageError(
        f"The chat template cannot render these messages ({why}). Check their roles and contents."
    )


def _plain(value: Any) -> Any:
    """Rebuild the value from JSON types; keys of mappings become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        f"A chat template was given a value of type {type(value).__name__}; allowed are text, "
        "numbers, booleans, None, and lists and mappings of these."
    )
