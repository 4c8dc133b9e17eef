"""``edgelm eval``: accuracy on a text and multiple-choice tasks, against unquantized weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import edgelm
from edgelm.cli import console
from edgelm.cli.opening import open_fitting
from edgelm.cli.options import LoadOptions, Model, OutputOptions, RunOptions, SourceOptions, counted
from edgelm.errors import UsageError

if TYPE_CHECKING:
    from edgelm.evaluation.divergence import TextScore
    from edgelm.evaluation.evaluate import Evaluation, TaskScore

Text = Annotated[Path | None, typer.Option(help="UTF-8 file for perplexity and divergence.")]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option("--task", help="NAME=FILE, such as arc_easy=arc_easy.jsonl; repeatable."),
]
Limit = Annotated[int | None, counted("Maximum number of windows, and of items per task.")]
Window = Annotated[int, counted("Tokens per window of the text.")]
Against = Annotated[
    str | None,
    typer.Option("--baseline", help="Original model, or a *.baseline file (created if missing)."),
]


def eval_(
    source: SourceOptions, load: LoadOptions, run: RunOptions, output: OutputOptions, model: Model,
    text: Text = None, task: TaskFiles = None, limit: Limit = None, window: Window = 512,
    baseline: Against = None,
) -> None:  # fmt: skip
    """Measure accuracy against the unquantized weights."""
    tasks = _task_files(task or [])
    files = open_fitting(model, source, output, load, run)
    with console.progress_bars(output) as bar:
        found = edgelm.evaluate(
            files, text=text, tasks=tasks, limit=limit, window=window, baseline=baseline,
            progress=bar, threads=run.threads, **load.settings(),
        )  # fmt: skip
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show(found)


def _task_files(given: list[str]) -> dict[str, str]:
    """Parse NAME=FILE of each --task; the evaluation checks the names."""
    tasks = {}
    for entry in given:
        name, separator, path = entry.partition("=")
        if not separator or not path:
            raise UsageError(f"--task is {entry!r}; write it as NAME=FILE.")
        tasks[name] = path
    return tasks


def _show(found: Evaluation) -> None:
    out = console.stdout()
    out.print(f"{found.model}: {found.scheme}, {found.bits_per_weight:.2f} bits per weight")
    if found.text is not None:
        out.print(_text_table(found.text, found.noise_floor))
    if found.tasks:
        table = Table("task", box=None)
        for column in ("items", "accuracy", "by length", "baseline", "flips"):
            table.add_column(column, justify="right")
        for name, score in found.tasks.items():
            noise = found.noise_floor and found.noise_floor["tasks"][name]
            for row in _task_rows(name, score, noise):
                table.add_row(*row)
        out.print(table)


def _text_table(score: TextScore, noise: dict[str, Any] | None) -> Table:
    """Rows of one figure each, next to that of the same weights with bfloat16 activations."""
    begin = "BOS" if score.bos else "no BOS"
    table = Table(
        f"{score.tokens} tokens: {score.windows} windows of {score.window}, {begin}", box=None
    )
    table.add_column("value", justify="right")
    table.add_column("noise floor", justify="right")

    def floor(name: str, shown: str = "{:.6f}") -> str:
        return shown.format(noise[name]) if noise else ""

    def shift(name: str) -> str:
        return f"{noise[name] - noise[f'{name}_baseline']:+.4f}" if noise else ""

    table.add_row("token perplexity", f"{score.ppl:.4f} ± {score.ppl_stderr:.4f}", shift("ppl"))
    table.add_row("word perplexity", f"{score.word_ppl:.4f}", shift("word_ppl"))
    if score.ppl_baseline is None:
        return table
    table.add_row("token perplexity, baseline", f"{score.ppl_baseline:.4f}")
    table.add_row("word perplexity, baseline", f"{score.word_ppl_baseline:.4f}")
    for title, name in (("KLD mean", "kld_mean"), ("KLD 99 %", "kld_p99"), ("KLD max", "kld_max")):
        table.add_row(title, f"{getattr(score, name):.6f}", floor(name))
    agreed = f"{score.top1_agreement:.2%}"
    table.add_row("same top token", agreed, floor("top1_agreement", "{:.2%}"))
    return table


def _shown(share: float | None, stderr: float | None = None) -> str:
    if share is None:
        return "-"
    return f"{share:.2%}" + ("" if stderr is None else f" ± {stderr:.2%}")


def _task_rows(name: str, score: TaskScore, noise: dict[str, Any] | None) -> Iterator[list[str]]:
    """A task's figures, then those of its first items with bfloat16 activations alone."""
    own, normed = (
        _shown(score.accuracy, score.stderr),
        _shown(score.accuracy_norm, score.stderr_norm),
    )
    yield [name, str(score.n), own, normed, _shown(score.accuracy_baseline), _shown(score.flips)]
    if noise is not None:
        shares = [_shown(noise[key]) for key in ("accuracy", "accuracy_baseline", "flips")]
        yield ["  noise floor", str(noise["n"]), shares[0], "-", *shares[1:]]
