"""``compare``: schemes and files against the unquantized weights, measured one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from edgelm import values
from edgelm.budget.plan import Plan
from edgelm.errors import DoesNotFitError, UsageError
from edgelm.evaluation.baseline import Baseline, Facts
from edgelm.evaluation.comparison import outputs
from edgelm.evaluation.comparison.candidates import Candidate, open_candidates
from edgelm.evaluation.comparison.comparison import Comparison
from edgelm.evaluation.comparison.kept import Kept
from edgelm.evaluation.comparison.measure import measure
from edgelm.evaluation.comparison.measured import Measured
from edgelm.evaluation.duration import estimate_s, spoken
from edgelm.evaluation.evaluate import BASELINE_SUFFIX, EVALUATE, is_quantized, with_pairs
from edgelm.evaluation.inputs import Bars, Work, read_work
from edgelm.evaluation.make_baseline import make_baseline
from edgelm.evaluation.written_tasks import WRITTEN_TASKS
from edgelm.loading import prepare, use_threads
from edgelm.models.model_files import ModelFiles
from edgelm.option import PATH, Call, Option
from edgelm.planning.setting_table import LOAD, MODEL, PROGRESS, LoadSettings, QuantChoice
from edgelm.planning.settings import read_settings

logger = logging.getLogger("edgelm")
Announce = Callable[[str], None]
_OUTPUT = replace(PATH, allowed="the path of a file to write, or None", optional=True)
COMPARE = Call(
    "compare()",
    LoadSettings,
    {
        "candidates": Option(
            "Schemes and files.",
            "a list of schemes, recipes, .gguf files and folders",
            lambda given: len(given) > 0,
            kind=values.items,
        ),
        "again": Option("Measure everything anew.", "True, False", kind=values.truth),
        "csv": _OUTPUT,
        "report": _OUTPUT,
        "announce": PROGRESS,
    },
)


def compare(
    model: str | Path | ModelFiles, candidates: Sequence[QuantChoice | Path], *,
    text: str | Path | None = None, tasks: Mapping[str, str | Path] | None = None,
    limit: int | None = None, window: int = 512, baseline: str | Path | None = None,
    margin: float = 1.0, again: bool = False, csv: str | Path | None = None,
    report: str | Path | None = None, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, threads: int | None = None, progress: Bars | None = None,
    announce: Announce | None = None, **settings: Unpack[LoadSettings],
) -> Comparison:  # fmt: skip
    """Bits, memory, speed and accuracy of several schemes and files of one model.

    The reference is ``model`` in float32, run once; each candidate is then loaded, measured and
    closed in turn. Finished ones are kept in the cache folder: repeated after an interruption the
    call goes on, and with more candidates it adds them.

    Args:
        candidates: schemes and recipes of the model; ``gguf:FILE``, ``.gguf`` files and quantized
            folders of the same weights.
        text: a UTF-8 file, or a folder of files whose names are categories; see
            ``texts.read_texts``.
        tasks, limit, window, margin, progress: as for ``evaluate``.
        baseline: a file ``*.baseline`` that is used, or created if it is missing and kept.
        again: measure finished candidates again.
        csv, report: files to write: the table, and a page with pictures (needs Matplotlib).
        announce: called with a sentence that says how long the work will take, before it.
        settings: as for ``load``, for every candidate.

    Raises:
        UsageError: nothing to do, wrong options, files of another model or tokenizer, or an output
            that cannot be written, all before the work.
        DoesNotFitError: a candidate, or a layer of the baseline, exceeds the budget.
    """
    chosen = read_settings(settings)
    if "quant" in settings:
        raise UsageError("quant is given by the candidates of compare(); leave it out.")
    LOAD.require(revision=revision, offline=offline, allow_pickle=allow_pickle, threads=threads)
    MODEL.require("model", model)
    text, tasks, limit, window, baseline, margin, progress = EVALUATE.require(
        text=text, tasks=tasks, limit=limit, window=window, baseline=baseline, margin=margin,
        progress=progress,
    )  # fmt: skip
    candidates, again, csv, report, announce = COMPARE.require(
        candidates=candidates, again=again, csv=csv, report=report, announce=announce
    )
    if text is None and not tasks:
        raise UsageError("Give a text or a task to compare on.")
    if written := [name for name in tasks or {} if name in WRITTEN_TASKS]:
        raise UsageError(
            f"{', '.join(written)}: compare() has no baseline for written answers; give them to "
            "evaluate(), or multiple-choice tasks here."
        )
    _try_outputs(csv, report)
    files = ModelFiles.of(model, revision=revision, offline=offline, allow_pickle=allow_pickle)
    found = open_candidates(files, candidates)
    use_threads(threads)
    asked = {**settings, "threads": threads}
    work = read_work(files, text, tasks or {}, limit, window, chosen, asked, progress)
    given = None if baseline is None else _checked_baseline(Path(baseline), work)
    if quantized := is_quantized(work):
        logger.warning(
            "%s is quantized already: its own numbers are the reference, not those it was made "
            "from.",
            files.name,
        )
    for candidate in found:
        require_fit(candidate, work)
    facts, rows = _measured(work, found, given, again, announce or logger.info)
    rows = [_paired(row, work, facts, margin) for row in rows]
    result = Comparison.of(work, facts, rows, quantized)
    _write_outputs(result, csv, report)
    return result


def require_fit(candidate: Candidate, work: Work) -> Plan:
    """A candidate's plan; DoesNotFitError, with its name, for one that exceeds the budget."""
    try:
        settings = work.planned(quant=candidate.quant)
        return prepare(candidate.files, threads=work.settings["threads"], **settings).plan
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{candidate.label}: {error}", error.plan) from None


