"""The settings of a load: the one table that signatures, checks, flags and help follow from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, TypedDict

import torch

from edgelm import values
from edgelm.budget.dtypes import DTYPES, KV_DTYPES
from edgelm.budget.placement import OFFLOADS
from edgelm.models.model_files import ModelFiles
from edgelm.option import Call, Option, declare
from quant import BACKENDS, METHODS, Recipe
from quant.recipe import NAMED
from quant.scheme import SCHEME_TEXTS

EXACT_ACTIVATIONS = {"float": torch.float32}  # what products do not round; auto may
QuantChoice = str | dict[str, Any] | Recipe
SCHEMES = f"{', '.join(NAMED)}, a scheme ({SCHEME_TEXTS}), or a JSON file with a recipe"


def _reference(value: Any) -> Any:
    """A model that is named or opened."""
    return value if isinstance(value, ModelFiles) else values.path(value)


def _recipe(value: Any) -> Any:
    """What ``Recipe.parse`` takes."""
    return value if isinstance(value, dict | Recipe) else values.path(value)


def _number_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else values.number(value)


def _whole_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else values.whole(value)


QUANT = Option(
    "Bits of the weights: a scheme or a recipe.", f"auto, {SCHEMES}", kind=_recipe, flag=str
)
METHOD = Option(
    "How the integers of a scheme are chosen (default: mse; a load without the native library: "
    "rtn).",
    ", ".join(METHODS),
    kind=values.text,
    flag=str,
)


def _or_auto(words: Iterable[str]) -> str:
    return ", ".join(("auto", *words))


class LoadSettings(TypedDict, total=False):
    """Settings of a load: the keywords of ``load``, ``plan`` and ``evaluate``.

    ``auto`` and None leave the choice to the solver.
    """

    quant: Annotated[QuantChoice, QUANT]
    method: Annotated[str, METHOD]
    kv: Annotated[
        str,
        Option(
            "Type of the cached keys and values.",
            _or_auto(KV_DTYPES),
            kind=values.text,
            flag=str,
        ),
    ]
    backend: Annotated[
        str,
        Option(
            "Library whose kernels multiply.",
            _or_auto(BACKENDS),
            lambda name: name in ("auto", *BACKENDS),
            kind=values.text,
            flag=str,
        ),
    ]
    activations: Annotated[
        str,
        Option(
            "float: never round activations to 8 bits.",
            _or_auto(EXACT_ACTIVATIONS),
            kind=values.text,
            flag=str,
        ),
    ]
    dtype: Annotated[
        str, Option("Type of the activations.", _or_auto(DTYPES), kind=values.text, flag=str)
    ]
    device: Annotated[
        str,
        Option(
            "Where the model runs.",
            "auto, cpu, cuda, cuda:N, mps, xpu",
            kind=values.text,
            flag=str,
        ),
    ]
    context: Annotated[
        int | str,
        Option(
            "Maximum tokens of prompt and answer.",
            "auto, or a count (4096, 4k)",
            kind=_whole_or_text,
            flag=str,
        ),
    ]
    rows: Annotated[
        int | str,
        Option(
            "Number of answers generated side by side.", "auto, or a count", kind=_whole_or_text
        ),
    ]
    chunk: Annotated[
        int | str,
        Option("Maximum tokens of a prompt in one step.", "auto, or a count", kind=_whole_or_text),
    ]
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
            kind=_number_or_text,
            optional=True,
            flag=str,
        ),
    ]
    offload: Annotated[
        str,
        Option(
            "Where to put layers that do not fit: cpu (beside a GPU), or disk, from where they "
            "are read in every step.",
            ", ".join(OFFLOADS),
            kind=values.text,
            flag=str,
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
