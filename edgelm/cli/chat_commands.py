"""The commands of ``edgelm chat``: one table. Any other line that begins with / is text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.budget.units import human
from edgelm.cli import console
from edgelm.errors import UsageError
from edgelm.generation.option_table import CHAT, AnswerOptions
from edgelm.option import checked, options_in

if TYPE_CHECKING:
    from edgelm.cli.chat_state import Chat


@dataclass(frozen=True)
class Command:
    """A command: ``call`` gets the chat and what stands behind the name.

    in_pipes: obeyed in lines from a pipe too, which may be anybody's.
    """

    argument: str
    help: str
    call: Callable[[Chat, str], None]
    in_pipes: bool = False


def command_in(line: str) -> tuple[Command, str] | None:
    """The command that a line gives, and its argument; None for text."""
    name, _, argument = line.strip().partition(" ")
    own = COMMANDS.get(name)
    return None if own is None else (own, argument.strip())


def _help(chat: Chat, _: str) -> None:
    for name, own in COMMANDS.items():
        chat.tell(f"{f'{name} {own.argument}'.strip():<18} {own.help}")
    chat.tell('Lines between """ and """ are one message; Esc Enter begins a new line, too.')
    chat.tell("Ctrl-C clears the line or stops an answer, which keeps what came; Ctrl-D ends.")


def _system(chat: Chat, text: str) -> None:
    if text:
        chat.dialogue.system = "" if text == "-" else text
    chat.tell(f"system: {chat.dialogue.system or 'none'}")


def _regen(chat: Chat, _: str) -> None:
    chat.answer(chat.dialogue.again)


def _undo(chat: Chat, _: str) -> None:
    chat.tell(f"taken back: {chat.dialogue.undo():.60}")


def _edit(chat: Chat, _: str) -> None:
    chat.offered = chat.dialogue.undo()


def _forget(chat: Chat, text: str) -> None:
    if text and not text.isdecimal():
        raise UsageError(f"/forget {text:.40}: give a number of turns, or nothing for one.")
    count = chat.dialogue.forget(int(text or 1))
    chat.tell(f"forgot {count} of the oldest turns; {chat.dialogue.free_tokens} tokens are free")


def _reset(chat: Chat, _: str) -> None:
    chat.dialogue.reset()


def _set(chat: Chat, text: str) -> None:
    """An option of the answers; without a value back to the model's own."""
    name, _, value = text.replace("=", " ").partition(" ")
    options = chat.dialogue.options
    if name:
        [name] = checked({name.replace("-", "_"): None}, CHAT)
        options.pop(name, None)
    if value:
        options[name] = _value(name, value.strip())
    given = {own: options[own] for own in options if options[own] is not None}
    shown = ", ".join(f"{own} {value}" for own, value in given.items())
    chat.tell(shown or "all settings are the model's own; /set temperature 0.7 changes one")


def _value(name: str, text: str) -> Any:
    option = options_in(AnswerOptions).get(name)
    if option is None or option.flag not in (int, float, str):
        raise UsageError(f"/set {name}: it cannot be set here; give it when the chat is started.")
    try:
        return option.require(name, option.flag(text))
    except ValueError:
        raise UsageError(f"{name} is {text!r:.40}; allowed: {option.allowed}.") from None


def _stats(chat: Chat, _: str) -> None:
    dialogue, plan = chat.dialogue, chat.dialogue.lm.plan
    if dialogue.answers:
        chat.tell(console.statistics_line(plan, dialogue.answers[-1].stats))
    told = f"{len(dialogue.messages)} messages take {dialogue.used_tokens} of {plan.context} tokens"
    chat.tell(f"{told}, {len(dialogue.answers)} answers were given")


def _save(chat: Chat, file: str) -> None:
    if not file:
        raise UsageError("/save FILE: name the file.")
    path = Path(file).expanduser()
    there = path.exists()
    chat.dialogue.save(path)
    done = "replaced the conversation in" if there else "saved to"
    size = human(path.stat().st_size)
    chat.tell(f"{done} {path}: {len(chat.dialogue.messages)} messages, {size}")


def _load(chat: Chat, file: str) -> None:
    if not file:
        raise UsageError("/load FILE: name a file that /save wrote.")
    path = Path(file).expanduser()
    chat.dialogue.load(path)
    chat.tell(f"loaded {path}: {len(chat.dialogue.messages)} messages")


def _exit(chat: Chat, _: str) -> None:
    chat.ended = True


COMMANDS: dict[str, Command] = {
    "/help": Command("", "shows this", _help),
    "/system": Command("TEXT", "sets the system message (- for none), or shows it", _system),
    "/regen": Command("", "answers the last question again", _regen),
    "/undo": Command("", "takes the last question and its answer back", _undo),
    "/edit": Command("", "takes it back and puts it into the prompt, to be changed", _edit),
    "/forget": Command("N", "drops the oldest N turns (1), which makes room", _forget),
    "/reset": Command("", "starts over, with the same system message", _reset, in_pipes=True),
    "/set": Command("NAME VALUE", "sets temperature, top_p, max_tokens, ... or shows them", _set),
    "/stats": Command("", "shows the last answer's speed, and what the context holds", _stats),
    "/save": Command("FILE", "keeps the conversation in a file", _save),
    "/load": Command("FILE", "goes on with a kept conversation", _load, in_pipes=True),
    "/exit": Command("", "ends; so does Ctrl-D", _exit, in_pipes=True),
}
