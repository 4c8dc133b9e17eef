"""Terminal output: answers are streamed to stdout, everything about them goes to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from edgelm.budget.units import human
from edgelm.cli.options import OutputOptions
from edgelm.cli.streams import print_error as print_error
from edgelm.cli.streams import print_json as print_json
from edgelm.cli.streams import tell

if TYPE_CHECKING:
    from edgelm.budget.plan import Plan
    from edgelm.generation.request import Chunk, Result, Stats


def set_verbosity(output: OutputOptions) -> None:
    """Show the package's log on stderr: warnings, and on terminals also downloads."""
    logger = logging.getLogger("edgelm")
    level = logging.INFO if sys.stderr.isatty() else logging.WARNING
    level = logging.DEBUG if output.verbose else level
    logger.setLevel(logging.ERROR if output.quiet else level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("edgelm: %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False


def stdout() -> Console:
    """Console for tables; Rich checks NO_COLOR and the kind of stdout."""
    return Console(highlight=False, emoji=False, markup=False, soft_wrap=True)


def note(text: str, output: OutputOptions) -> None:
    """Print a line about an answer to stderr, on terminals or if requested."""
    if output.verbose or (sys.stderr.isatty() and not output.quiet):
        tell(text)


def say(chunks: Generator[Chunk, None, None], output: OutputOptions) -> Result:
    """Write an answer while it is generated (nothing with ``--json``); returns the whole answer."""
    from edgelm.generation.request import collect

    def written() -> Iterator[Chunk]:
        for chunk in chunks:
            if not output.json:
                print(chunk.text, end="", flush=True)
            yield chunk

    with closing(chunks):  # anything that stops the output also stops the model
        answer = collect(written())
    if not output.json:
        print()
    return answer


def plan_line(plan: Plan) -> str:
    """A plan in one line."""
    parts = ", ".join(f"{part.name} {human(part.bytes)}" for part in plan.parts)
    return (
        f"plan: {plan.scheme}, {plan.bits_per_weight:.2f} bits per weight, context {plan.context}, "
        f"kv {plan.kv}; peak {human(plan.predicted_peak_bytes)} of a budget of "
        f"{human(plan.budget_bytes)} ({parts})"
    )


def statistics_line(plan: Plan, stats: Stats) -> str:
    """Speed, bits, kernels and memory against the plan, in one line."""
    from edgelm.machine import hardware

    peak = human(hardware.peak_resident_bytes())
    kernels = ", ".join(f"{kind} {kernel}" for kind, kernel in stats.kernels.items())
    guessed = ""
    if stats.drafted_tokens:
        guessed = f"{stats.accepted_tokens} of {stats.drafted_tokens} guessed right, "
    return (
        f"{stats.new_tokens} tokens, {stats.decode_tok_s:.1f} tok/s (prompt {stats.prompt_tokens} "
        f"at {stats.prefill_tok_s:.0f}), {guessed}{plan.bits_per_weight:.2f} bits per weight, "
        f"{kernels}, peak {peak} of {human(plan.predicted_peak_bytes)} planned"
    )


@contextmanager
def progress_bars(output: OutputOptions) -> Iterator[Callable[[str], Callable[..., None] | None]]:
    """Make progress bars: ``bar(title)`` returns a callback (..., done, all), None off terminals.

    A dumb terminal, which cannot rewrite a line, counts as no terminal.
    """
    console = Console(stderr=True)
    if output.quiet or not console.is_interactive:
        yield lambda title: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:

        def bar(title: str) -> Callable[..., None]:
            task = progress.add_task(title, total=None)
            return lambda *told: progress.update(task, completed=told[-2], total=told[-1])

        yield bar


@contextmanager
def waiting(text: str, output: OutputOptions) -> Iterator[None]:
    """Show a spinner during a wait of unknown length, on terminals only."""
    console = Console(stderr=True)
    if output.quiet or not console.is_interactive:
        yield
        return
    with console.status(text):
        yield
