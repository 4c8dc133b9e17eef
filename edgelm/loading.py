"""``load`` and ``plan``: from a model reference and settings to a model, or to its plan."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import torch

from edgelm.budget.admission import memory_reported
from edgelm.budget.placement import streamed_layers
from edgelm.budget.plan import Plan
from edgelm.budget.shortage import is_below_runtime, shortage
from edgelm.budget.units import human_speed
from edgelm.errors import DoesNotFitError, HubError, UsageError
from edgelm.generation.draft_model import check_tokens
from edgelm.hub.references import cache_dir, is_local, resolve
from edgelm.machine import accelerators, disk, hardware
from edgelm.model import LanguageModel
from edgelm.models.assembled import Assembled
from edgelm.models.model_files import ModelFiles
from edgelm.planning import kernel_choice
from edgelm.planning.draft import plan_draft, require_guesses, with_draft
from edgelm.planning.setting_table import LOAD, MODEL, LoadSettings
from edgelm.planning.settings import Settings, read_settings
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
    """The plan that ``load`` with the same arguments would follow, from headers alone."""
    chosen = read_settings(settings)
    LOAD.require(
        task=task, num_labels=num_labels, problem_type=problem_type, draft=draft,
        revision=revision, offline=offline, allow_pickle=allow_pickle,
    )  # fmt: skip
    files = _open(model, revision, offline, allow_pickle, headers_only=True)
    assembled = files.assemble(task, num_labels, problem_type)
    made = _solved(files, assembled, chosen, drafted=draft is not None)
    if draft is None:
        return made
    require_guesses(made)
    drafting = _open(draft, None, offline, allow_pickle, headers_only=True)
    return _with_draft(drafting, files, made, chosen)[0]


def plan_table(model: str | Path | ModelFiles, **settings: Unpack[LoadSettings]) -> list[Plan]:
    """A plan for every scheme and context that ``settings`` leave open.

    Args:
        model, settings: as for ``plan``.
    """
    files = _open(model, None, False, False, headers_only=True)
    return fitting_contexts(files.assemble("causal-lm"), read_settings(settings))


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
    LOAD.require(progress=progress)
    return prepare(
        model, task=task, num_labels=num_labels, problem_type=problem_type, draft=draft,
        threads=threads, revision=revision, offline=offline, allow_pickle=allow_pickle, **settings,
    ).load(progress)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A model whose files are here and whose plan fits, ready to load.

    Attributes:
        plan: of the model and its draft. draft: the draft's files and its share of the plan.
    """

    files: ModelFiles
    model: Assembled
    plan: Plan
    backend: str
    draft: tuple[ModelFiles, Plan] | None

    def load(self, progress: Progress | None = None) -> LanguageModel:
        """Weights, cache and buffers as planned; once."""
        _warn_of_streaming(self.plan)
        if self.backend == "auto":
            kernel_choice.warn_of_slow(self.plan.products, self.model.decoder.embed.tied_to_head)
        with accelerators.current(self.plan.device), memory_reported(self.plan):
            kernel_choice.tune(self.plan, cache_dir(), progress)
            return LanguageModel.load(self.files, self.model, self.plan, progress, self.draft)


def prepare(
    model: str | Path | ModelFiles, *, task: str = "causal-lm", num_labels: int | None = None,
    problem_type: str | None = None, draft: str | Path | ModelFiles | None = None,
    threads: int | None = None, revision: str | None = None, offline: bool = False,
    allow_pickle: bool = False, **settings: Unpack[LoadSettings],
) -> Prepared:  # fmt: skip
    """Open and plan a model, once. What is on the Hub is fetched when the plan fits.

    Args: as for ``load``.

    Raises:
        DoesNotFitError: the plan exceeds the budget; it is carried along.
    """
    chosen = read_settings(settings)
    LOAD.require(
        task=task, num_labels=num_labels, problem_type=problem_type, draft=draft, threads=threads,
        revision=revision, offline=offline, allow_pickle=allow_pickle,
    )  # fmt: skip
    files = _open_cheaply(model, revision, offline, allow_pickle)
    use_threads(threads)
    assembled = files.assemble(task, num_labels, problem_type)
    plan = _solved(files, assembled, chosen, drafted=draft is not None)
    _require_fit(files, plan, chosen)
    drafting = share = None
    if draft is not None:
        require_guesses(plan)
        drafting = _open_cheaply(draft, None, offline, allow_pickle)
        plan, share = _with_draft(drafting, files, plan, chosen)
        _require_fit(files, plan, chosen)
    # The plan stands: what the headers said is what the files hold.
    if files.skeleton is not None:
        ahead, files = files, _open(model, revision, offline, allow_pickle)
        assembled = files.assemble(task, num_labels, problem_type)
        files.read_tokenizer()
        if files.config != ahead.config:  # headers cannot tell a copy of the embedding from a head
            plan = _solved(files, assembled, chosen, drafted=draft is not None)
            plan = plan if share is None else with_draft(plan, share)
            _require_fit(files, plan, chosen)
    if draft is None or drafting is None or share is None:
        return Prepared(files, assembled, plan, chosen.backend, None)
    if drafting.skeleton is not None:
        drafting = _open(draft, None, offline, allow_pickle)
    _check_tokens(drafting, files)
    return Prepared(files, assembled, plan, chosen.backend, (drafting, share))


