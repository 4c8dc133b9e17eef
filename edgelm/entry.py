"""``load`` and ``plan``: from a model reference and settings to a model, or to what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from edgelm import hardware, kernel_choice
from edgelm.draft_model import plan_draft, with_draft
from edgelm.errors import DoesNotFitError, UsageError
from edgelm.files import ModelFiles
from edgelm.loading import Progress
from edgelm.memory import Plan, human
from edgelm.model import LanguageModel
from edgelm.planner import Settings, make_plan

_IMPORTED_IN = os.getpid()


def plan(
    model: str | Path | ModelFiles, *, task: str = "causal-lm", num_labels: int | None = None,
    problem_type: str | None = None, draft: str | Path | ModelFiles | None = None,
    revision: str | None = None, offline: bool = False, allow_pickle: bool = False,
    **settings: Any,
) -> Plan:  # fmt: skip
    """What ``load`` with the same arguments would do and take, from headers alone."""
    files = _open(model, revision, offline, allow_pickle)
    chosen = _settings(settings)
    decoder, names = files.assemble(task, num_labels, problem_type)
    made = make_plan(decoder, files.config, names, chosen)
    if draft is None:
        return made
    drafting = _open(draft, None, offline, allow_pickle)
    return with_draft(made, plan_draft(drafting, files, made, chosen))


def load(
    model: str | Path | ModelFiles, *, task: str = "causal-lm", num_labels: int | None = None,
    problem_type: str | None = None, draft: str | Path | ModelFiles | None = None,
    threads: int | None = None, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, progress: Progress | None = None, **settings: Any,
) -> LanguageModel:  # fmt: skip
    """Load a model as planned.

    Args:
        model: a Hub id, a folder, a ``.gguf`` file or ``demo``.
        task: causal-lm, base, sequence-classification, token-classification or (Llama and BLOOM)
            question-answering.
        num_labels: how many labels a head has that the files lack; such a head is fresh.
        problem_type: of a sequence classification, if it is not the config's: regression,
            single_label_classification or multi_label_classification.
        draft: a smaller model with the same tokenizer that guesses tokens ahead, loaded in the same
            settings; the text stays the model's own.
        threads: cores to use; None means EDGELM_THREADS, else all.
        allow_pickle: open pytorch_model*.bin where a model has nothing else.
        progress: called with (matrix name, bytes done, bytes in all).
        settings: the fields of ``planner.Settings``: quant, method, kv, backend, device, dtype,
            context, rows, chunk, draft_depth, budget.

    Raises:
        DoesNotFitError: the plan exceeds the budget; it is carried along.
        EdgeLMError: files, settings or kernels that do not go together.
    """
    files = _open(model, revision, offline, allow_pickle)
    torch.set_num_threads(_threads(threads))
    chosen = _settings(settings)
    decoder, names = files.assemble(task, num_labels, problem_type)
    made = make_plan(decoder, files.config, names, chosen)
    guessing = None
    if draft is not None:
        drafting = _open(draft, None, offline, allow_pickle)
        guessing = (drafting, plan_draft(drafting, files, made, chosen))
        made = with_draft(made, guessing[1])
    if not made.fits:
        raise DoesNotFitError(
            f"{files.name} needs {human(made.predicted_peak_bytes)} with these settings; the "
            f"budget is {human(made.budget_bytes)}. Choose a smaller scheme or context, or raise "
            "the budget.",
            made,
        )
    if chosen.backend == "auto":
        kernel_choice.warn_of_slow(made.products, decoder.embed.tied_to_head)
    return LanguageModel(files, decoder, names, made, chosen.method, progress, guessing)


def _open(
    model: str | Path | ModelFiles, revision: str | None, offline: bool, allow_pickle: bool
) -> ModelFiles:
    if isinstance(model, ModelFiles):
        return model
    return ModelFiles.open(model, revision=revision, offline=offline, allow_pickle=allow_pickle)


def _settings(given: dict[str, Any]) -> Settings:
    known = Settings.__dataclass_fields__
    for name in given:
        if name not in known:
            raise UsageError(f"{name!r} is not a setting; allowed: {', '.join(known)}.")
    return Settings(**given)


def _threads(given: int | None) -> int:
    if os.getpid() != _IMPORTED_IN:
        # The threads of torch's pool are not copied by fork; waiting for them never ends.
        if given not in (None, 1):
            raise UsageError(
                f"threads is {given} in a forked process; allowed: 1. Start processes with the "
                "method 'spawn' to use more."
            )
        return 1
    if given is None:
        return hardware.default_threads()
    if not 0 < given <= (os.cpu_count() or 1):
        raise UsageError(f"threads is {given}; allowed: 1 to {os.cpu_count()} on this machine.")
    return given
