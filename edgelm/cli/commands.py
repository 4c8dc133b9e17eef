"""The verbs of ``edgelm`` and what runs one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from edgelm.cli.examples import epilog
from edgelm.cli.options import expanded
from edgelm.errors import EdgeLMError, UsageError
from edgelm.version import __version__

_CTRL_C = 130  # what Typer gives back for it
# ClickException, which Typer keeps under different names in different versions.
_WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[2]
_HELP = ("-h", "--help")

# Each verb's module in this package and its function, in the order of the help.
VERBS = {
    "demo": ("demo", "demo"),
    "generate": ("generate", "generate"),
    "chat": ("chat", "chat"),
    "run": ("chat", "chat"),
    "serve": ("serve", "serve"),
    "plan": ("plan", "plan"),
    "quantize": ("quantize", "quantize"),
    "verify": ("verify", "verify"),
    "eval": ("eval", "eval_"),
    "compare": ("compare", "compare"),
    "sweep": ("sweep", "sweep"),
    "bench": ("bench", "bench"),
    "inspect": ("inspect", "inspect"),
    "mask": ("mask", "mask"),
    "doctor": ("doctor", "doctor"),
    "pull": ("models", "pull"),
    "list": ("models", "list_"),
    "rm": ("models", "rm"),
    "ps": ("processes", "ps"),
}


def commands(verbs: Iterable[str] = VERBS) -> Any:
    """The command ``edgelm`` with these verbs, of which no others are imported."""
    app = typer.Typer(
        name="edgelm",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": [*_HELP]},
    )
    app.callback()(_edgelm)
    for verb in verbs:
        module, function = VERBS[verb]
        call = getattr(import_module(f"edgelm.cli.{module}"), function)
        app.command(verb, epilog=epilog(verb))(expanded(call))
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgelm {__version__}")
        raise typer.Exit


def _edgelm(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Language models in few bits on small machines, planned to the byte before they load."""


def run(given: Sequence[str]) -> int:
    """Run one command; its exit code.

    Raises:
        EdgeLMError: the command failed; UsageError if there is no such command or option.
        KeyboardInterrupt: Ctrl-C.
    """
    named = [word for word in given[:1] if word in VERBS]
    command = commands(named or VERBS)
    if given[len(named) :] in [[flag] for flag in _HELP]:
        _show_help(command, *named)
        return 0
    try:
        code: int | None = command.main(list(given), prog_name="edgelm", standalone_mode=False)
    except EdgeLMError as error:
        own = command.commands.get(given[0] if given else "")
        error.args = (_with_flags(str(error), given, own.params if own else ()),)
        raise
    except _WRONG_USAGE as raised:
        if not str(raised):
            return UsageError.exit_code  # no command was given: Typer has shown the help
        raise UsageError(_explained(raised)) from None
    if code == _CTRL_C:
        raise KeyboardInterrupt
    return code or 0


def _show_help(command: Any, verb: str | None = None) -> None:
    """Print the help, as the flag does, but without importing what reads the other flags."""
    context = command.context_class(command, info_name="edgelm", **command.context_settings)
    if verb is not None:
        own = command.commands[verb]
        context = own.context_class(own, context, info_name=verb, **own.context_settings)
    print(context.get_help())


def _with_flags(message: str, given: Sequence[str], options: Iterable[Any]) -> str:
    """The message with the flags of the command in place of Python's keywords.

    A keyword stands at the beginning, or is followed by = and its value; one that a typed file name
    begins with stays as it is.
    """
    typed = {re.split("[=/ :]", word)[0] for word in given}
    for option in options:
        if option.opts[0].startswith("-") and option.name not in typed:
            name, flag = re.escape(option.name), option.opts[0]
            message = re.sub(rf"^{name}(?=[ :])", flag, message)
            value = r"(['\"]?)([\w.%:-]+)\1"
            message = re.sub(rf"(?<![\w/.=-]){name}={value}(?![\w/])", rf"{flag} \2", message)
    return message


def _explained(error: Any) -> str:
    path = error.ctx.command_path if getattr(error, "ctx", None) else "edgelm"
    message = error.format_message().rstrip(".")
    return f"{message}{'' if message.endswith('?') else '.'} See {path} --help."
