"""``BitBudget``: the recipe of least expected divergence at a number of bits per weight.

A matrix's share of a model's divergence (KLD) is proportional to the relative squared error of its
numbers, and shares add up (measured: within 4 % on five families). The factor depends on what a
matrix does (v, down, embed …): its sensitivity.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from edgelm.errors import UsageError
from edgelm.evaluation.evaluate import evaluate
from edgelm.models.model_files import ModelFiles
from edgelm.progress import Progress
from edgelm.quantization.conversion import assembled
from edgelm.reports.inspection import HEAD
from quant import METHODS, QuantError, Recipe, Scheme, pack

SCHEMES = (
    *("iq4-g128-coded", "iq4-g64-coded", "iq4-g32-coded", "int4-g32-zfloat-coded"),
    *("int5-g32-coded", "int5-g32-zfloat-coded", "int6-g32-coded", "int8"),
)
PROBE = "iq4-g32-coded"  # what one kind is stored in while its sensitivity is measured
WINDOWS = 8  # of the text
_SAMPLE = (64, 512)  # Gaussian weights on which errors of schemes are measured

Sensitivities = Mapping[str, float]
"""Kind of matrix, such as ``v`` or ``embed`` -> KLD per relative squared error of all of them."""


@dataclass(frozen=True)
class Kind:
    """Matrices that share a scheme: those of one function, or of several that a file fuses.

    names: of the functions. patterns: of their names in recipes. files: stored names.
    """

    names: frozenset[str]
    patterns: tuple[str, ...]
    files: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    def nbytes(self, scheme: Scheme) -> int | None:
        """Bytes of all in the scheme; None where a row length does not allow it."""
        try:
            return sum(scheme.nbytes(shape) for shape in self.shapes)
        except QuantError:
            return None


@dataclass(frozen=True)
class Choice:
    """Schemes of the kinds so far, their bytes and expected divergence."""

    nbytes: int
    kld: float
    schemes: tuple[Scheme, ...] = ()


class BitBudget:
    """Recipes of a model by bits per weight, from headers alone.

    sensitivities: by kind; None are those in the package, means over the models that
    ``benches/sensitivities.py`` measures.
    """

    def __init__(
        self, files: ModelFiles, method: str, sensitivities: Sensitivities | None = None
    ) -> None:
        self.kinds = kinds(files)
        self._sensitivities = built_in() if sensitivities is None else sensitivities
        self._method = method if method in METHODS else "mse"  # gptq's grids are those of mse
        stored = {name: files.checkpoint.info(name) for name in files.checkpoint.names()}
        for kind in self.kinds:
            for name in kind.files:
                stored.pop(name, None)
        if files.config.tied:
            stored.pop(HEAD, None)
        shapes = [shape for kind in self.kinds for shape in kind.shapes]
        self._rest_bytes = sum(info.nbytes for info in stored.values())
        self._parameters = sum(map(math.prod, shapes)) + sum(
            math.prod(info.shape) for info in stored.values()
        )

    def recipe(self, bits: float) -> Recipe:
        """The recipe with the least expected divergence that does not exceed ``bits`` per weight.

        Raises UsageError where even the smallest has more.
        """
        allowed = int(bits * self._parameters / 8) - self._rest_bytes
        front = [Choice(0, 0.0)]
        for kind in self.kinds:
            front = _front(
                Choice(old.nbytes + nbytes, old.kld + kld, (*old.schemes, scheme))
                for old in front
                for scheme, nbytes, kld in self._options(kind)
            )
        fitting = [choice for choice in front if choice.nbytes <= allowed]
        if not fitting:
            least = (front[0].nbytes + self._rest_bytes) * 8 / self._parameters
            raise UsageError(
                f"bpw is {bits:g}: the smallest recipe of this model has {least:.2f} bits per "
                "weight; give at least that."
            )
        best = fitting[-1]
        overrides = {
            pattern: str(scheme)
            for kind, scheme in zip(self.kinds, best.schemes, strict=True)
            for pattern in kind.patterns
        }
        return Recipe.parse({"default": "int8", "overrides": overrides})

    def expected_kld(self, recipe: Recipe) -> float:
        """Expected divergence under a recipe, in nats a token."""
        found = 0.0
        for kind in self.kinds:
            scheme = recipe.schemes_for(kind.patterns[0], kind.shapes[0], torch.bfloat16)[0]
            if not scheme.is_float:
                found += self._sensitivity(kind) * relative_error(str(scheme), self._method)
        return found

    def _sensitivity(self, kind: Kind) -> float:
        return sum(self._sensitivities.get(name, 0.0) for name in kind.names)

    def _options(self, kind: Kind) -> Iterator[tuple[Scheme, int, float]]:
        for text in SCHEMES:
            scheme = Scheme.parse(text)
            nbytes = kind.nbytes(scheme)
            if nbytes is not None:
                yield scheme, nbytes, self._sensitivity(kind) * relative_error(text, self._method)


def kinds(files: ModelFiles) -> list[Kind]:
    """The kinds of matrices of a model."""
    model = assembled(files)
    recipe_name = model.names.recipe_name
    by_file: dict[str, list[tuple[str, tuple[int, int]]]] = {}
    for name, shape in model.decoder.matrices():
        by_file.setdefault(model.names.file_name(name), []).append((name, shape))
    alike: dict[frozenset[str], list[str]] = {}
    for stored, own in by_file.items():
        names = {name.rpartition(".")[2] for name, _ in own}
        if files.config.tied and "embed" in names:
            names.add("head")
        alike.setdefault(frozenset(names), []).append(stored)
    return [
        Kind(
            names,
            tuple(dict.fromkeys(_pattern(recipe_name(by_file[each][0][0])) for each in stored)),
            tuple(stored),
            tuple(shape for each in stored for _, shape in by_file[each]),
        )
        for names, stored in alike.items()
    ]


def built_in() -> Sensitivities:
    """The sensitivities in the package."""
    text = resources.files("edgelm").joinpath("data/sensitivities.json").read_text("utf-8")
    found: dict[str, float] = json.loads(text)["kinds"]
    return found


def measured(
    files: ModelFiles, text: str | Path, progress: Progress | None = None
) -> Sensitivities:
    """Sensitivities of one model: its divergence with one kind at a time in four bits.

    text: a UTF-8 file, of which the first windows are read. Every kind takes one load and
    ``WINDOWS`` windows of 512 tokens. progress: called with (kinds, done, all).
    """
    found: dict[str, float] = {}
    every = kinds(files)
    with tempfile.TemporaryDirectory() as folder:
        for index, kind in enumerate(every):
            if progress:
                progress(f"sensitivity of {', '.join(sorted(kind.names))}", index, len(every))
            fitting = next(text for text in (PROBE, *SCHEMES) if kind.nbytes(Scheme.parse(text)))
            overrides = dict.fromkeys(kind.patterns, fitting)
            result = evaluate(
                files, text=text, limit=WINDOWS, baseline=Path(folder) / "float.baseline",
                quant={"default": "none", "overrides": overrides},
            )  # fmt: skip
            kld = result.to_dict()["kld_mean"]
            # Fused or tied functions share what was measured: their sum counts.
            share = kld / relative_error(fitting, "rtn") / len(kind.names)
            found |= dict.fromkeys(kind.names, share)
    return found


@cache
def relative_error(scheme: str, method: str) -> float:
    """Squared error of Gaussian weights over their squares."""
    values = torch.randn(_SAMPLE, generator=torch.Generator().manual_seed(0))
    _, error = pack([(0, values)], _SAMPLE, Scheme.parse(scheme), method)
    return 0.0 if error is None else 10 ** (-error / 10)


def _pattern(name: str) -> str:
    first, *rest = name.split(".")
    return ".".join((first, "*", *rest[1:])) if rest else first


def _front(choices: Iterable[Choice]) -> list[Choice]:
    """Those that no other beats in both bytes and divergence, by rising bytes."""
    front: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.nbytes, each.kld)):
        if not front or choice.kld < front[-1].kld:
            front.append(choice)
    return front
