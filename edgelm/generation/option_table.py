"""The options of an answer: the one table that signatures, checks, flags and help follow from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

from edgelm import values
from edgelm.option import Call, Option, declare, options_in

Schema = str | Mapping[str, Any] | bool


class AnswerOptions(TypedDict, total=False):
    """Options of every answer: of ``GenerateOptions`` and of ``ChatOptions``.

    None means the model's own default: that of its generation_config.json (``model_defaults``),
    else a greedy answer as long as the context allows. For a list of prompts some take a list, one
    value a prompt.
    """

    max_new_tokens: Annotated[
        int | Sequence[int | None] | None,
        Option(
            "Maximum number of new tokens (default: until the context is full).",
            "a count of 1 or more (256, 4k)",
            lambda count: count >= 1,
            per_prompt=True,
            flag=str,
            flags=("--max-tokens", "--max-new-tokens"),
            kind=values.count,
        ),
    ]
    min_new_tokens: Annotated[
        int | None,
        Option(
            "Choose no end token before this many new tokens.",
            "0 (off) or above",
            lambda count: count >= 0,
            kind=values.whole,
            flag=int,
        ),
    ]
    temperature: Annotated[
        float | Sequence[float | None] | None,
        Option(
            "Sampling temperature; 0 always takes the likeliest token.",
            "0, or 1e-6 to 1e6",
            # Below, logits over the temperature would pass what float32 holds.
            lambda heat: heat == 0 or 1e-6 <= heat <= 1e6,
            per_prompt=True,
            flag=float,
            kind=values.number,
        ),
    ]
    top_k: Annotated[
        int | None,
        Option(
            "Top-k sampling: keep the k likeliest tokens. Off unless the model's "
            "generation_config.json sets it: transformers' default of 50 is not filled in.",
            "0 (off) or above",
            lambda count: count >= 0,
            flag=int,
            kind=values.whole,
        ),
    ]
    top_p: Annotated[
        float | None,
        Option(
            "Nucleus (top-p) sampling: keep the smallest set of tokens whose probabilities add up "
            "to this.",
            "above 0 and up to 1 (off)",
            lambda share: 0 < share <= 1,
            flag=float,
            kind=values.number,
        ),
    ]
    min_p: Annotated[
        float | None,
        Option(
            "Min-p sampling: drop tokens less likely than this times the likeliest.",
            "0 (off) up to 1",
            lambda share: 0 <= share <= 1,
            flag=float,
            kind=values.number,
        ),
    ]
    typical_p: Annotated[
        float | None,
        Option(
            "Locally typical sampling: keep the tokens nearest the expected surprise whose "
            "probabilities add up to this.",
            "above 0 and up to 1 (off)",
            lambda share: 0 < share <= 1,
            flag=float,
            kind=values.number,
        ),
    ]
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Penalise tokens that the prompt or the answer holds already (above 1).",
            "above 0; 1 is off",
            lambda factor: 0 < factor < 1e6,
            flag=float,
            kind=values.number,
        ),
    ]
    no_repeat_ngram_size: Annotated[
        int | None,
        Option(
            "Never repeat a run of this many tokens of the prompt or the answer.",
            "0 (off) or above",
            lambda count: count >= 0,
            kind=values.whole,
            flag=int,
        ),
    ]
    presence_penalty: Annotated[
        float | None,
        Option(
            "Subtracted from the logits of tokens that the answer holds already.",
            "-1e6 to 1e6",
            lambda taken: abs(taken) <= 1e6,  # beyond, float32 loses the logits or overflows
            flag=float,
            kind=values.number,
        ),
    ]
    frequency_penalty: Annotated[
        float | None,
        Option(
            "Subtracted from a token's logit for each time the answer holds it already.",
            "-1e6 to 1e6",
            lambda taken: abs(taken) <= 1e6,  # beyond, float32 loses the logits or overflows
            flag=float,
            kind=values.number,
        ),
    ]
    logit_bias: Annotated[
        Mapping[int, float] | None,
        Option(
            "Numbers added to the logits of token ids.",
            "token ids with numbers up to 1e6; -inf bans",
            lambda pairs: all(bias <= 1e6 for _, bias in pairs),
            kind=values.biases,
        ),
    ]
    banned_tokens: Annotated[
        Sequence[int] | None,
        Option("Token ids that an answer must not hold.", "a list of ids", kind=values.token_ids),
    ]
    seed: Annotated[
        int | Sequence[int | None] | None,
        Option(
            "Seed of the random numbers (default: a new one, which the statistics report).",
            "0 to 2**64 - 1",
            lambda seed: 0 <= seed < 1 << 64,
            per_prompt=True,
            flag=int,
            kind=values.whole,
        ),
    ]
    stop: Annotated[
        str | Sequence[str] | None,
        Option(
            "Stop before this text, which may hold special tokens; may be repeated.",
            "a text, or several",
            kind=values.texts,
            flag=list[str],
        ),
    ]
    stop_token_ids: Annotated[
        Sequence[int] | None,
        Option(
            "Token ids that end an answer, beside the model's own; may be repeated.",
            "ids of the vocabulary",
            lambda ids: all(token >= 0 for token in ids),
            kind=values.token_ids,
            flag=list[int],
            flags=("--stop-token-id",),
        ),
    ]
    schema: Annotated[
        Schema | Sequence[Schema | None] | None,
        Option(
            "Make the answer follow this JSON schema (command line: a file that holds it).",
            per_prompt=True,
            flag=Path,
        ),
    ]
    grammar: Annotated[
        str | Sequence[str | None] | None,
        Option(
            "Make the answer follow this Lark grammar (command line: a file that holds it).",
            "a Lark grammar",
            per_prompt=True,
            flag=Path,
            kind=values.text,
        ),
    ]
    logprobs: Annotated[
        int | None,
        Option(
            "Log-probabilities of the chosen tokens and of this many of the likeliest ones.",
            "0 up to the size of the vocabulary",
            lambda count: count >= 0,
            flag=int,
            kind=values.whole,
        ),
    ]
    keep_prefix: Annotated[
        bool | None,
        Option(
            "Continue from what the cache still holds of an earlier prompt; chat does.",
            "True, False",
            kind=values.truth,
        ),
    ]
    speculate: Annotated[
        str | None,
        Option(
            "Guess tokens ahead where that is faster, which does not change the text.",
            "auto, off",
            lambda word: word in ("auto", "off"),
            flag=str,
            kind=values.text,
        ),
    ]


class GenerateOptions(AnswerOptions, total=False):
    """Options of ``generate``, ``stream`` and their asynchronous forms."""

    parse_special: Annotated[
        bool | None,
        Option(
            "Read special tokens that are written in the prompt, as in a template written by hand; "
            "no: they are plain text (default: read, with a warning).",
            "True, False",
            kind=values.truth,
            flag=bool,
            flags=("--parse-special/--no-parse-special",),
        ),
    ]


class ChatOptions(AnswerOptions, total=False):
    """Options of ``chat``, ``stream_chat`` and ``achat``."""

    tools: Annotated[
        Sequence[Mapping[str, Any]] | None,
        Option(
            "Functions that the model may call, as JSON schemas (command line: a file that holds "
            "the list).",
            "a list of mappings such as {'type': 'function', 'function': {'name': …, …}}",
            kind=values.mappings,
            flag=Path,
        ),
    ]
    template_variables: Annotated[
        Mapping[str, Any] | None,
        Option(
            "Variables that the model's chat template reads (command line: a JSON object).",
            "a mapping such as {'enable_thinking': False}",
            kind=values.mapping,
            flag=str,
        ),
    ]
    continue_final_message: Annotated[
        bool | None,
        Option(
            "Go on with the last message's text instead of answering it.",
            "True, False",
            kind=values.truth,
        ),
    ]


_STOP_EVENT = Option(
    "Cancels the answer when it is set.",
    "an event with is_set(), or None",
    kind=values.event,
    optional=True,
)
CHAT = declare(Call("chat()", ChatOptions, {"stop_event": _STOP_EVENT}))
GENERATE = declare(
    Call(
        "generate()",
        GenerateOptions,
        {
            "n": Option(
                "Number of answers per prompt.",
                "1 to 10000",
                lambda count: 1 <= count <= 10000,
                kind=values.whole,
            ),
            "beams": Option(
                "Beam search of this width (above 1).",
                "1 (off) or above",
                lambda width: width >= 1,
                kind=values.whole,
            ),
            "length_penalty": Option(
                "Scores of beams are divided by length to this power.",
                "-16 to 16",
                lambda power: abs(power) <= 16,
                kind=values.number,
            ),
            "stop_event": _STOP_EVENT,
        },
    )
)


def require_option(name: str, value: Any) -> Any:
    """The value as read; UsageError for one that the tables do not allow."""
    return (options_in(GenerateOptions) | options_in(ChatOptions))[name].require(name, value)
