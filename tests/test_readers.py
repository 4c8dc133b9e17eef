"""``quantize --for PROGRAM``: the recipe, what it costs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgelm
from edgelm.checkpoint.manifest import MANIFEST, Manifest
from edgelm.cli.main import main
from edgelm.models.model_files import ModelFiles
from edgelm.quantization.bit_budget import BitBudget
from edgelm.quantization.readers import READERS
from quant import Recipe


@pytest.mark.parametrize("reader", ["transformers", "vllm"])
def test_a_folder_for_another_program(
    reader: str, assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = assets / "nano" / "llama", tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--for", reader]) == 0
    told = " ".join(capsys.readouterr().out.split())
    manifest = Manifest.read(out / MANIFEST)
    assert f"for {reader}: {manifest.bits_per_weight:.2f} bits per weight" in told
    assert "int4 has 4.85" in told and READERS[reader].why in told
    assert "model.embed_tokens.weight" in manifest.floats
    config = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and not config["dequantize"]
    assert ("lm_head" in config["ignore"]) == (reader == "vllm")


def test_a_file_for_llama_cpp(assets: Path, tmp_path: Path) -> None:
    done = edgelm.quantize(assets / "nano" / "bloom", tmp_path / "m.gguf", reader="llama.cpp")
    assert f"for llama.cpp: {done.manifest.bits_per_weight:.2f} bits" in done.cost
    assert done.to_dict()["cost"] == done.cost


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        ("m.gguf", ["--for", "vllm"], "vllm reads a folder: leave out .gguf"),
        ("out", ["--for", "llama.cpp"], "llama.cpp reads a file: give a name that ends in .gguf"),
        ("out", ["--for", "ollama"], "--for is 'ollama'; allowed: transformers, vllm, llama.cpp"),
        ("out", ["--for", "vllm", "--quant", "int4"], "recipe for vllm is asked for too; give one"),
        (
            "out",
            ["--for", "vllm", "--bpw", "5"],
            "--bpw is 5.0, and the recipe for vllm is asked for",
        ),
    ],
)
def test_what_is_refused(
    out: str, flags: list[str], message: str, assets: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = assets / "nano" / "llama"
    assert main(["quantize", str(source), str(tmp_path / out), *flags]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_expected_divergence_is_the_sum_over_kinds(assets: Path) -> None:
    """As by hand from the sensitivities, and nothing for floats."""
    files = ModelFiles.open(assets / "nano" / "llama")
    budget = BitBudget(files, "rtn", {"q": 2.0, "embed": 3.0, "head": 5.0})
    ones = {name: budget.expected_kld(Recipe.parse(name)) for name in ("none", "int8", "int4-g32")}
    assert ones["none"] == 0 < ones["int8"] < ones["int4-g32"]
    mixed = {"default": "none", "overrides": {"*.q": "int4-g32", "head": "int4-g32"}}
    assert budget.expected_kld(Recipe.parse(mixed)) == pytest.approx(ones["int4-g32"] * 0.7)
