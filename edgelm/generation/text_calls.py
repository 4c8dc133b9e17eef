"""The calls of a loaded model that take text and give text."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from edgelm.config import ModelConfig
from edgelm.errors import CancelledError, UsageError
from edgelm.generation.batch import Batch, stream_text, whole_answers
from edgelm.generation.beams import check_kept
from edgelm.generation.grammar import Constraint
from edgelm.generation.model_defaults import ModelDefaults
from edgelm.generation.option_table import (
    CHAT,
    GENERATE,
    ChatOptions,
    GenerateOptions,
    require_option,
)
from edgelm.generation.options import build_request, options_of, samples
from edgelm.generation.prompts import Prompt, Prompts, Read, read_prompt, read_prompts
from edgelm.generation.request import Chunk, Request, Result, collect
from edgelm.option import checked
from edgelm.text.chat_prompt import Tools, encode_chat
from edgelm.text.messages import Messages
from edgelm.text.tokenizer import Tokenizer

Answers = Result | list[Result] | list[list[Result]]

logger = logging.getLogger("edgelm")


class TextCalls(ABC):
    """``generate``, ``stream``, ``chat`` and what they stand on.

    Their options are those of ``GenerateOptions`` and ``ChatOptions``. ``max_tokens`` is another
    name for ``max_new_tokens`` that works and that type checkers refuse.
    """

    config: ModelConfig
    batch: Callable[..., AbstractContextManager[Batch]]
    beam_search: Callable[..., list[Result]]
    defaults: ModelDefaults

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

        Closing it, or setting ``stop_event``, cancels it. It keeps its row until it is read; other
        calls run beside it in other rows.
        """
        for _, chunk in self.stream_requests([self.request(prompt, **options)], stop_event):
            yield chunk

    def stream_requests(
        self, requests: Sequence[Request], stop_event: threading.Event | None = None
    ) -> Generator[tuple[int, Chunk], None, None]:
        """Pieces of the answers to all requests as they come, with the number of the request."""
        [stop_event] = GENERATE.require(stop_event=stop_event)
        cancelled = stop_event.is_set if stop_event is not None else bool
        with self.batch(requests, self.end_ids, cancelled) as batch:
            for piece in stream_text(batch, self.tokenizer):
                with batch.paused():
                    yield piece

    def embed(
        self, inputs: Prompt | Prompts, *, stop_event: threading.Event | None = None
    ) -> Tensor:
        """Embeddings of texts (or ids): [B, N] float32, or [N] of a single one.

        Each is the mean of the last hidden states of its tokens, scaled to length 1. A model that
        was trained to write gives vectors of meaning only roughly.
        """
        [stop_event] = GENERATE.require(stop_event=stop_event)
        cancelled = stop_event.is_set if stop_event is not None else bool
        prompts, many = read_prompts(inputs)
        requests = [replace(self._request(p, {}), pooling=True, prompt_only=True) for p in prompts]
        with self.batch(requests, self.end_ids, cancelled) as batch:
            for _ in batch.tokens():
                pass
            if any(answer.finish_reason is None for answer in batch.answers):
                raise CancelledError("The embeddings were cancelled.")
            found = [answer.embedding for answer in batch.answers]
        return torch.stack(found) if many else found[0]

    def chat(
        self, messages: Messages, *, stop_event: threading.Event | None = None,
        **options: Unpack[ChatOptions],
    ) -> Result:  # fmt: skip
        """Answer a conversation: messages with ``role`` and ``content``.

        Contents are texts, or parts ``{"type": "text", "text": …}``; special tokens in them are
        plain text. With ``continue_final_message`` the answer goes on with the last message.

        Raises:
            UsageError: messages that the model's template does not print whole, parts that are no
                text, ``tools`` or ``template_variables`` that it does not read.
        """
        return collect(self.stream_chat(messages, stop_event=stop_event, **options))

    def stream_chat(
        self, messages: Messages, *, stop_event: threading.Event | None = None,
        **options: Unpack[ChatOptions],
    ) -> Generator[Chunk, None, None]:  # fmt: skip
        """As ``chat``, piece by piece; earlier turns that are in the cache are not run again."""
        given = checked(options, CHAT)
        asked = {name: given.pop(name) for name in _OF_PROMPT if name in given}
        if given.get("keep_prefix") is None:
            given["keep_prefix"] = True
        request = self._request(tuple(self.chat_ids(messages, **asked)), given)
        continues = bool(asked.get("continue_final_message"))
        asked_for = [replace(request, continues=continues)]
        for _, chunk in self.stream_requests(asked_for, stop_event):
            yield chunk

    def chat_ids(
        self, messages: Messages, *, tools: Tools | None = None,
        template_variables: Mapping[str, Any] | None = None,
        continue_final_message: bool | None = None,
    ) -> list[int]:  # fmt: skip
        """Ids of a conversation in the model's own template, ready to be answered; see ``chat``."""
        given = (tools, template_variables, continue_final_message)
        for name, value in zip(_OF_PROMPT, given, strict=True):
            if value is not None:
                require_option(name, value)
        return encode_chat(
            self.tokenizer, messages, tools=tools, template_variables=template_variables,
            continue_final_message=bool(continue_final_message),
        )  # fmt: skip

    def request(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Request:
        """A Request with the model's own defaults where nothing is given."""
        return self._request(read_prompt(prompt), checked(options, GENERATE))

    def _request(self, prompt: Read, options: Mapping[str, Any]) -> Request:
        if isinstance(prompt, str) and not prompt:
            raise UsageError("The prompt is empty; give some text.")
        options = dict(options)
        parse_special = options.pop("parse_special", None)
        if parse_special is not None:
            parse_special = require_option("parse_special", parse_special)
        ids = self._prompt_ids(prompt, parse_special) if isinstance(prompt, str) else prompt
        return build_request(ids, options, self.defaults, self._constraint)

    def _prompt_ids(self, prompt: str, parse_special: bool | None) -> list[int]:
        """Ids of a prompt; special tokens that are read without being asked for are told."""
        ids = self.tokenizer.encode(prompt, parse_special=parse_special is not False)
        if parse_special is None:
            special = filter(self.tokenizer.is_special, ids)
            names = dict.fromkeys(self.tokenizer.token_of(token) or "" for token in special)
            if written := [name for name in names if name and name in prompt]:
                logger.warning(
                    "The prompt holds special tokens (%s), which are read as such. If that is "
                    "meant, give parse_special=True (--parse-special); with parse_special=False "
                    "(--no-parse-special) they are plain text.",
                    ", ".join(written[:5]),
                )
        return ids

    def _constraint(self, schema: Any, grammar: str | None) -> Constraint:
        return Constraint.parse(schema, grammar, self.tokenizer, self.end_ids)


_OF_PROMPT = ("tools", "template_variables", "continue_final_message")
