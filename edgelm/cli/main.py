"""``edgelm``: one command, its exit code, and one line where others show a traceback.

Nothing slow is imported before Ctrl-C has an answer.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgelm.cli import streams
from edgelm.errors import CancelledError, EdgeLMError

logger = logging.getLogger("edgelm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Without arguments, those of this program are taken.

    0 done, 1 failed, 2 wrong usage, 3 does not fit, 4 files damaged or unsupported, 130 Ctrl-C.
    """
    if arguments is not None:
        return _ended(arguments)
    given = sys.argv[1:]
    streams.open_missing()
    with _leaving_on_ctrl_c("--json" in given):
        import edgelm.cli.commands  # noqa: F401
    code = _ended(given)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop
    streams.drop_unwritten()
    return code


@contextmanager
def _leaving_on_ctrl_c(as_json: bool) -> Iterator[None]:
    """A block that Ctrl-C ends with the process: modules of C raise anything when interrupted."""

    def leave(*_: object) -> None:
        streams.print_error(_stopped(), as_json)
        streams.drop_unwritten()
        os._exit(CancelledError.exit_code)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else Ctrl-C is for somebody else
        signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped() -> EdgeLMError:
    return CancelledError("stopped by Ctrl-C")


def _ended(given: Sequence[str]) -> int:
    """Exit code of a command, after its error was printed."""
    error: EdgeLMError
    try:
        from edgelm.cli import commands

        with streams.checked_output():
            return commands.run(given)
    except EdgeLMError as raised:
        error = raised
    except KeyboardInterrupt:
        error = _stopped()
    except OSError as raised:
        logger.debug("the call that failed:", exc_info=True)
        where = f"{raised.filename}: " if raised.filename else ""
        error = EdgeLMError(f"{where}{raised.strerror or raised}. Check the disk and the paths.")
    streams.print_error(error, as_json="--json" in given)
    return error.exit_code