def open_fitting(
    model: str | Path | ModelFiles, *, threads: int | None = None, revision: str | None = None,
    offline: bool = False, allow_pickle: bool = False, **settings: Unpack[LoadSettings],
) -> ModelFiles:  # fmt: skip
    """The files of a model. Those of a Hub model that does not fit are not fetched.

    Args: as for ``load``.

    Raises:
        DoesNotFitError: a model that is not here exceeds the budget.
    """
    files = _open_cheaply(model, revision, offline, allow_pickle)
    if files.skeleton is None:
        return files
    return prepare(
        model, threads=threads, revision=revision, offline=offline, allow_pickle=allow_pickle,
        **settings,
    ).files  # fmt: skip


def _require_fit(files: ModelFiles, plan: Plan, settings: Settings) -> None:
    if not plan.fits:
        raise DoesNotFitError(
            f"{files.name} does not fit: {shortage(plan)}. {_remedy(plan, settings)}", plan
        )


def _check_tokens(draft: ModelFiles, target: ModelFiles) -> None:
    check_tokens(draft.name, draft.tokenizer, target.name, target.tokenizer)


def _open_cheaply(
    model: str | Path | ModelFiles, revision: str | None, offline: bool, allow_pickle: bool
) -> ModelFiles:
    """The files that are here; of a model on the Hub that is not, its headers."""
    MODEL.require("model", model)
    headers = not isinstance(model, ModelFiles) and not (offline or _is_here(str(model), revision))
    return _open(model, revision, offline, allow_pickle, headers_only=headers)


def _is_here(reference: str, revision: str | None) -> bool:
    """True if no weights need fetching: a local path, or all files in the Hub's cache."""
    try:
        return is_local(reference) or bool(resolve(reference, revision=revision, offline=True))
    except HubError:
        return False


def _remedy(made: Plan, settings: Settings) -> str:
    """Advice for a plan that does not fit."""
    if is_below_runtime(made):
        return "Raise the budget: no setting of the model lowers that."
    stream = "" if settings.offload == "disk" else "stream layers with offload='disk', "
    if settings.device not in ("auto", "cpu"):
        stream = "keep layers on the CPU with offload='cpu', "
    if settings.quant == settings.context == "auto":
        return f"No scheme, cache or context is smaller: {stream}or raise the budget."
    return f"Choose a smaller scheme or context ('auto' finds one), {stream}or raise the budget."


def _solved(files: ModelFiles, assembled: Assembled, chosen: Settings, *, drafted: bool) -> Plan:
    """The plan of a model without its draft; the tokenizer is in memory or estimated by then."""
    files.read_tokenizer()
    if chosen.offload == "disk":
        disk.measure_once(cache_dir())
    return solve(assembled, chosen, drafted=drafted, unread_bytes=files.unread_bytes)


def _with_draft(
    draft: ModelFiles, target: ModelFiles, made: Plan, chosen: Settings
) -> tuple[Plan, Plan]:
    """The plan of both, and the draft's own share of it."""
    if draft.skeleton is None and target.skeleton is None:  # headers come without tokenizers
        _check_tokens(draft, target)
    share = plan_draft(draft, made, chosen)
    return with_draft(made, share), share


def _warn_of_streaming(made: Plan) -> None:
    """Warn that layers are read from disk, with the expected speed."""
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
    MODEL.require("model", model)
    return ModelFiles.of(
        model,
        revision=revision,
        offline=offline,
        allow_pickle=allow_pickle,
        headers_only=headers_only,
    )


def use_threads(given: int | None) -> None:
    """Set the number of cores to use; None means EDGELM_THREADS, else all.

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
    return hardware.checked_threads(given)
