"""EdgeLM as a model of lm-evaluation-harness (the extra ``lm-eval``), registered as ``edgelm``.

    python -m edgelm.evaluation.harness --model edgelm \\
        --model_args pretrained=MODEL,quant=int4 --tasks arc_easy,gsm8k

takes every option of ``lm_eval``. In Python, ``lm_eval.simple_evaluate(model=HarnessModel(lm))``
with a loaded model. Texts are encoded and scored as ``edgelm eval`` does; choices of one question
share its context, and other requests of about the same length run side by side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from tqdm import tqdm

from edgelm.errors import EdgeLMError, UsageError
from edgelm.evaluation.choices import cut_to_context
from edgelm.generation.request import Result
from edgelm.loading import load
from edgelm.model import LanguageModel
from edgelm.tasks.scoring import MAX_ROWS
from edgelm.text.chat_template import render
from edgelm.text.continuation import Encoded, encode_pair

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: this module is for lm-evaluation-harness. Install it: pip install "
        "'edgelm[lm-eval]'.",
        name=error.name,
    ) from None

MAX_NEW_TOKENS = 256  # where a task says nothing; as for the harness's other models
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_UNUSED = ("do_sample", "until", "max_length")
_TEMPLATED: dict[str, Any] = {
    "add_special": False,
    "parse_special": True,
}  # the template writes these itself


@register_model("edgelm")
class HarnessModel(LM):
    """A loaded model, or one that is loaded with ``settings``, those of ``edgelm.load``.

    Args:
        pretrained: a model reference, or a LanguageModel.
        batch_size: answers that are generated side by side, or "auto".
        max_batch_size: of no use here, where "auto" asks the plan; a value is refused.
    """

    def __init__(
        self, pretrained: str | LanguageModel, batch_size: int | str | None = None,
        max_batch_size: int | None = None, device: str | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if max_batch_size is not None:
            raise UsageError(
                f"max_batch_size is {max_batch_size}; leave it out: batch_size=auto takes what "
                "the plan has room for."
            )
        if isinstance(pretrained, LanguageModel):
            if settings:
                raise UsageError(f"{', '.join(settings)}: the model is loaded already.")
            self.lm = pretrained
        else:
            rows = batch_size or 1
            given = {"rows": int(rows) if str(rows).isdecimal() else rows} | settings
            # The harness reads quant=none as Python's None.
            given = {name: "none" if value is None else value for name, value in given.items()}
            self.lm = load(pretrained, device=device or "auto", **given)
        self._how: dict[str, Any] = {}

    @property
    def max_length(self) -> int:
        """Tokens of a context."""
        return self.lm.plan.context

    @property
    def tokenizer_name(self) -> str:
        """What tells this tokenizer's requests from others'."""
        return self.lm.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        plan = self.lm.plan
        return {
            "model_scheme": plan.scheme, "model_bits_per_weight": plan.bits_per_weight,
            "model_kernels": dict(plan.kernels), "model_context": plan.context,
        }  # fmt: skip

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Natural log-likelihood of each (context, continuation), and whether it is greedy."""
        found = self._scores([self._encoded(*request.args) for request in requests])
        for request, score in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, score)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Natural log-likelihood of each text after BOS, or EOS for a model without: in windows of
        the context, each token predicted once. BOS itself is not predicted."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._scores(list(chain.from_iterable(windows))))
        found = [sum(next(scores)[0] for _ in own) for own in windows]
        for request, total in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each (prompt, options) up to a stop string; greedy unless asked else."""
        found = [""] * len(requests)
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        with tqdm(total=len(requests), desc="generate_until") as bar:
            for own in kinds.values():
                options = _options(requests[own[0]].args[1])
                prompts = [self._prompt(requests[i].args[0], options) for i in own]
                for index, answer in zip(own, self._answers(prompts, options), strict=True):
                    found[index] = answer.text
                    self.cache_hook.add_partial("generate_until", requests[index].args, answer.text)
                    bar.update()
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation in the model's template; special tokens are read in it from then on."""
        self._how = _TEMPLATED
        tokenizer = self.lm.tokenizer
        return render(
            tokenizer.chat_template, chat_history, bos=tokenizer.token_of(tokenizer.bos_id),
            eos=tokenizer.token_of(tokenizer.eos_id),
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, for the harness's records. UsageError for the name of another one."""
        if isinstance(chat_template, str):
            raise UsageError(
                f"apply_chat_template is {chat_template!r}; allowed: True. The model has one."
            )
        return self.lm.tokenizer.chat_template if chat_template else None

    def _encoded(self, context: str, continuation: str) -> Encoded:
        if context:
            return encode_pair(self.lm.tokenizer, context, continuation, **self._how)
        ids = self.lm.tokenizer.encode(continuation, add_special=False)
        first = [] if ids[:1] == [self._first_id()] else [self._first_id()]
        return Encoded((*first, *ids), len(first) + len(ids) - 1)

    def _first_id(self) -> int:
        tokenizer = self.lm.tokenizer
        known = (tokenizer.bos_id, tokenizer.eos_id, *sorted(self.lm.end_ids))
        found = next((token for token in known if token is not None), None)
        if found is None:
            raise UsageError(
                f"{self.lm.name} has neither BOS nor EOS, so nothing predicts a text's first token."
            )
        return found

    def _windows(self, text: str) -> list[Encoded]:
        """All of a text's ids, each predicted once with as many as possible before it."""
        ids, size = self.lm.tokenizer.encode(text, add_special=False), self.max_length
        every = (self._first_id(), *ids)
        found = []
        for start in range(0, len(ids), size):
            stop = min(start + size, len(ids))
            found.append(Encoded(every[max(0, stop - size) : stop + 1], stop - start))
        return found

    def _scores(self, encoded: list[Encoded]) -> list[tuple[float, bool]]:
        [cut] = cut_to_context("lm-eval", [encoded], self.max_length) if encoded else [[]]
        order = [*_groups(cut)]
        with tqdm(total=len(order), desc="loglikelihood") as bar:
            scores = self.lm.score_choices(
                [[cut[i] for i in own] for own in order], lambda done, total: bar.update()
            )
        found = [(0.0, True)] * len(cut)
        for index, score in zip(chain(*order), chain(*scores), strict=True):
            found[index] = (score.log_likelihood, score.is_greedy)
        return found

    def _prompt(self, text: str, options: dict[str, Any]) -> list[int]:
        """A prompt's ids; the first ones are left out where the answer would find no room."""
        ids, room = self.lm.tokenizer.encode(text, **self._how), self.max_length
        room -= options["max_new_tokens"]
        if room < 1:
            raise UsageError(
                f"max_gen_toks is {options['max_new_tokens']}; the model was loaded with a context "
                f"of {self.max_length}. Load it with a larger one (context=…) or ask for less."
            )
        return ids[-room:]

    def _answers(self, prompts: list[list[int]], options: dict[str, Any]) -> list[Result]:
        return self.lm.generate(prompts, **options)


def _groups(encoded: Sequence[Encoded]) -> Iterator[list[int]]:
    """Indices of what runs side by side: neighbours with one context, and others by length."""
    alone = []
    for _, group in groupby(range(len(encoded)), lambda i: _context(encoded[i])):
        own = [*group]
        if len(own) > 1:
            yield own
        else:
            alone += own
    alone.sort(key=lambda i: len(encoded[i].ids))
    for start in range(0, len(alone), MAX_ROWS):
        yield alone[start : start + MAX_ROWS]


def _context(choice: Encoded) -> tuple[int, ...]:
    return choice.ids[: len(choice.ids) - choice.count]


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of ``generate`` for those of a task."""
    sampled = given.get("do_sample", bool(given.get("temperature")))
    until = given.get("until") or []
    length = next((given[name] for name in _LENGTHS if given.get(name)), MAX_NEW_TOKENS)
    rest = {k: v for k, v in given.items() if k not in (*_LENGTHS, *_UNUSED, "temperature")}
    return {
        **rest,
        "max_new_tokens": int(length),
        "temperature": float(given.get("temperature", 1.0)) if sampled else 0.0,
        "stop": [text for text in ([until] if isinstance(until, str) else until) if text],
    }


def main() -> int:
    """The harness's own command line; its exit code."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except EdgeLMError as error:
        print(f"edgelm: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
