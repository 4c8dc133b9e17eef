"""The options that verbs share, as groups; ``expanded`` turns a group into single options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from edgelm.checkpoint.shapes import SHAPES
from edgelm.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(
        help="A Hub id (owner/name or owner/name@revision), a folder, a .gguf file, or demo."
    ),
]

ModelIfNoShape = Annotated[
    str | None, typer.Argument(help="As for the other commands; or use --shape.")
]
Shape = Annotated[str | None, typer.Option(help=f"Random weights of {', '.join(SHAPES)}.")]


Draft = Annotated[
    str | None,
    typer.Option(help="A smaller model with the same tokenizer, which guesses tokens ahead."),
]


@dataclass(frozen=True)
class SourceOptions:
    """Where the files come from."""

    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None
    offline: Annotated[bool, typer.Option("--offline", help="Use only what is here.")] = False
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open pytorch_model.bin if there is no other.")
    ] = False


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded; what a plan is made of."""

    quant: Annotated[
        str,
        typer.Option(help="auto, none, int4, int8, nf4, a scheme like int4-g64, or a JSON recipe."),
    ] = "auto"
    method: Annotated[str, typer.Option(help="How the integers are chosen: rtn, mse or hqq.")] = (
        "rtn"
    )
    kv: Annotated[str, typer.Option(help="Cache: auto, float32, bfloat16, float16, int8.")] = "auto"
    backend: Annotated[str, typer.Option(help="Kernels: auto, native, torch or reference.")] = (
        "auto"
    )
    activations: Annotated[
        str, typer.Option(help="auto, or float: products never round activations to 8 bits.")
    ] = "auto"
    dtype: Annotated[str, typer.Option(help="Activations: auto, float32 or bfloat16.")] = "auto"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps or xpu.")] = "auto"
    context: Annotated[str, typer.Option(help="Tokens of prompt and answer, or auto.")] = "auto"
    budget: Annotated[
        str | None, typer.Option(help="Peak memory of the whole process: 6GiB, or 70% of free.")
    ] = None
    offload: Annotated[
        str,
        typer.Option(help="Where layers without room go: none, cpu (beside a GPU), disk."),
    ] = "none"

    def settings(self) -> dict[str, Any]:
        """The keywords of ``load`` and ``plan`` that say how."""
        return asdict(self)


@dataclass(frozen=True)
class RunOptions:
    """How a loaded model runs."""

    threads: Annotated[int | None, typer.Option(help="Cores to use.")] = None
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.")] = None


@dataclass(frozen=True)
class GuessOptions:
    """Tokens guessed ahead, which changes an answer's time and not its text."""

    speculate: Annotated[
        str, typer.Option(help="auto guesses tokens ahead where that is faster; or off.")
    ] = "auto"
    draft: Draft = None

    def settings(self) -> dict[str, Any]:
        """The keywords of ``load``; what is off takes no memory."""
        return {"draft": self.draft} | ({"draft_depth": 0} if self.speculate == "off" else {})

    def request(self) -> dict[str, Any]:
        """The keywords of ``LanguageModel.request``."""
        return {"speculate": self.speculate}


@dataclass(frozen=True)
class SamplingOptions:
    """How an answer is chosen; the model's own defaults where nothing is given, else greedy."""

    max_tokens: Annotated[
        int | None, typer.Option(help="At most so many; by default until the context is full.")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest.")] = None
    top_p: Annotated[float | None, typer.Option(help="Draw from this share.")] = None
    min_p: Annotated[
        float | None, typer.Option(help="Leave out what is less likely than this x the likeliest.")
    ] = None
    typical_p: Annotated[
        float | None, typer.Option(help="Draw from this share of what surprises as expected.")
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 makes tokens of prompt and answer rarer.")
    ] = None
    presence_penalty: Annotated[
        float | None, typer.Option(help="Taken from tokens that the answer holds.")
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option(help="Taken from tokens for each time the answer holds them.")
    ] = None
    schema: Annotated[
        Path | None, typer.Option(help="A file with a JSON schema that the answer follows.")
    ] = None
    grammar: Annotated[
        Path | None, typer.Option(help="A file with a Lark grammar that the answer follows.")
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated.")
    ] = None

    def request(self, run: RunOptions) -> dict[str, Any]:
        """The keywords of ``LanguageModel.request``."""
        return {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "schema": _text(self.schema),
            "grammar": _text(self.grammar),
            "stop": self.stop or (),
            "seed": run.seed,
        }


def _text(file: Path | None) -> str | None:
    """What a file holds."""
    try:
        return None if file is None else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as UTF-8 text: {error}.") from error


@dataclass(frozen=True)
class OutputOptions:
    """What is shown."""

    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only errors.")] = False


def expanded(verb: Callable[..., int | None]) -> Callable[..., int | None]:
    """``verb`` with each parameter that is a group of options replaced by the group's fields."""
    own = inspect.signature(verb, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    single = [p for p in own if p.name not in groups]
    for group in groups.values():
        hints = get_type_hints(group, include_extras=True)
        single += [_parameter(field, hints[field.name]) for field in fields(group)]

    @wraps(verb)
    def run(**given: Any) -> int | None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        return verb(**given)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in single]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    del run.__wrapped__, run.__annotations__  # typer must read the new signature
    return run


def _parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    assert field.default is not MISSING
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, kind, default=field.default, annotation=annotation)
