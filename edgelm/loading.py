"""``load`` and ``plan``: from a model reference and settings to a model, or to what it takes."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Unpack

import torch

from edgelm.budget.admission import memory_reported
from edgelm.budget.placement import streamed_layers
from edgelm.budget.plan import Plan, human_speed
from edgelm.budget.shortage import is_below_runtime, shortage
from edgelm.errors import DoesNotFitError, HubError, UsageError
from edgelm.generation.draft_model import plan_draft, with_draft
from edgelm.hub.references import cache_dir, is_local, resolve
from edgelm.machine import accelerators, disk, hardware
from edgelm.model import LanguageModel
from edgelm.models.decoder import Decoder
from edgelm.models.model_files import ModelFiles
from edgelm.models.weight_names import WeightNames
from edgelm.planning import kernel_choice
from edgelm.planning.settings import LoadSettings, Settings, read_settings
from edgelm.planning.solver import fitting_contexts, solve
from edgelm.progress import Progress

logger = logging.getLogger("edgelm")
_IMPORTED_IN = os.getpid()


def plan(
    model: str | Path | ModelFiles, *, task: str = "causal-lm", num_labels: int | None = None,
    problem_type: str | None = None, draft: str | Path | ModelFiles | None = None,
    revision: str | None = None, offline: bool = False, allow_pickle: bool = False,
    **settings: Unpack[LoadSettings],
) -> Plan:  # fmt: skip
    """What ``load`` with the same arguments would do and take, from headers alone."""
    files = _open(model, revision, offline, allow_pickle, headers_only=True)
    drafting = None if draft is None else _open(draft, None, offline, allow_pickle)
    decoder, names = files.assemble(task, num_labels, problem_type)
    return _solved(files, decoder, names, read_settings(settings), drafting)[0]


def plan_table(model: str | Path | ModelFiles, **settings: Unpack[LoadSettings]) -> list[Plan]:
    """What fits: a plan for every scheme and context that ``settings`` leave open.

    Args:
        model, settings: as for ``plan``.
    """
    files = _open(model, None, False, False, headers_only=True)
    decoder, names = files.assemble("causal-lm")
    return fitting_contexts(decoder, files.config, names, read_settings(settings))


def load(
    model: str | Path | ModelFiles, *, task: str = "causal-lm", num_labels: int | None = None,
    problem_type: str | None = None, draft: str | Path | ModelFiles | None = None,
    threads: int | None = None, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, progress: Progress | None = None, **settings: Unpack[LoadSettings],
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
        settings: those of ``LoadSettings``.

    Raises:
        DoesNotFitError: the plan exceeds the budget; it is carried along.
        EdgeLMError: files, settings or kernels that do not go together.
    """
    files = open_fitting(
        model, task=task, num_labels=num_labels, problem_type=problem_type, revision=revision,
        offline=offline, allow_pickle=allow_pickle, **settings,
    )  # fmt: skip
    use_threads(threads)
    chosen = read_settings(settings)
    decoder, names = files.assemble(task, num_labels, problem_type)
    drafting = None if draft is None else _open(draft, None, offline, allow_pickle)
    made, guessing = _fitting_plan(files, decoder, names, chosen, drafting)
    _warn_of_streaming(made)
    if chosen.backend == "auto":
        kernel_choice.warn_of_slow(made.products, decoder.embed.tied_to_head)
    draft_files = None if drafting is None or guessing is None else (drafting, guessing)
    with accelerators.current(made.device), memory_reported(made):
        kernel_choice.tune(made, cache_dir(), progress)
        return LanguageModel(files, decoder, names, made, chosen.method, progress, draft_files)


def open_fitting(
    model: str | Path | ModelFiles, *, task: str = "causal-lm", num_labels: int | None = None,
    problem_type: str | None = None, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, **settings: Unpack[LoadSettings],
) -> ModelFiles:  # fmt: skip
    """The files of a model. Those of a Hub model that does not fit are not even fetched.

    Args: as for ``load``.

    Raises:
        DoesNotFitError: headers alone tell that the plan exceeds the budget.
    """
    if not isinstance(model, ModelFiles) and not (offline or _is_here(str(model), revision)):
        ahead = _open(model, revision, offline, allow_pickle, headers_only=True)
        decoder, names = ahead.assemble(task, num_labels, problem_type)
        _fitting_plan(ahead, decoder, names, read_settings(settings))
    return _open(model, revision, offline, allow_pickle)


def _is_here(reference: str, revision: str | None) -> bool:
    """Whether there is nothing big to fetch: a local path, or whole in the Hub's cache."""
    try:
        return is_local(reference) or bool(resolve(reference, revision=revision, offline=True))
    except HubError:
        return False


def _fitting_plan(
    files: ModelFiles, decoder: Decoder, names: WeightNames, chosen: Settings,
    drafting: ModelFiles | None = None,
) -> tuple[Plan, Plan | None]:  # fmt: skip
    made, draft = _solved(files, decoder, names, chosen, drafting)
    if not made.fits:
        raise DoesNotFitError(
            f"{files.name} does not fit: {shortage(made)}. {_remedy(made, chosen)}", made
        )
    return made, draft


def _remedy(made: Plan, settings: Settings) -> str:
    """What may be changed where nothing fits."""
    if is_below_runtime(made):
        return "Raise the budget: no choice of the model makes that less."
    stream = "" if settings.offload == "disk" else "stream layers with offload='disk', "
    if settings.device not in ("auto", "cpu"):
        stream = "keep layers on the CPU with offload='cpu', "
    if settings.quant == settings.context == "auto":
        return f"No scheme, cache or context is smaller: {stream}or raise the budget."
    return f"Choose a smaller scheme or context ('auto' finds one), {stream}or raise the budget."


def _solved(
    files: ModelFiles, decoder: Decoder, names: WeightNames, chosen: Settings,
    drafting: ModelFiles | None,
) -> tuple[Plan, Plan | None]:  # fmt: skip
    """The plan of everything, and the draft model's own share of it."""
    if chosen.offload == "disk":
        disk.measure_once(cache_dir())
    made = solve(decoder, files.config, names, chosen)
    if drafting is None:
        return made, None
    draft = plan_draft(drafting, files, made, chosen)
    return with_draft(made, draft), draft


def _warn_of_streaming(made: Plan) -> None:
    """Say beforehand how slow reading layers from disk will be."""
    streamed = streamed_layers(made)
    if streamed:
        logger.warning(
            "%d of %d layers are read from disk for every token%s",
            *(len(streamed), len(made.placement)),
            ""
            if made.expected_tok_s is None
            else f": about {human_speed(made.expected_tok_s)}, an estimate from the disk's "
            "measured speed",
        )


def _open(
    model: str | Path | ModelFiles, revision: str | None, offline: bool, allow_pickle: bool,
    headers_only: bool = False,
) -> ModelFiles:  # fmt: skip
    if isinstance(model, ModelFiles):
        return model
    return ModelFiles.open(
        model,
        revision=revision,
        offline=offline,
        allow_pickle=allow_pickle,
        headers_only=headers_only,
    )


def use_threads(given: int | None) -> None:
    """Compute with so many cores from now on; None means EDGELM_THREADS, else all.

    Raises:
        UsageError: more than there are, or several in a forked process.
    """
    torch.set_num_threads(_threads(given))
    hardware.bound_kernel_caches()


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
