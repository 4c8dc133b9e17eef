"""The settings of a load: the one table that signatures, checks, flags and help follow from.

The command line reads it for its help, so that nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from edgelm import values
from edgelm.budget.dtype_names import DTYPE_NAMES, KV_NAMES
from edgelm.budget.placement import OFFLOADS
from edgelm.budget.units import parse_budget
from edgelm.errors import UsageError
from edgelm.option import Call, Option, declare
from quant.names import BACKENDS, METHOD_NAMES, RECIPE_NAMES, SCHEME_TEXTS, meant_by

if TYPE_CHECKING:
    from quant import Recipe

    QuantChoice = str | dict[str, Any] | Recipe
else:
    QuantChoice = Any  # evaluated with the rest of the table

DEFAULT_CHUNK = 512
MOST_ROWS = 8  # of ``auto``: answers side by side share each read of the weights
EXACT_ACTIVATIONS = ("float",)  # products do not round; auto may
SCHEMES = f"{', '.join(RECIPE_NAMES)}, a scheme ({SCHEME_TEXTS}), or a JSON file with a recipe"


def _reference(value: Any) -> Any:
    """A model that is named or opened."""
    if isinstance(value, str | PathLike):
        return values.path(value)
    from edgelm.models.model_files import ModelFiles

    return value if isinstance(value, ModelFiles) else values.path(value)


def _recipe(value: Any) -> Any:
    """What ``Recipe.parse`` takes."""
    if isinstance(value, dict | str | PathLike):
        if isinstance(value, str) and (meant := meant_by(value)):
            raise UsageError(f"quant: unknown scheme {value!r}; did you mean {meant}?")
        return value if isinstance(value, dict) else values.path(value)
    from quant import Recipe

    return value if isinstance(value, Recipe) else values.path(value)


def _budget(value: Any) -> Any:
    """An amount in bytes, or the text of one."""
    if not isinstance(value, str):
        return values.number(value)
    parse_budget(value, available_bytes=1 << 30)
    return value


def _count_or_auto(value: Any) -> Any:
    return value if value == "auto" else values.count(value)


def _count(told: str, flag: Any = None) -> Option:
    """A count that may be left to the solver."""
    allowed = "auto, or a count of 1 or more (4096, 4k)"
    return Option(told, allowed, lambda n: n == "auto" or n >= 1, kind=_count_or_auto, flag=flag)


def _words(told: str, *words: str) -> Option:
    """One of a few words."""
    return Option(told, ", ".join(words), lambda word: word in words, kind=values.text, flag=str)


QUANT = Option(
    "Bits of the weights: a scheme or a recipe.", f"auto, {SCHEMES}", kind=_recipe, flag=str
)
METHOD = Option(
    "How the integers of a scheme are chosen (default: mse; a load without the native library: "
    "rtn).",
    ", ".join(METHOD_NAMES),
    kind=values.text,
    flag=str,
)


class LoadSettings(TypedDict, total=False):
    """Settings of a load: the keywords of ``load``, ``plan`` and ``evaluate``.

    ``auto`` and None leave the choice to the solver.
    """

    quant: Annotated[QuantChoice, QUANT]
    method: Annotated[str, METHOD]
    kv: Annotated[str, _words("Type of the cached keys and values.", "auto", *KV_NAMES)]
    backend: Annotated[str, _words("Library whose kernels multiply.", "auto", *BACKENDS)]
    activations: Annotated[
        str, _words("float: never round activations to 8 bits.", "auto", *EXACT_ACTIVATIONS)
    ]
    dtype: Annotated[str, _words("Type of the activations.", "auto", *DTYPE_NAMES)]
    device: Annotated[
        str,
        Option(
            "Where the model runs.",
            "auto, cpu, cuda, cuda:N, mps, xpu",
            kind=values.text,
            flag=str,
        ),
    ]
    context: Annotated[int | str, _count("Maximum tokens of prompt and answer.", str)]
    rows: Annotated[int | str, _count("Number of answers generated side by side.")]
    chunk: Annotated[int | str, _count("Maximum tokens of a prompt in one step.")]
    draft_depth: Annotated[
        int,
        Option(
            "Maximum tokens guessed ahead in one step.",
            "0 (off) or more",
            lambda count: count >= 0,
            kind=values.whole,
        ),
    ]
    budget: Annotated[
        str | int | None,
        Option(
            "Peak memory of the whole process (default: what is available).",
            "6GiB, 6G, 6144MiB, or 70% of what is available",
            kind=_budget,
            optional=True,
            flag=str,
        ),
    ]
    offload: Annotated[
        str,
        _words(
            "Where to put layers that do not fit: cpu (beside a GPU), or disk, from where they "
            "are read in every step.",
            *OFFLOADS,
        ),
    ]


MODEL = Option(
    "A model.", "a Hub id, a folder, a .gguf file, demo, or opened files", kind=_reference
)
OFFLINE = Option("Use only files that are on this machine.", "True, False", kind=values.truth)
REVISION = Option(
    "Branch, tag or commit on the Hub.", "a text, or None", kind=values.text, optional=True
)
PROGRESS = Option(
    "Called as work goes on.", "a function, or None", kind=values.callback, optional=True
)
LOAD = declare(
    Call(
        "load()",
        LoadSettings,
        {
            "task": Option("The model's head.", "the name of a task", kind=values.text),
            "num_labels": Option(
                "Labels of a fresh head.",
                "1 or more, or None",
                lambda count: count >= 1,
                kind=values.whole,
                optional=True,
            ),
            "problem_type": Option(
                "Of a sequence classification.", "a text, or None", kind=values.text, optional=True
            ),
            "draft": replace(MODEL, optional=True),
            "threads": Option(
                "Cores to use.", "a number of cores, or None", kind=values.whole, optional=True
            ),
            "revision": REVISION,
            "offline": OFFLINE,
            "allow_pickle": Option("Open pickled weights.", "True, False", kind=values.truth),
            "progress": PROGRESS,
        },
    )
)
