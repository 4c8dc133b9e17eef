"""``edgelm eval``: accuracy on a text and multiple-choice tasks, against unquantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import edgelm
from edgelm.cli import console
from edgelm.cli.opening import open_fitting
from edgelm.cli.options import LoadOptions, Model, OutputOptions, RunOptions, SourceOptions, counted
from edgelm.errors import UsageError
from edgelm.evaluation.tasks import TASKS
from edgelm.evaluation.written_tasks import WRITTEN_TASKS

if TYPE_CHECKING:
    from edgelm.evaluation.answering import WrittenScore
    from edgelm.evaluation.divergence import TextScore
    from edgelm.evaluation.evaluate import Evaluation, TaskScore
    from edgelm.evaluation.statistics.pairs import PairedScore

Text = Annotated[
    Path | None,
    typer.Option(help="UTF-8 file, or a folder of them, for perplexity and divergence."),
]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="NAME=FILE, such as arc_easy=arc_easy.jsonl; repeatable. Names: "
        f"{', '.join((*TASKS, *WRITTEN_TASKS))}.",
    ),
]
Limit = Annotated[int | None, counted("Maximum number of windows, and of items per task.")]
Window = Annotated[int, counted("Tokens per window of the text.")]
Against = Annotated[
    str | None,
    typer.Option("--baseline", help="Original model, or a *.baseline file (created if missing)."),
]
Shots = Annotated[
    int,
    typer.Option(
        help="Examples before each question, drawn with --example-seed from the task's own file."
    ),
]
Prompts = Annotated[
    int, typer.Option(help="Wordings in which questions with written answers are asked.")
]
ExampleSeed = Annotated[int, typer.Option(help="Which examples are drawn.")]
Details = Annotated[
    Path | None, typer.Option(help="Write what was made of each item here, as JSON lines.")
]
Margin = Annotated[
    float,
    typer.Option(help="Points of accuracy: a task that surely lost less is called not worse."),
]


def eval_(
    source: SourceOptions, load: LoadOptions, run: RunOptions, output: OutputOptions, model: Model,
    text: Text = None, task: TaskFiles = None, limit: Limit = None, window: Window = 512,
    baseline: Against = None, margin: Margin = 1.0, shots: Shots = 0, prompts: Prompts = 1,
    example_seed: ExampleSeed = 0, details: Details = None,
) -> None:  # fmt: skip
    """Measure accuracy against the unquantized weights."""
    tasks = task_files(task or [])
    files = open_fitting(model, source, output, load, run)
    with console.progress_bars(output) as bar:
        found = edgelm.evaluate(
            files, text=text, tasks=tasks, limit=limit, window=window, baseline=baseline,
            margin=margin, shots=shots, prompts=prompts, example_seed=example_seed, details=details,
            progress=bar, threads=run.threads, **load.settings(),
        )  # fmt: skip
    if output.json:
        console.print_json(found.to_dict())
    else:
        _show(found)


def task_files(given: list[str]) -> dict[str, str]:
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
        out.print(pairs_table({name: s.paired for name, s in found.tasks.items() if s.paired}))
    if found.written:
        out.print(_written_table(found.written))


def _written_table(written: dict[str, WrittenScore]) -> Table:
    """A row a task, and one a language where there are several."""
    table = Table("task", "score", box=None)
    for column in ("questions", "value", "spread of wordings"):
        table.add_column(column, justify="right")
    for name, own in written.items():
        shares = own.metric != "BLEU"

        def shown(value: float, shares: bool = shares) -> str:
            return f"{value:.2%}" if shares else f"{value:.2f}"

        error = "" if own.stderr is None else f" ± {shown(own.stderr)}"
        spread = shown(own.spread) if len(own.by_prompt) > 1 else "-"
        table.add_row(name, own.metric, str(own.n), shown(own.score) + error, spread)
        for language, score in own.by_language.items() if len(own.by_language) > 1 else ():
            table.add_row(f"  {language}", "", "", shown(score), "")
    return table


def pairs_table(tasks: Mapping[str, PairedScore]) -> Table:
    """Each task's flips, difference to the baseline with its 95 % interval, test and verdict.

    Within 80 columns, so intervals stand below what they are of.
    """
    margin = next((f"at {100 * pair.margin:g} pt" for pair in tasks.values()), "")
    table = Table("against the\nbaseline", box=None)
    for column in ("gained", "lost", "difference\n(95 %)", "p\n(Holm)", "detect-\nable"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(f"verdict\n{margin}", no_wrap=True)
    for name, pair in tasks.items():
        table.add_row(
            name, str(pair.gained), str(pair.lost),
            f"{pair.difference:+.2%}\n{pair.low:+.2%} to {pair.high:+.2%}", f"{pair.p_holm:.3g}",
            f"{pair.detectable:.2%}", pair.verdict,
        )  # fmt: skip
    return table


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

    table.add_row("token perplexity", with_error(score.ppl, score.ppl_stderr), shift("ppl"))
    table.add_row("word perplexity", f"{score.word_ppl:.4f}", shift("word_ppl"))
    if score.ppl_baseline is None:
        return table
    table.add_row("token perplexity, baseline", f"{score.ppl_baseline:.4f}")
    table.add_row("word perplexity, baseline", f"{score.word_ppl_baseline:.4f}")
    assert score.ppl_diff is not None and score.kld_mean is not None
    table.add_row("  paired difference", with_error(score.ppl_diff, score.ppl_diff_stderr, "+.4f"))
    shown = with_error(score.kld_mean, score.kld_stderr, ".6f")
    table.add_row("KLD mean", shown, floor("kld_mean"))
    for title, name in (("KLD 99 %", "kld_p99"), ("KLD max", "kld_max")):
        table.add_row(title, f"{getattr(score, name):.6f}", floor(name))
    agreed = f"{score.top1_agreement:.2%}"
    table.add_row("same top token", agreed, floor("top1_agreement", "{:.2%}"))
    return table


def with_error(value: float, stderr: float | None, form: str = ".4f") -> str:
    """A value with its error, if there is one."""
    error = "" if stderr is None else f" ± {stderr:{form.removeprefix('+')}}"
    return f"{value:{form}}{error}"


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