def _try_outputs(csv: str | Path | None, report: str | Path | None) -> None:
    for name, path in (("csv", csv), ("report", report)):
        if path is not None:
            outputs.require_writable(name, Path(path))
    if report is not None:
        outputs.require_matplotlib()


def _write_outputs(result: Comparison, csv: str | Path | None, report: str | Path | None) -> None:
    if csv is not None:
        outputs.write(Path(csv), result.csv())
    if report is not None:
        from edgelm.evaluation.comparison.page import page  # which draws: nobody else waits for it

        outputs.write(Path(report), page(result))


def _checked_baseline(path: Path, work: Work) -> Path:
    """The place of a baseline; UsageError for one of other weights, texts or tokens."""
    if path.suffix != BASELINE_SUFFIX:
        raise UsageError(
            f"baseline is {path}; allowed: a file that ends in {BASELINE_SUFFIX}. The weights that "
            "others are compared to are those of MODEL."
        )
    if path.exists():
        with opened(path, work):
            pass
    else:
        outputs.require_writable("baseline", path)
    return path


@contextmanager
def opened(path: Path, work: Work) -> Iterator[Baseline]:
    """A baseline file; UsageError if it is of other weights, texts or tokens."""
    baseline = Baseline.open(path)
    try:
        baseline.facts.require(work.facts(work.files), path, weights=work.files.sha256)
        yield baseline
    finally:
        baseline.close()


def _measured(
    work: Work, candidates: list[Candidate], given: Path | None, again: bool, announce: Announce
) -> tuple[Facts, list[Measured]]:
    """The baseline's facts and a row of each candidate, in order."""
    kept = Kept(work.facts(work.files))
    digests = [candidate.digest(work.settings) for candidate in candidates]
    with kept.alone():
        rows = {} if again else kept.candidates(digests)
        left = [own for own in zip(digests, candidates, strict=True) if own[0] not in rows]
        path = given or kept.baseline
        if left or kept.facts() is None:
            announce(_estimate(work, len(candidates), len(left), made=not path.exists()))
            if not path.exists():
                make_baseline(work, work.files, work.facts(work.files), path, noisy=work)
            with opened(path, work) as baseline:
                kept.keep_facts(baseline.facts)
                for digest, candidate in left:
                    rows[digest] = measure(candidate, work, baseline)
                    kept.keep_candidate(digest, rows[digest])
        kept.baseline.unlink(missing_ok=True)  # gigabytes that nobody asked to keep
        facts = kept.facts()
    assert facts is not None
    named = zip(digests, candidates, strict=True)
    return facts, [replace(rows[digest], candidate=own.label) for digest, own in named]


def _estimate(work: Work, count: int, left: int, *, made: bool) -> str:
    """How long the work takes, in a sentence."""
    text = 0 if work.passage is None else work.passage.ids.numel()
    what = f"{left} of {count} candidates" + (" and the baseline" if made else "")
    done = f" {count - left} were finished earlier." if left < count else ""
    seconds = estimate_s(work, baseline=made, candidates=left)
    return (
        f"measuring {what} over {text} tokens and {sum(map(len, work.items.values()))} items: "
        f"about {spoken(seconds)}, an estimate from this machine's speed.{done} An interrupted run "
        "goes on where it stopped."
    )


def _paired(row: Measured, work: Work, facts: Facts, margin: float) -> Measured:
    return replace(row, tasks=with_pairs(row.tasks, row.rights, work.items, facts, margin))
