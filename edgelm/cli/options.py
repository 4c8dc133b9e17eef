"""The options that verbs share, as groups; ``expanded`` turns a group into single options.

What is a keyword of ``load`` or ``generate`` too comes out of its table there, with its help.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import typer
from typer.models import OptionInfo

from edgelm.checkpoint.shapes import SHAPES
from edgelm.errors import UsageError
from edgelm.generation.option_table import (
    AnswerOptions,
    ChatOptions,
    GenerateOptions,
    require_option,
)
from edgelm.option import Option, options_in
from edgelm.planning.setting_table import LoadSettings
from edgelm.text.lines import UTF8
from edgelm.values import count

_PANELS = SOURCE, LOADING, SAMPLING, OUTPUT = ("Source", "Loading", "Sampling", "Output")


def flag(table: type, name: str, panel: str | None = None, **changes: Any) -> OptionInfo:
    """The option of a keyword; ``changes`` replace what the table says of it."""
    told: Option = replace(options_in(table)[name], **changes)
    allowed = f" Allowed: {told.allowed}." if told.allowed else ""
    names = told.flags or (f"--{name.replace('_', '-')}",)
    made: OptionInfo = typer.Option(*names, help=told.help + allowed, rich_help_panel=panel)
    return made


Model = Annotated[
    str,
    typer.Argument(
        help="A Hub id (owner/name or owner/name@revision), a folder, a .gguf file, or demo."
    ),
]
ModelIfNoShape = Annotated[
    str | None, typer.Argument(help="As for the other commands; or use --shape.")
]
Shape = Annotated[
    str | None,
    typer.Option(help=f"Random weights of {', '.join(SHAPES)}.", rich_help_panel=SOURCE),
]


def _count(text: Any) -> int:
    try:
        return count(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a count; write 4096 or 4k.") from None


def counted(told: str, panel: str | None = None) -> OptionInfo:
    """An option that reads a count: 4096, or 4k."""
    made: OptionInfo = typer.Option(
        help=told, parser=_count, metavar="<count>", rich_help_panel=panel
    )
    return made


Draft = Annotated[
    str | None,
    typer.Option(
        help="A smaller model with the same tokenizer, which guesses tokens ahead.",
        rich_help_panel=LOADING,
    ),
]


class Group:
    """Options that a verb takes as one parameter: the fields of a dataclass."""

    panel: ClassVar[str]

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """A parameter for each option."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            _parameter(field.name, _in_panel(hints[field.name], cls.panel), field.default)
            for field in fields(cls)  # type: ignore[arg-type]
        ]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """The group with the values of its options."""
        return cls(**given)


@dataclass(frozen=True)
class TableGroup(Group):
    """Options whose names, types and help stand in a table of keywords."""

    chosen: dict[str, Any]
    table: ClassVar[type]
    left_out: ClassVar[tuple[str, ...]] = ()  # what other groups have

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        return [
            _parameter(
                name,
                Annotated[option.flag | None, flag(cls.table, name, cls.panel)],
                None,
            )
            for name, option in options_in(cls.table).items()
            if option.flag is not None and name not in cls.left_out
        ]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        return cls(given)


@dataclass(frozen=True)
class SourceOptions(Group):
    """Source of the files."""

    panel = SOURCE
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only files that are on this machine.")
    ] = False
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Open pytorch_model.bin if there is nothing else."),
    ] = False


class LoadOptions(TableGroup):
    """Settings of a load and its plan."""

    panel, table = LOADING, LoadSettings

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """The settings that were given, checked before anything slow is imported."""
        chosen = {name: value for name, value in given.items() if value is not None}
        table = options_in(LoadSettings)
        return cls({name: table[name].require(name, value) for name, value in chosen.items()})

    def settings(self) -> dict[str, Any]:
        """The keywords of ``load`` and ``plan`` that say how."""
        return dict(self.chosen)

    def or_quant(self, quant: str) -> LoadOptions:
        """The same with a scheme where none was chosen."""
        auto = self.chosen.get("quant", "auto") == "auto"
        return LoadOptions(self.chosen | {"quant": quant}) if auto else self


