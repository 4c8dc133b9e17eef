"""A small model that guesses for a large one with the same tokens.

Each guess is what the small model would say, drawn with the large one's settings and random
numbers, so that two models of one mind draw the same token (the rule that keeps the text exact is
the large model's own draw; see ``speculation``).
"""

from __future__ import annotations

from dataclasses import replace

from edgelm.budget.dtypes import KV_DTYPES
from edgelm.budget.ledger import Ledger
from edgelm.budget.plan import Plan
from edgelm.engine.engine import Engine, Hidden, RowTokens
from edgelm.engine.loader import Loader
from edgelm.errors import UsageError
from edgelm.generation.processors import SoFar
from edgelm.generation.sampling import Sampler, SamplingSettings
from edgelm.models.model_files import ModelFiles
from edgelm.progress import Progress
from edgelm.text.tokenizer import Tokenizer

PREFIX = "draft."
_PROBES = (
    "Hello, world!",
    " two  spaces\n\tand 1234 lines",
    "naïve café 你好 🙂",
    "<s></s><|im_end|>",
)


class DraftModel:
    """A loaded draft model; guesses for one text at a time.

    Args:
        vocab_size: ids that the large model knows; a guess beyond them ends the guesses.
    """

    greedy_only = False

    def __init__(
        self, files: ModelFiles, plan: Plan, vocab_size: int, ledger: Ledger,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        own = Ledger(plan.parts, 0, 0, plan.device)
        model = files.assemble("causal-lm")
        Loader(model, plan, own, progress).load(keep=True)
        self._engine = Engine(model, plan, own)
        self._cache = self._engine.make_cache(1, plan.context, KV_DTYPES[plan.kv])
        ledger.absorb(PREFIX, own)
        self._vocab_size = vocab_size
        self._held: list[int] = []
        self._sure = 0  # ids at the start of ``held`` that this answer's text is known to have
        self._sample = Sampler(SamplingSettings())

    def begin(self, ids: SoFar, sampling: SamplingSettings) -> None:
        """Another text: run as much of it as is not held from before."""
        self._sample, self._sure = Sampler(sampling), 0
        if self.strength(ids):
            self._catch_up([*ids.prompt, *ids.new])

    def strength(self, ids: SoFar) -> int:
        """1 while the text fits the draft's context."""
        return int(len(ids.prompt) + len(ids.new) < self._engine.plan.context)

    def guess(self, ids: SoFar, count: int) -> list[int]:
        """Up to ``count`` tokens that the draft would say."""
        text = [*ids.prompt, *ids.new]
        count = min(count, self._engine.plan.context - len(text) + 1)
        hidden = self._catch_up(text)
        said = replace(ids, new=list(ids.new))
        guessed: list[int] = []
        while True:
            logits, best = self._engine.judge(hidden, [len(hidden.states) - 1])
            token = self._sample(logits[0], best[0], said)
            if token >= self._vocab_size:
                return guessed
            guessed.append(token)
            said.new.append(token)
            if len(guessed) == count:
                return guessed
            hidden = self._run([token])

    def _catch_up(self, text: list[int]) -> Hidden:
        """Hold the text's ids and no others; hidden states of the last step, its last id's last."""
        held, shared = self._held, self._sure
        while shared < min(len(held), len(text) - 1) and held[shared] == text[shared]:
            shared += 1
        shared = min(shared, len(text) - 1, self._cache.lengths[0])
        if not self._cache.truncate(0, shared):
            shared = 0
            self._cache.truncate(0, 0)
        del held[shared:]
        chunk = self._engine.plan.chunk
        for start in range(shared, len(text), chunk):
            hidden = self._run(text[start : start + chunk])
        self._sure = len(text)
        return hidden

    def _run(self, ids: list[int]) -> Hidden:
        hidden = self._engine.run(self._cache, [RowTokens(0, ids)])
        self._held.extend(ids)
        return hidden


def check_tokens(draft: str, theirs: Tokenizer, target: str, ours: Tokenizer) -> None:
    """Raise UsageError unless both tokenizers write every token and some texts alike."""
    reason = None
    if theirs.vocab_size != ours.vocab_size:
        reason = f"it has {theirs.vocab_size} tokens, not {ours.vocab_size}"
    else:
        for index in range(ours.vocab_size):
            pair = theirs.token_of(index), ours.token_of(index)
            if pair[0] != pair[1]:
                reason = f"its token {index} is {pair[0]!r}, not {pair[1]!r}"
                break
        for text in _PROBES:
            if reason is None and theirs.encode(text) != ours.encode(text):
                reason = f"it writes {text!r} in other tokens"
    if reason:
        raise UsageError(
            f"{draft} cannot guess for {target}: {reason}. A draft model needs the same tokenizer; "
            "take a smaller model of the same family and release."
        )
