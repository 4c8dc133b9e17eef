"""LanguageModel: a model in memory and everything that can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, Unpack, overload

import torch
from torch import Tensor

from edgelm.asynchronous import AsyncForms
from edgelm.budget import plan_view
from edgelm.budget.admission import memory_reported, require_memory
from edgelm.budget.dtypes import KV_DTYPES
from edgelm.budget.ledger import Ledger
from edgelm.budget.past_runs import Watch
from edgelm.budget.placement import host_layers
from edgelm.budget.plan import Plan
from edgelm.call_lock import CallLock
from edgelm.engine.engine import Engine
from edgelm.engine.loader import Loader, warn_of_requantizing
from edgelm.engine.restore_points import RestorePoints
from edgelm.errors import EdgeLMError, UsageError
from edgelm.generation.batch import Batch
from edgelm.generation.beams import BeamSearch, beam_result
from edgelm.generation.conversation import facts_of, restore_conversation, save_conversation
from edgelm.generation.draft_model import DraftModel
from edgelm.generation.model_defaults import ModelDefaults, model_defaults
from edgelm.generation.prompt_lookup import PromptLookup
from edgelm.generation.prompts import read_prompt
from edgelm.generation.request import Request, Result
from edgelm.generation.scheduler import Scheduler
from edgelm.generation.session import Session
from edgelm.generation.speculation import Drafter, Speculation
from edgelm.hub.references import cache_dir
from edgelm.machine import accelerators
from edgelm.models.assembled import Assembled
from edgelm.models.model_files import ModelFiles
from edgelm.ops.cache import KVCache
from edgelm.ops.cache_sizes import cache_parts
from edgelm.option import PATH
from edgelm.progress import Count, Progress
from edgelm.tasks.forward import Output, forward
from edgelm.tasks.forward_options import FORWARD, ForwardOptions, read_cache, read_forward
from edgelm.tasks.predict import Answer, Labels, predict
from edgelm.tasks.scoring import Score, score_choices
from edgelm.text.continuation import Encoded, encode_pair, read_pairs
from edgelm.text.messages import Messages
from edgelm.text.tokenizer import Tokenizer
from quant import Report


class LanguageModel(AsyncForms):
    """A model in memory. Answers share its rows and steps; any other call waits until none runs.
    Any thread may read a stream on; a call in its loop that would wait for it is refused.

    ``edgelm.load`` makes it. Close it (or use ``with``) to free its weights, caches and buffers.
    """

    def __init__(
        self, files: ModelFiles, plan: Plan, ledger: Ledger, report: Report, session: Session,
        closing: Sequence[Callable[[], None]] = (), defaults: ModelDefaults | None = None,
    ) -> None:  # fmt: skip
        """Of loaded parts; closing: called when the model is closed; defaults: of answers."""
        self.plan, self.ledger, self.report = plan, ledger, report
        self.config = files.config
        self.name = files.name
        self.defaults = defaults or ModelDefaults()
        self._files = files
        self._session: Session | None = session
        self._scheduler: Scheduler | None = Scheduler(session)
        self._reading = set()
        self._closing = closing
        self._calls = CallLock(lambda: accelerators.current(plan.device))

    @classmethod
    def load(
        cls, files: ModelFiles, model: Assembled, plan: Plan, progress: Progress | None = None,
        draft: tuple[ModelFiles, Plan] | None = None,
    ) -> LanguageModel:  # fmt: skip
        """Weights, cache and buffers as planned.

        Args:
            files: of ``model``. draft: a smaller model's files and its own share of the plan.
        """
        defaults = model_defaults(*files.generation_config, model.config.vocab_size)
        watch = Watch(cache_dir(), files.name, plan)
        ledger = Ledger.of(plan)
        loader = Loader(model, plan, ledger, progress)
        report = loader.load(keep=True)
        warn_of_requantizing(report)
        require_memory(plan)
        engine = Engine(model, plan, ledger)
        cache = engine.make_cache(plan.rows, plan.context, KV_DTYPES[plan.kv])
        session = Session(engine, cache, RestorePoints(model.config, cache, ledger.empty))
        if plan.execution.drafter == "lookup":
            drafter: Drafter = PromptLookup(plan.context, ledger.empty)
            session.speculation = Speculation(drafter, plan.draft_depth)
        elif plan.execution.drafter == "model":
            assert draft is not None
            drafter = DraftModel(*draft, model.config.vocab_size, ledger, progress)
            session.speculation = Speculation(drafter, plan.draft_depth)
        streams = [] if loader.stream is None else [loader.stream.close]
        return cls(files, plan, ledger, report, session, [watch.end, *streams], defaults)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._files.tokenizer

    @contextmanager
    def batch(
        self, requests: Sequence[Request], end_ids: frozenset[int],
        cancelled: Callable[[], bool] = bool,
    ) -> Iterator[Batch]:  # fmt: skip
        """Requests in ids, without text: nothing but ``end_ids`` and their limits end them."""
        with self._calls.take(cancelled, shared=True) as call:
            self._open_session().engine.require_language_model("Generating")
            scheduler = self._scheduler
            assert scheduler is not None
            try:
                yield Batch(scheduler, call, requests, end_ids, cancelled)
            finally:
                scheduler.leave(call)

    def load_of_rows(self) -> tuple[int, int]:
        """How many answers run now, and how many wait for a row."""
        return (0, 0) if self._scheduler is None else self._scheduler.load

    def beam_search(
        self, request: Request, beams: int, length_penalty: float = 1.0,
        cancelled: Callable[[], bool] = bool,
    ) -> list[Result]:  # fmt: skip
        """The answers of a beam search, best first."""
        with self._running(cancelled) as session:
            session.engine.require_language_model("Generating")
            search = BeamSearch(
                session, request, beams, length_penalty, self.end_ids, lambda: self.tokenizer
            )
            try:
                found = search.run(cancelled)
            except BaseException:  # perhaps within a step, which leaves rows half written
                session.forget_rows()
                raise
            return [beam_result(search, beam, self.tokenizer) for beam in found]

    # numbers

    def forward(
        self, input_ids: Tensor | None = None, *, cache: KVCache | None = None,
        **options: Unpack[ForwardOptions],
    ) -> Output:  # fmt: skip
        """Logits (or hidden states) of a batch; the options are those of ``ForwardOptions``.

        Without ``cache`` a temporary one of the batch's size is used.
        """
        options = read_forward(options)
        input_ids, cache = FORWARD.require(input_ids=input_ids, cache=cache)
        with self._running() as session:
            engine = session.engine
            if cache is not None:
                return forward(engine, cache, input_ids, **options)
            given = input_ids if input_ids is not None else options.get("inputs_embeds")
            if given is None or given.dim() < 2:
                raise UsageError("Give input_ids [B, T] or inputs_embeds [B, T, N].")
            rows, context = given.shape[:2]
            temporary = self.new_cache(rows, context)
            return forward(engine, temporary, input_ids, **options)

    @overload
    def predict(self, inputs: str) -> Labels: ...
    @overload
    def predict(self, inputs: tuple[str, str]) -> Answer: ...
    @overload
    def predict(self, inputs: list[str]) -> list[Labels]: ...
    @overload
    def predict(self, inputs: list[tuple[str, str]]) -> list[Answer]: ...
    def predict(self, inputs: Any) -> Any:
        """Labels, token labels or answers for a text, or for each text of a list.

        A question-answering head takes pairs (question, context) in place of texts. See
        ``tasks.predict``.
        """
        return predict(self, self._open_session().engine.decoder.head, inputs)

    def score(self, prompt: str, continuation: str) -> float:
        """Natural log-likelihood of ``continuation`` after ``prompt``: at most 0, 0 only for ''.

        White space at the prompt's end is scored too; see ``encode_pair``.
        """
        return self.score_all([(prompt, continuation)])[0].log_likelihood

    def score_all(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Score of each (prompt, continuation), with the values of its tokens.

        Neighbours with the same prompt run it once, as the choices of a task do.

        Raises:
            UsageError: an empty prompt where texts do not begin with BOS.
            ContextLengthError: a pair does not fit the context.
        """
        pairs = read_pairs(pairs)
        encoded = [encode_pair(self.tokenizer, *pair) for pair in pairs]
        groups = groupby(range(len(pairs)), lambda index: pairs[index][0])
        items = [[encoded[index] for index in group] for _, group in groups]
        return [score for own in self.score_choices(items) for score in own]

    def score_choices(
        self, items: Sequence[Sequence[Encoded]], progress: Count | None = None
    ) -> list[list[Score]]:
        """As ``score_all``, of ids; choices of an item may share their first ids."""
        with self._running() as session:
            return score_choices(session.engine, self.ledger, self.new_cache, items, progress)

    def log_likelihoods(self, ids: Sequence[int]) -> Tensor:
        """Natural log-likelihood of each id after the first given those before: [T - 1] float32."""
        read = read_prompt(ids)
        if isinstance(read, str) or len(read) < 2:
            raise UsageError("Scoring needs at least two tokens; for texts there is score().")
        [[score]] = self.score_choices([[Encoded(read, len(read) - 1)]])
        return torch.tensor(score.token_log_likelihoods)

    def new_cache(
        self, rows: int = 1, context: int | None = None, kv: str | None = None
    ) -> KVCache:
        """A cache of your own for ``forward``, planned and taken now; its memory goes with it.

        Raises:
            BudgetExceededError: the budget has no room for it.
        """
        rows, context, dtype = read_cache(self.plan, rows, context, kv)
        engine, plan = self._open_session().engine, self.plan
        parts = cache_parts(
            self.config, rows, context, plan.chunk, dtype, place=plan.place,
            on_host=host_layers(plan),
        )  # fmt: skip
        with memory_reported(self.plan, engine.forget):
            return self.ledger.lend(parts, lambda: engine.make_cache(rows, context, dtype))

    # state

    def save_conversation(self, path: str | Path, messages: Messages = ()) -> None:
        """Keep what the cache holds of the last conversation in a file, with its messages.

        Raises:
            UsageError: nothing is held, or the file is no conversation. EdgeLMError: no place.
        """
        target = Path(PATH.require("path", path))
        with self._running() as session:
            save_conversation(
                target, session, lambda: facts_of(self.plan, self._files.sha256), messages
            )

    def restore_conversation(self, path: str | Path) -> list[dict[str, Any]]:
        """Put a saved conversation back into the cache; its messages, to be continued by ``chat``.

        Raises:
            ModelFileError, UnsupportedModelError, UsageError: the file is damaged, newer, or of
                another model or cache; what the cache held is still there then.
        """
        source = Path(PATH.require("path", path))
        with self._running() as session:
            facts = facts_of(self.plan, self._files.sha256)
            return restore_conversation(source, session, facts)

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel that runs each class of tensors: embed, attn, mlp, head."""
        return self.plan.kernels

    def close(self) -> None:
        """Free weights, caches and buffers; further calls are refused.

        Waits for other threads' calls; an answer that this thread read last is given up.
        """
        with self._calls.end():
            scheduler, self._session, self._scheduler = self._scheduler, None, None
            if scheduler is not None:
                if not self._calls.is_forked:  # where a copied lock may stay locked
                    scheduler.close()
                for close in self._closing:
                    close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = " (closed)" if self._session is None else ""
        return f"<LanguageModel {self.name}{closed}: {plan_view.summary(self.plan)}>"

    def __str__(self) -> str:
        """The plan that it was loaded by, as ``edgelm plan`` prints it."""
        return plan_view.text(self.plan, self.name)

    def _repr_html_(self) -> str:
        return plan_view.html(self.plan, self.name)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A loaded model cannot be pickled: its memory belongs to this process. Load it again "
            "in the other process from the same reference."
        )

    @contextmanager
    def _running(self, cancelled: Callable[[], bool] = bool) -> Iterator[Session]:
        """The session for one call; other calls wait, and must not be nested within."""
        with self._calls.take(cancelled):
            session = self._open_session()
            with memory_reported(self.plan, session.engine.forget):
                yield session

    def _open_session(self) -> Session:
        if self._session is None:
            raise EdgeLMError("The model is closed; load it again.")
        return self._session
