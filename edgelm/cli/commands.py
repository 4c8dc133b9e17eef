"""The verbs of ``edgelm`` and what runs one of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import edgelm
from edgelm.cli import (
    bench,
    chat,
    demo,
    doctor,
    eval,
    generate,
    inspect,
    mask,
    plan,
    quantize,
    serve,
)
from edgelm.cli.examples import epilog
from edgelm.cli.options import expanded
from edgelm.errors import EdgeLMError, UsageError

_CTRL_C = 130  # what Typer gives back for it
# ClickException, which Typer keeps under different names in different versions.
_WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="edgelm",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    demo.demo,
    generate.generate,
    chat.chat,
    serve.serve,
    plan.plan,
    quantize.quantize,
    eval.eval_,
    bench.bench,
    inspect.inspect,
    mask.mask,
    doctor.doctor,
):
    command = verb.__name__.rstrip("_")
    app.command(command, epilog=epilog(command))(expanded(verb))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgelm {edgelm.__version__}")
        raise typer.Exit


@app.callback()
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
    try:
        code: int | None = app(list(given), prog_name="edgelm", standalone_mode=False)
    except EdgeLMError as error:
        error.args = (_with_flags(str(error), given),)
        raise
    except _WRONG_USAGE as raised:
        if not str(raised):
            return UsageError.exit_code  # no command was given: Typer has shown the help
        raise UsageError(_explained(raised)) from None
    if code == _CTRL_C:
        raise KeyboardInterrupt
    return code or 0


def _with_flags(message: str, given: Sequence[str]) -> str:
    """The message with the flags of the command in place of Python's keywords.

    A keyword stands at the beginning, or is followed by = and its value; one that a typed file name
    begins with stays as it is.
    """
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((commands[word] for word in given if word in commands), None)
    typed = {re.split("[=/ :]", word)[0] for word in given}
    for option in command.params if command else ():
        if option.opts[0].startswith("-") and option.name not in typed:
            name, flag = re.escape(option.name), option.opts[0]
            message = re.sub(rf"^{name}(?=[ :])", flag, message)
            value = r"(['\"]?)([\w.%:-]+)\1"
            message = re.sub(rf"(?<![\w/.=-]){name}={value}(?![\w/])", rf"{flag} \2", message)
    return message


def _explained(error: Any) -> str:
    path = error.ctx.command_path if getattr(error, "ctx", None) else "edgelm"
    return f"{error.format_message().rstrip('.')}. See {path} --help."
