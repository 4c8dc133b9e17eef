"""LanguageModel: a model in memory and everything that can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Unpack, overload

from torch import Tensor

from edgelm.asynchronous import AsyncForms
from edgelm.budget import plan_view
from edgelm.budget.admission import memory_reported, require_memory
from edgelm.budget.past_runs import Watch
from edgelm.budget.placement import host_layers
from edgelm.budget.plan import Ledger, Plan
from edgelm.call_lock import Turn
from edgelm.engine.engine import Engine
from edgelm.engine.loader import Loader, warn_of_requantizing
from edgelm.engine.restore_points import RestorePoints
from edgelm.errors import EdgeLMError, UsageError
from edgelm.generation.batch import Batch
from edgelm.generation.conversation import SavedConversations
from edgelm.generation.draft_model import DraftModel
from edgelm.generation.prompt_lookup import PromptLookup
from edgelm.generation.request import Request
from edgelm.generation.speculation import Drafter, Speculation, rows_stand_alone
from edgelm.hub.references import cache_dir
from edgelm.machine import accelerators
from edgelm.models.decoder import Decoder
from edgelm.models.model_files import ModelFiles
from edgelm.models.weight_names import WeightNames
from edgelm.ops.cache import KVCache
from edgelm.ops.cache_sizes import cache_parts
from edgelm.planning.settings import KV_DTYPES
from edgelm.progress import Progress
from edgelm.tasks.forward import Output, forward
from edgelm.tasks.forward_options import ForwardOptions
from edgelm.tasks.predict import Answer, Labels, predict
from edgelm.tasks.scoring import log_likelihoods


class LanguageModel(AsyncForms, SavedConversations):
    """A model in memory. One call at a time: other threads wait for it.

    Close it (or use ``with``) to free its weights, caches and buffers.
    """

    def __init__(
        self, files: ModelFiles, decoder: Decoder, names: WeightNames, made: Plan, method: str,
        progress: Progress | None, draft: tuple[ModelFiles, Plan] | None = None,
    ) -> None:  # fmt: skip
        self.plan = made
        self.config = files.config
        self.name = files.name
        self._watch = Watch(cache_dir(), self.name, made)
        self.ledger = Ledger.of(made)
        self._files = files
        self._owner = object()
        loader = Loader(decoder, names, made, self.ledger, method, progress)
        self.report = loader.load(keep=True)
        self._stream = loader.stream
        warn_of_requantizing(self.report)
        require_memory(made)
        self._engine: Engine | None = Engine(decoder, files.config, made, self.ledger)
        self._cache: KVCache | None = self._engine.make_cache(
            made.rows, made.context, KV_DTYPES[made.kv], self._owner
        )
        self._held: list[list[int]] = [[] for _ in range(made.rows)]
        self._points: RestorePoints | None = RestorePoints(
            files.config, self._cache, self.ledger.empty
        )
        self._speculation: Speculation | None = None
        if made.draft_depth and (draft or rows_stand_alone(made)):
            drafter: Drafter = (
                PromptLookup(made.context, self.ledger.empty) if draft is None
                else DraftModel(*draft, method, files.config.vocab_size, self.ledger, progress)
            )  # fmt: skip
            self._speculation = Speculation(drafter, made.draft_depth)
        self._turn = Turn()

    # text: see TextCalls

    @contextmanager
    def batch(
        self, requests: Sequence[Request], end_ids: frozenset[int],
        cancelled: Callable[[], bool] = bool,
    ) -> Iterator[Batch]:  # fmt: skip
        """Requests in ids, without text: nothing but ``end_ids`` and their limits end them."""
        with self._answering(cancelled) as (engine, cache):
            assert self._points is not None

            def ended() -> bool:
                return self._engine is None or cancelled()

            yield Batch(
                engine, cache, self._held, self._points, self._speculation, requests, end_ids,
                ended, self.kernels,
            )  # fmt: skip

    @contextmanager
    def _answering(self, cancelled: Callable[[], bool]) -> Iterator[tuple[Engine, KVCache]]:
        """The engine for answers; what the rows hold is forgotten where a step broke off."""
        with self._running(cancelled) as (engine, cache):
            engine.require_language_model("Generating")
            try:
                yield engine, cache
            except GeneratorExit:  # between two steps: what the rows hold is known
                raise
            except BaseException:  # perhaps within a step, which leaves its rows half written
                for ids in self._held:
                    ids.clear()
                raise

    # numbers

    def forward(
        self, input_ids: Tensor | None = None, *, cache: KVCache | None = None,
        **options: Unpack[ForwardOptions],
    ) -> Output:  # fmt: skip
        """Logits (or hidden states) of a batch; the options are those of ``ForwardOptions``.

        Without ``cache`` a temporary one of the batch's size is used.
        """
        with self._running() as (engine, _):
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
        """What the head of a classifier says of a text, or of each text of a list.

        A question-answering head takes pairs (question, context) in place of texts. See
        ``tasks.predict``.
        """
        return predict(self, self._open_engine().decoder.head, inputs)

    def score(self, prompt: str, continuation: str) -> float:
        """Log-likelihood (natural) of ``continuation`` after ``prompt``."""
        start = self.encode(prompt)
        whole = self.encode(prompt + continuation)
        return float(self.log_likelihoods(whole)[len(start) - 1 :].sum())

    def log_likelihoods(self, ids: Sequence[int]) -> Tensor:
        """Natural log-likelihood of each id after the first given those before: [T - 1] float32."""
        with self._running() as (engine, _):
            return log_likelihoods(engine, self.new_cache(1, len(ids)), ids)

    def new_cache(
        self, rows: int = 1, context: int | None = None, kv: str | None = None
    ) -> KVCache:
        """A cache of your own for ``forward``, planned and taken now; its memory goes with it.

        Raises:
            BudgetExceededError: the budget has no room for it.
        """
        context, kv = context or self.plan.context, kv or self.plan.kv
        if rows < 1 or not 0 < context <= self.plan.context or kv not in KV_DTYPES:
            raise UsageError(
                f"A cache of {rows} rows, context {context}, kv {kv!r}: rows and context must be "
                f"at least 1, the context at most the plan's {self.plan.context}, and kv one of "
                f"{', '.join(KV_DTYPES)}."
            )
        dtype = KV_DTYPES[kv]
        engine, held = self._open_engine(), host_layers(self.plan)
        parts = cache_parts(self.config, rows, context, self.plan.chunk, dtype, on_host=held)
        with memory_reported(self.plan, engine.forget):
            return self.ledger.lend(
                parts, lambda: engine.make_cache(rows, context, dtype, self._owner)
            )

    # state

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel that runs each class of tensors: embed, attn, mlp, head."""
        return self.plan.kernels

    def close(self) -> None:
        """Free weights, caches and buffers; further calls are refused.

        Waits for other threads' calls; an answer half read in this thread is given up.
        """
        with self._turn.end():
            if self._engine is not None:
                self._watch.end()
            self._engine = self._cache = self._points = self._speculation = None
            if self._stream is not None:
                self._stream.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = " (closed)" if self._engine is None else ""
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
    def _running(self, cancelled: Callable[[], bool] = bool) -> Iterator[tuple[Engine, KVCache]]:
        """The engine for one call; other threads wait, this thread must not nest calls."""
        with self._turn.take(cancelled):
            engine = self._open_engine()
            assert self._cache is not None
            with accelerators.current(self.plan.device), memory_reported(self.plan, engine.forget):
                yield engine, self._cache

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise EdgeLMError("The model is closed; load it again.")
        return self._engine
