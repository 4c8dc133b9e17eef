"""The three standard streams as they are in services, in pipes and on full disks."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO, cast

from edgelm.errors import ContextLengthError, DoesNotFitError, EdgeLMError, UsageError
from edgelm.text.lines import part_at_line_feeds

_MODES = {"stdin": (os.O_RDONLY, "r"), "stdout": (os.O_RDONLY, "w"), "stderr": (os.O_WRONLY, "w")}


class OutputError(EdgeLMError):
    """stdout is closed, or its disk is full."""


def open_missing() -> None:
    """Open an empty stream for each that a service or a shell's ``>&-`` started us without.

    Else the next file that is opened would get its number, and the text of any library with it.
    What is written to such a stdout fails, as on a closed pipe, instead of being lost.
    """
    for name, (access, mode) in _MODES.items():
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, access)
            setattr(sys, name, os.fdopen(handle, mode, encoding="utf-8", errors="replace"))


def drop_unwritten() -> None:
    """Let go of what could not be written, of which the interpreter would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Output:
    """stdout whose failures are errors that end a command in one line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _said():
            return self._stream.write(text)

    def flush(self) -> None:
        with _said():
            self._stream.flush()


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"stdout cannot be written: {error.strerror or error}. What follows is lost; give the "
            "output another place."
        ) from error


@contextmanager
def checked_output() -> Iterator[None]:
    """A block whose text on stdout was written when it ends.

    Raises:
        OutputError: the reader has closed its end, or the disk is full.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what a code page lacks
    with redirect_stdout(cast(TextIO, _Output(sys.stdout))):
        yield
        sys.stdout.flush()


def read_stdin() -> str:
    """All of stdin, without the line feed that ends it.

    Raises:
        UsageError: it is not the text that its encoding says.
    """
    try:
        text = part_at_line_feeds(sys.stdin).read()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not {sys.stdin.encoding} text: {error}.") from error
    return text.removesuffix("\n").removesuffix("\r")


def tell(text: str) -> None:
    """Print a line to stderr; one that nobody can read stops nothing."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_error(error: EdgeLMError, as_json: bool) -> None:
    """Print the message to stderr; with ``--json`` also the JSON document to stdout."""
    tell(f"edgelm: {error}")
    if as_json and not isinstance(error, OutputError):
        said: dict[str, Any] = {
            "type": type(error).__name__,
            "message": str(error),
            "exit_code": error.exit_code,
        }
        if isinstance(error, DoesNotFitError) and error.plan is not None:
            said["plan"] = error.plan.to_dict()
        if isinstance(error, ContextLengthError):
            said |= {"given": error.given, "allowed": error.allowed}
        with suppress(OSError):
            print_json({"error": said, **error.results})