@dataclass(frozen=True)
class RunOptions(Group):
    """Settings of a loaded model."""

    panel = LOADING
    threads: Annotated[
        int | None, typer.Option(help="Number of cores to use (default: EDGELM_THREADS, else all).")
    ] = None
    seed: Annotated[int | None, flag(GenerateOptions, "seed", SAMPLING)] = None


@dataclass(frozen=True)
class GuessOptions(Group):
    """Tokens guessed ahead, which changes an answer's time and not its text."""

    panel = LOADING
    speculate: Annotated[str, flag(GenerateOptions, "speculate")] = "auto"
    draft: Draft = None

    def settings(self) -> dict[str, Any]:
        """The keywords of ``load``; what is off takes no memory."""
        return {"draft": self.draft} | ({"draft_depth": 0} if self.speculate == "off" else {})

    def request(self) -> dict[str, Any]:
        """The keywords of ``LanguageModel.request``."""
        return {"speculate": self.speculate}


class SamplingOptions(TableGroup):
    """Choice of tokens: by default the model's own settings, else greedy."""

    panel, table = SAMPLING, AnswerOptions
    left_out = ("seed", "speculate", "logprobs")

    def request(self, run: RunOptions) -> dict[str, Any]:
        """The keywords of ``LanguageModel.request``."""
        files = {name: _text(self.chosen[name]) for name in ("schema", "grammar")}
        given = self.chosen | files | {"seed": run.seed}
        return {
            name: require_option(name, value) for name, value in given.items() if value is not None
        }


class TemplateOptions(TableGroup):
    """What a chat's template gets beside the messages."""

    panel, table = SOURCE, ChatOptions
    left_out = tuple(options_in(AnswerOptions))

    def request(self) -> dict[str, Any]:
        """The keywords of ``LanguageModel.chat``."""
        tools, variables = _text(self.chosen["tools"]), self.chosen["template_variables"]
        return {
            "tools": _parsed("--tools", tools),
            "template_variables": _parsed("--template-variables", variables),
        }


def _parsed(name: str, text: str | None) -> Any:
    """The value in a JSON text."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} {text!r:.60} is not JSON ({error}).") from error


def _text(file: Path | None) -> str | None:
    """Content of a text file."""
    try:
        return None if file is None else file.read_text(encoding=UTF8)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as UTF-8 text: {error}.") from error


@dataclass(frozen=True)
class OutputOptions(Group):
    """Form of the output."""

    panel = OUTPUT
    json: Annotated[
        bool, typer.Option("--json", help="Write one JSON document to stdout and nothing else.")
    ] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show more on stderr.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False


def expanded(verb: Callable[..., int | None]) -> Callable[..., int | None]:
    """``verb`` with each parameter that is a group of options replaced by the group's options."""
    own = inspect.signature(verb, eval_str=True).parameters.values()
    groups: dict[str, type[Group]] = {
        p.name: p.annotation
        for p in own
        if isinstance(p.annotation, type) and issubclass(p.annotation, Group)
    }
    single = [p for p in own if p.name not in groups]
    members = {name: group.parameters() for name, group in groups.items()}

    @wraps(verb)
    def run(**given: Any) -> int | None:
        for name, group in groups.items():
            given[name] = group.of({p.name: given.pop(p.name) for p in members[name]})
        return verb(**given)

    single += [parameter for group in members.values() for parameter in group]
    single.sort(key=_panel_rank)  # Typer shows panels in the order of their first options
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in single]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    del run.__wrapped__, run.__annotations__  # typer must read the new signature
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _panel_rank(parameter: inspect.Parameter) -> int:
    info = parameter.annotation.__metadata__[0]
    return _PANELS.index(info.rich_help_panel) if info.rich_help_panel in _PANELS else -1


def _in_panel(annotation: Any, panel: str) -> Any:
    """The annotation of an option that is shown in ``panel`` unless it says another."""
    kind, info = annotation.__origin__, copy.copy(annotation.__metadata__[0])
    if not info.rich_help_panel:
        info.rich_help_panel = panel
    return Annotated[kind, info]
