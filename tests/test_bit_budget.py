"""Recipes by bits per weight: within the bits, of least expected divergence, and of this model."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.models.model_files import ModelFiles
from edgelm.quantization import bit_budget
from edgelm.quantization.bit_budget import BitBudget, kinds, measured, relative_error
from quant import Scheme

FAMILIES = ["llama", "gemma2", "helium", "persimmon", "bloom"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [4.3, 4.6, 5.0, 6.5, 8.2])
def test_the_folder_has_at_most_so_many_bits(
    assets: Path, family: str, bits: float, tmp_path: Path
) -> None:
    recipe = BitBudget(ModelFiles.open(assets / "nano" / family), "rtn").recipe(bits)
    done = edgelm.quantize(assets / "nano" / family, tmp_path / "out", quant=recipe)
    print(family, bits, done.manifest.bits_per_weight, recipe.to_dict())
    assert bits - 0.25 < done.manifest.bits_per_weight <= bits


@pytest.mark.parametrize("bits", [4.4, 5.1, 6.0])
def test_no_other_choice_is_expected_to_be_better(assets: Path, bits: float) -> None:
    files = ModelFiles.open(assets / "nano" / "bloom")
    budget, sensitivities = BitBudget(files, "rtn"), bit_budget.built_in()
    floats = {
        name: files.checkpoint.info(name)
        for name in files.checkpoint.names()
        if not any(name in kind.files for kind in budget.kinds)
    }
    weights = sum(n * k for kind in budget.kinds for n, k in kind.shapes)
    weights += sum(math.prod(info.shape) for info in floats.values())
    most = bits * weights / 8 - sum(info.nbytes for info in floats.values())

    def expected(schemes: tuple[str, ...]) -> float:
        chosen = list(zip(budget.kinds, map(Scheme.parse, schemes), strict=True))
        if sum(kind.nbytes(scheme) or 1 << 60 for kind, scheme in chosen) > most:
            return float("inf")
        return sum(
            sum(sensitivities[name] for name in kind.names) * relative_error(str(scheme), "rtn")
            for kind, scheme in chosen
        )

    recipe = budget.recipe(bits)
    own = tuple(str(recipe.rule_for(kind.patterns[0]).schemes[0]) for kind in budget.kinds)
    every = itertools.product(bit_budget.SCHEMES, repeat=len(budget.kinds))
    assert expected(own) == pytest.approx(min(map(expected, every)))
    assert expected(own) < float("inf")


def test_fused_and_tied_matrices_are_one_kind(assets: Path) -> None:
    found = {name: {kind.names for kind in kinds(ModelFiles.open(assets / "nano" / name))}
             for name in ("llama", "gemma2", "bloom")}  # fmt: skip
    layer = {frozenset([name]) for name in ("o", "gate", "up", "down")}
    apart = {frozenset([name]) for name in ("q", "k", "v")}
    assert found["llama"] == layer | apart | {frozenset(["embed"]), frozenset(["head"])}
    assert found["gemma2"] == layer | apart | {frozenset(["embed", "head"])}
    assert frozenset("qkv") in found["bloom"] and frozenset(["gate"]) not in found["bloom"]


def test_fewer_bits_than_there_are(assets: Path) -> None:
    files = ModelFiles.open(assets / "nano" / "llama")
    with pytest.raises(edgelm.UsageError, match=r"bpw is 3.9: the smallest recipe .* has 4\.\d\d"):
        BitBudget(files, "rtn").recipe(3.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bpw": 4.5, "quant": "int4"}, "quant is 'int4', and 4.5 bits per weight are given too"),
        ({"bpw": 0.5}, "bpw is 0.5; allowed: a number from 1 to 32"),
        ({"bpw": "4.5"}, "bpw is '4.5'; allowed"),
        ({"sensitivity": "text.txt"}, "no number of bits per weight is given"),
        ({"bpw": 4.5, "sensitivity": "missing.txt"}, "missing.txt"),
    ],
)
def test_wrong_values(assets: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(edgelm.EdgeLMError, match=message):
        edgelm.quantize(assets / "nano" / "llama", tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_gguf_files_lack_the_schemes(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(edgelm.UsageError, match=r"out\.gguf cannot hold .* such as q4_k"):
        edgelm.quantize(assets / "nano" / "llama", tmp_path / "out.gguf", bpw=4.5)
    assert not list(tmp_path.iterdir())


def test_sensitivities_are_of_the_model(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nano Llama the head weighs most and q least, and the shares add up."""
    monkeypatch.setattr(bit_budget, "WINDOWS", 2)
    files = ModelFiles.open(assets / "nano" / "llama")
    text = assets / "nano" / "heldout.txt"
    told: list[tuple[str, int, int]] = []
    found = measured(files, text, lambda *now: told.append(now))
    assert told[0] == ("sensitivity of embed", 0, 9) and told[-1][1:] == (8, 9)
    print(found)
    assert set(found) == {"embed", "head", "q", "k", "v", "o", "gate", "up", "down"}
    assert max(found, key=found.__getitem__) == "head" and found["q"] < found["down"]
    together = edgelm.evaluate(files, text=text, limit=2, quant=bit_budget.PROBE)
    expected = sum(found.values()) * relative_error(bit_budget.PROBE, "rtn")
    assert together.to_dict()["kld_mean"] == pytest.approx(expected, rel=0.15)


def test_measured_sensitivities_change_the_recipe(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = assets / "nano" / "llama"
    text = assets / "nano" / "heldout.txt"
    flat = dict.fromkeys(bit_budget.built_in(), 1e-9) | {"q": 1.0}
    monkeypatch.setattr(
        bit_budget, "measured", lambda files, given, progress: flat if given == text else {}
    )
    done = edgelm.quantize(files, tmp_path / "out", bpw=4.5, sensitivity=text)
    schemes = {name: str(module.scheme) for name, module in done.manifest.modules.items()}
    assert {s for name, s in schemes.items() if "q_proj" in name} == {"int8"}


def test_the_packaged_table_is_what_was_measured() -> None:
    script = Path(__file__).parent.parent / "benches" / "sensitivities.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
