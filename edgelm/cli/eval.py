"""``edgelm eval``: what quantizing cost, on a text and on multiple-choice tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import edgelm
from edgelm.cli import console
from edgelm.cli.opening import open_files
from edgelm.cli.options import LoadOptions, Model, OutputOptions, RunOptions, SourceOptions
from edgelm.errors import UsageError
from edgelm.evaluation.divergence import TextScore
from edgelm.evaluation.job import Evaluation, TaskScore

Text = Annotated[Path | None, typer.Option(help="A UTF-8 file for perplexity and divergence.")]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option("--task", help="NAME=FILE, like arc_easy=arc_easy.jsonl; may be repeated."),
]
Limit = Annotated[int | None, typer.Option(help="At most so many windows and items of a task.")]
Window = Annotated[int, typer.Option(help="Tokens of a window of the text.")]
Against = Annotated[
    str | None,
    typer.Option(
        "--baseline", help="The original model, or a *.baseline file, made where it is missing."
    ),
]


def eval_(
    source: SourceOptions, load: LoadOptions, run: RunOptions, output: OutputOptions, model: Model,
    text: Text = None, task: TaskFiles = None, limit: Limit = None, window: Window = 512,
    baseline: Against = None,
) -> None:  # fmt: skip
    """Measure accuracy against the unquantized weights."""
    tasks = _task_files(task or [])
    files = open_files(model, source, output, load)
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
    """NAME=FILE of each --task; which names there are is known to the evaluation."""
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
            table.add_row(name, *_task_cells(score))
        out.print(table)


def _text_table(score: TextScore, noise: dict[str, float] | None) -> Table:
    """A row a figure; beside it that of the same weights with bfloat16 activations."""
    table = Table(f"{score.tokens} tokens", box=None)
    table.add_column("value", justify="right")
    table.add_column("noise floor", justify="right")
    table.add_row("token perplexity", f"{score.ppl:.4f} ± {score.ppl_stderr:.4f}")
    table.add_row("word perplexity", f"{score.word_ppl:.4f}")
    if score.ppl_baseline is None:
        return table
    shift = f"{noise['ppl'] - noise['ppl_baseline']:+.4f}" if noise else ""
    table.add_row("token perplexity, baseline", f"{score.ppl_baseline:.4f}", shift)
    for title, name in (("KLD mean", "kld_mean"), ("KLD 99 %", "kld_p99"), ("KLD max", "kld_max")):
        table.add_row(title, f"{getattr(score, name):.6f}", f"{noise[name]:.6f}" if noise else "")
    floor = f"{noise['top1_agreement']:.2%}" if noise else ""
    table.add_row("same top token", f"{score.top1_agreement:.2%}", floor)
    return table


def _task_cells(score: TaskScore) -> list[str]:
    def shown(share: float | None, stderr: float | None = None) -> str:
        if share is None:
            return "-"
        return f"{share:.2%}" + ("" if stderr is None else f" ± {stderr:.2%}")

    return [
        str(score.n), shown(score.accuracy, score.stderr),
        shown(score.accuracy_norm, score.stderr_norm),
        shown(score.accuracy_baseline), shown(score.flips),
    ]  # fmt: skip
