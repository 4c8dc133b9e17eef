"""The calls of a loaded model that take text and give text."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Unpack, overload

from edgelm.config import ModelConfig
from edgelm.errors import UsageError
from edgelm.generation.batch import Batch, stream_text, whole_answers
from edgelm.generation.beams import check_kept
from edgelm.generation.grammar import Constraint
from edgelm.generation.model_defaults import ModelDefaults
from edgelm.generation.option_table import GENERATE, GenerateOptions
from edgelm.generation.options import build_request, options_of, samples
from edgelm.generation.prompts import Prompt, Prompts, Read, read_prompt, read_prompts
from edgelm.generation.request import Chunk, Request, Result, collect
from edgelm.option import checked
from edgelm.text.chat_template import render
from edgelm.text.tokenizer import Tokenizer

Messages = Sequence[dict[str, str]]
Answers = Result | list[Result] | list[list[Result]]


class TextCalls(ABC):
    """``generate``, ``stream``, ``chat`` and what they stand on.

    Their options are those of ``GenerateOptions``. ``max_tokens`` is another name for
    ``max_new_tokens`` that works and that type checkers refuse.
    """

    config: ModelConfig
    batch: Callable[..., AbstractContextManager[Batch]]
    beam_search: Callable[..., list[Result]]
    defaults: ModelDefaults
    paused: Callable[[], AbstractContextManager[None]]

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer: ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Every id that ends an answer: of the config, the tokenizer and the chat template."""
        return self.tokenizer.eos_ids | frozenset(self.config.eos_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with BOS where the model expects it."""
        return self.tokenizer.encode(text)

    @overload
    def decode(self, ids: Sequence[int]) -> str: ...
    @overload
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...
    def decode(self, ids: Sequence[Any]) -> str | list[str]:
        """Text of token ids, without special tokens; a list of rows gives a list of texts."""
        return self.tokenizer.decode(ids)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, *, n: Literal[1] = 1, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> Result: ...  # fmt: skip
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompts, *, n: Literal[1] = 1, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: Prompt, *, n: int, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: Prompts, *, n: int, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Unpack[GenerateOptions],
    ) -> list[list[Result]]: ...  # fmt: skip
    def generate(
        self, prompt: Prompt | Prompts, *, n: int = 1, beams: int = 1, length_penalty: float = 1.0,
        stop_event: threading.Event | None = None, **options: Any,
    ) -> Answers:  # fmt: skip
        """Answer a prompt (text or ids), or each prompt of a list.

        Prompts of a list share the rows that the model was loaded with; each gets what it would
        get alone.

        Args:
            n: answers to each prompt, which runs once; answer i is drawn with ``seed`` + i.
            beams: above 1 the width of a beam search, which gives the n best answers.
            length_penalty: of a beam search; scores are divided by length to this power.
            stop_event: cancels.
            options: those of ``GenerateOptions``; for a list of prompts ``max_new_tokens``,
                ``seed``, ``temperature``, ``schema`` and ``grammar`` may be lists too.

        Returns:
            A Result; for a list of prompts (also ids [B, T]) a list of these. With n above 1 a
            list of n takes the place of each Result. A variable ``n`` that may be 1 is typed as if
            it were above.
        """
        prompts, many = read_prompts(prompt)
        n, beams, length_penalty, stop_event = GENERATE.require(
            n=n, beams=beams, length_penalty=length_penalty, stop_event=stop_event
        )
        cancelled = stop_event.is_set if stop_event is not None else bool
        options = checked(options, GENERATE)
        if beams > 1:
            options = {"temperature": 0.0} | options
        asked = [
            self._request(own, options_of(options, index, len(prompts)))
            for index, own in enumerate(prompts)
        ]
        if beams > 1:
            check_kept(n, beams)
            found = [self.beam_search(r, beams, length_penalty, cancelled)[:n] for r in asked]
        else:
            requests = [sample for request in asked for sample in samples(request, n)]
            with self.batch(requests, self.end_ids, cancelled) as batch:
                answers = whole_answers(batch, self.tokenizer)
            found = [answers[at : at + n] for at in range(0, len(answers), n)]
        if n > 1:
            return found if many else found[0]
        results = [own[0] for own in found]
        return results if many else results[0]

    def stream(
        self, prompt: Prompt, *, stop_event: threading.Event | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Chunk, None, None]:  # fmt: skip
        """The answer piece by piece, to whatever thread reads it.

        Closing it, or setting ``stop_event``, cancels it. Other calls wait until it is read.
        """
        request = self.request(prompt, **options)
        [stop_event] = GENERATE.require(stop_event=stop_event)
        cancelled = stop_event.is_set if stop_event is not None else bool
        with self.batch([request], self.end_ids, cancelled) as batch:
            for _, chunk in stream_text(batch, self.tokenizer):
                with self.paused():
                    yield chunk

    def chat(
        self, messages: Messages, *, stop_event: threading.Event | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:  # fmt: skip
        """Answer a conversation: messages with ``role`` and ``content``."""
        return collect(self.stream_chat(messages, stop_event=stop_event, **options))

    def stream_chat(
        self, messages: Messages, *, stop_event: threading.Event | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Chunk, None, None]:  # fmt: skip
        """As ``chat``, piece by piece; earlier turns that are in the cache are not run again."""
        if options.get("keep_prefix") is None:
            options["keep_prefix"] = True
        yield from self.stream(self.chat_ids(messages), stop_event=stop_event, **options)

    def chat_ids(self, messages: Messages) -> list[int]:
        """Ids of a conversation in the model's own template, ready to be answered."""
        tokenizer = self.tokenizer
        bos, eos = tokenizer.token_of(tokenizer.bos_id), tokenizer.token_of(tokenizer.eos_id)
        text = render(tokenizer.chat_template, messages, bos=bos, eos=eos)
        return tokenizer.encode(text, add_special=False, parse_special=True)

    def request(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Request:
        """A Request with the model's own defaults where nothing is given."""
        return self._request(read_prompt(prompt), checked(options, GENERATE))

    def _request(self, prompt: Read, options: Mapping[str, Any]) -> Request:
        if isinstance(prompt, str) and not prompt:
            raise UsageError("The prompt is empty; give some text.")
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        return build_request(ids, options, self.defaults, self._constraint)

    def _constraint(self, schema: Any, grammar: str | None) -> Constraint:
        return Constraint.parse(schema, grammar, self.tokenizer, self.end_ids)
