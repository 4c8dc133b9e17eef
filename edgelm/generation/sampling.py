"""The settings of a sampler and the sampler: processors in order, random numbers by counter.

The same seed and token index always draw the same number, whatever was computed in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgelm.errors import UsageError
from edgelm.generation.option_table import require_option
from edgelm.generation.processors import (
    NEVER,
    Banned,
    CountPenalty,
    Epsilon,
    Eta,
    Forced,
    LogitBias,
    LogitsProcessor,
    MinP,
    NoEndBefore,
    NoRepeatedNgram,
    NotFirst,
    RepetitionPenalty,
    SequenceBias,
    SoFar,
    SoonerEnd,
    Temperature,
    TopK,
    TopP,
    Typical,
)
from quant import native
from quant.native.ops import sample


@dataclass(frozen=True)
class ModelRules:
    """What no option sets, only a model's generation_config.json; nothing by default.

    Args:
        sequence_bias: ids and what is added to the last one's logit after the others; -inf bans.
        first, last: ids to choose after a prompt of one token, and at the limit of new tokens.
        not_first: ids that an answer must not begin with.
        sooner_end: after how many new tokens end tokens grow likelier, and the factor per token.
        epsilon, eta: least probabilities; 0 is off.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    sooner_end: tuple[int, float] | None = None
    epsilon: float = 0.0
    eta: float = 0.0


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the choice of the next token; temperature 0 is greedy, after penalties and bans.

    ``logit_bias`` holds pairs of id and number. ``presence_penalty`` and ``frequency_penalty``
    count the answer alone, ``repetition_penalty`` and ``no_repeat_ngram_size`` the prompt too.

    Raises:
        UsageError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    banned_tokens: tuple[int, ...] = ()
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    seed: int = 0
    rules: ModelRules = ModelRules()

    def __post_init__(self) -> None:
        for name in vars(self).keys() - {"rules"}:
            object.__setattr__(self, name, require_option(name, getattr(self, name)))

    def check_ids(self, vocab_size: int) -> None:
        """Raise UsageError where a biased or banned id is none of the model's."""
        for token in (*self.banned_tokens, *(token for token, _ in self.logit_bias)):
            if not 0 <= token < vocab_size:
                raise UsageError(
                    f"logit_bias and banned_tokens name token id {token}; allowed: "
                    f"0-{vocab_size - 1}."
                )

    def adjustments(self) -> list[LogitsProcessor]:
        """Processors for greedy and sampled answers, in transformers' order."""
        chosen: list[LogitsProcessor] = []
        rules = self.rules
        alone = [(own[0], bias) for own, bias in rules.sequence_bias if len(own) == 1]
        longer = tuple(pair for pair in rules.sequence_bias if len(pair[0]) > 1)
        if longer:
            chosen.append(SequenceBias(longer))
        if alone or self.logit_bias:
            chosen.append(LogitBias((*alone, *self.logit_bias)))
        if self.repetition_penalty != 1:
            chosen.append(RepetitionPenalty(self.repetition_penalty))
        if self.presence_penalty or self.frequency_penalty:
            chosen.append(CountPenalty(self.presence_penalty, self.frequency_penalty))
        if self.no_repeat_ngram_size:
            chosen.append(NoRepeatedNgram(self.no_repeat_ngram_size))
        if self.min_new_tokens:
            chosen.append(NoEndBefore(self.min_new_tokens))
        if rules.first or rules.last:
            chosen.append(Forced(rules.first, rules.last))
        if rules.sooner_end:
            chosen.append(SoonerEnd(*rules.sooner_end))
        if self.banned_tokens:
            chosen.append(Banned(self.banned_tokens))
        if rules.not_first:
            chosen.append(NotFirst(rules.not_first, len(rules.first)))
        return chosen

    def filters(self) -> list[LogitsProcessor]:
        """Filters of the distribution to sample from, in transformers' order."""
        chosen: list[LogitsProcessor] = []
        if self.temperature != 1:
            chosen.append(Temperature(self.temperature))
        if self.top_k:
            chosen.append(TopK(self.top_k))
        if self.top_p < 1:
            chosen.append(TopP(self.top_p))
        if self.min_p:
            chosen.append(MinP(self.min_p))
        if self.typical_p < 1:
            chosen.append(Typical(self.typical_p))
        if self.rules.epsilon:
            chosen.append(Epsilon(self.rules.epsilon))
        if self.rules.eta:
            chosen.append(Eta(self.rules.eta))
        return chosen


@dataclass
class Sampler:
    """Chooses the next id of one row; which row does not matter, so batches change nothing.

    Args:
        constraint: a processor that bans what a grammar does not allow here.
    """

    settings: SamplingSettings
    constraint: LogitsProcessor | None = None
    adjustments: list[LogitsProcessor] = field(init=False)

    def __post_init__(self) -> None:
        self.adjustments = self.settings.adjustments()
        if self.constraint is not None:
            self.adjustments.append(self.constraint)

    def __call__(self, logits: Tensor, best: int, ids: SoFar) -> int:
        """The id after ``ids``; ``logits`` [V] float32 are changed in place.

        Args:
            best: the id of the largest of ``logits``.

        Raises:
            UsageError: biases, bans and grammar together leave no token.
        """
        if not self.adjustments and self.settings.temperature == 0:
            return best
        if logits.device.type == "mps":  # probabilities are float64, which Metal lacks
            logits = logits.cpu()
        for process in self.adjustments:
            process(logits, ids)
        draw = self._draw_natively if self._is_native(logits) else self._draw
        token = draw(logits, ids)
        if token < 0:
            raise UsageError(
                "Every token is banned by logit_bias, banned_tokens, no_repeat_ngram_size, "
                "min_new_tokens, the grammar or the model's generation_config.json: relax one of "
                "them."
            )
        return token

    def _is_native(self, logits: Tensor) -> bool:
        own = self.settings
        sorts = own.typical_p < 1 or own.rules.epsilon or own.rules.eta
        drawn = own.temperature != 0 and not sorts
        return drawn and logits.device.type == "cpu" and native.missing() is None

    def _draw(self, logits: Tensor, ids: SoFar) -> int:
        """The definition, for any settings; -1 where every logit is -infinity.

        Everything stays where the logits are but the one number that is returned.
        """
        likeliest = logits.argmax()
        none = logits.gather(0, likeliest.view(1)) == NEVER
        if self.settings.temperature == 0:
            return int(torch.where(none, -1, likeliest))
        for process in self.settings.filters():
            process(logits, ids)
        cumulative = logits.double().softmax(0).cumsum(0)
        drawn = cumulative[-1:] * uniform(self.settings.seed, len(ids.new))
        found = torch.searchsorted(cumulative, drawn, right=True)
        return int(torch.where(none, -1, found.clamp(max=len(logits) - 1)))

    def _draw_natively(self, logits: Tensor, ids: SoFar) -> int:
        """The same token without sorting; shares agree to about 1e-6."""
        own = self.settings
        return sample(
            logits, uniform(own.seed, len(ids.new)),
            temperature=own.temperature, top_k=own.top_k, top_p=own.top_p, min_p=own.min_p,
        )  # fmt: skip


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Philox (Salmon et al. 2011) as numpy has it: key ``seed``, counter ``index``.
    """
    from numpy.random import Generator, Philox

    return float(Generator(Philox(key=seed, counter=[0, index, 0, 0])).random())
