"""The certificate of a quantized model: measured, stored, shown, measured again, and its limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import edgelm
from edgelm.checkpoint.certificate import Certificate, beside, read_beside
from edgelm.checkpoint.manifest import MANIFEST, Manifest
from edgelm.cli.main import main
from edgelm.errors import DoesNotFitError, EdgeLMError, ModelFileError, UsageError
from edgelm.evaluation import certify
from edgelm.evaluation.certify import Text
from edgelm.evaluation.layerwise import head_engine, layer_engine
from edgelm.evaluation.verify import verify
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import Settings
from edgelm.quantization import certification
from edgelm.quantization.certification import worst_matrices
from edgelm.reports.inspection import inspect_files

FIGURES = ("kld_mean", "kld_p99", "kld_max", "top1_agreement", "ppl", "ppl_baseline")
SHARE = 1e-3
BAD = {"default": "int8", "overrides": {"layers.1.mlp.down": "int4-g128"}}


def quantized(assets: Path, out: Path, family: str = "llama", **options: Any) -> Certificate:
    done = edgelm.quantize(assets / "nano" / family, out, **({"quant": "int4"} | options))
    found = done.manifest.certificate
    assert found is not None
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_figures_are_those_of_the_whole_models(assets: Path, tmp_path: Path, family: str) -> None:
    """By their definitions, from the logits of both models loaded whole: an untied head, a tied."""
    source, out = assets / "nano" / family, tmp_path / "out"
    found = quantized(assets, out, family)
    with edgelm.load(source, quant="none", dtype="float32", kv="float32", context=32) as lm:
        windows = Text.usual(None, ModelFiles.open(source)).passage.ids
        p = lm.forward(windows).logits.double().log_softmax(-1)[:, :-1]
    with edgelm.load(out, dtype="float32", kv="float32", context=32) as lm:
        q = lm.forward(windows).logits.double().log_softmax(-1)[:, :-1]
        assert found.kernels == lm.kernels
    kld = (p.exp() * (p - q)).sum(-1).flatten()
    wanted = windows[:, 1:, None]
    expected = {
        "kld_mean": kld.mean(),
        "kld_p99": kld.sort().values[92],  # of 93
        "kld_max": kld.max(),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double().mean(),
        "ppl": (-q.gather(2, wanted)).mean().exp(),
        "ppl_baseline": (-p.gather(2, wanted)).mean().exp(),
    }
    for name, value in expected.items():
        print(f"{name}: {getattr(found, name):.6f}, expected {float(value):.6f}")
        assert getattr(found, name) == pytest.approx(float(value), rel=SHARE)
    assert (found.windows, found.window, found.tokens, found.bos) == (3, 32, 93, True)
    assert found.kld_mean > 1e-4


def test_a_head_that_is_the_embedding_needs_no_library(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.native.missing", lambda: "left out")
    files = ModelFiles.open(assets / "nano" / "gemma2")
    made = head_engine(files, Settings(quant="int8", dtype="float32", context=32)).plan
    assert made.execution.ops == "reference"


def test_windows_are_spread_over_a_text_that_no_calibration_reads(assets: Path) -> None:
    files = ModelFiles.open(assets / "nano" / "llama")
    ids = files.tokenizer.encode(certify._built_in().decode(), add_special=False)
    read = Text.read(None, files.tokenizer, window=16, windows=4)
    for number, window in enumerate(read.passage.ids):
        first = number * (len(ids) // 16) // 4 * 16
        assert window[1:].tolist() == ids[first + 1 : first + 16]
    assert first > len(ids) / 2
    own = {line for line in certify._built_in().decode().splitlines() if len(line) > 40}
    folder = Path(edgelm.__file__).parent / "data" / "calibration"
    calibrated = {line for file in folder.iterdir() for line in file.read_text().splitlines()}
    assert own and not own & calibrated


def test_every_place_says_the_same(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """edgelm.json, the README and its model-index, inspect, and what quantize prints."""
    source, out = assets / "nano" / "llama", tmp_path / "out"
    assert main(["quantize", str(source), str(out), "--quant", "int8"]) == 0
    shown = capsys.readouterr().out
    found = Manifest.read(out / MANIFEST).certificate
    assert found is not None and found.source == "llama"
    assert found.figures() in shown and " dB" not in shown and "lowest" not in shown
    assert found.weights_sha256 == ModelFiles.open(out).sha256
    assert found.source_sha256 == ModelFiles.open(source).sha256
    assert found.versions["edgelm"] == edgelm.__version__ and str(tmp_path) not in str(found)
    inspected = inspect_files(ModelFiles.open(out)).certificate
    assert inspected is not None and inspected["measured"] == found.to_dict()
    assert main(["inspect", str(out)]) == 0 and found.figures() in capsys.readouterr().out
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "README.md")
    assert found.figures() in card.text and "does not prove" in card.text
    assert found.text_sha256 in card.text and found.tokenizer_sha256 in card.text
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["kl_divergence"].metric_value == pytest.approx(found.kld_mean)
    assert results["perplexity"].dataset_name == "the built-in text"
    assert len(results) == 4


def test_a_gguf_file_has_it_beside(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    found = quantized(assets, out)
    assert read_beside(out) == found and beside(out).name == "out.certificate.json"
    files = ModelFiles.open(out)
    assert found.weights_sha256 == files.sha256
    assert (inspect_files(files).certificate or {})["measured"] == found.to_dict()
    again = verify(out, original=assets / "nano" / "llama")
    assert again.same and {check.name: check.found for check in again.checks}["kld_mean"]
    beside(out).write_text(json.dumps(found.to_dict() | {"kld_mean": "low"}))
    with pytest.raises(ModelFileError, match=r"out\.certificate\.json is damaged"):
        verify(out)
    out.unlink()
    edgelm.quantize(assets / "nano" / "llama", out, certificate=False)
    assert read_beside(out) is None


def test_verify_measures_again(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same with the original and without it; not when a figure or the weights are others."""
    source, out = assets / "nano" / "llama", tmp_path / "out"
    quantized(assets, out)
    whole = verify(out, original=source)
    assert whole.same and whole.original and not [c for c in whole.checks if c.found is None]
    assert main(["verify", str(out), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["same"] and alone["original"] is None
    unmeasured = {check["name"] for check in alone["checks"] if check["found"] is None}
    assert unmeasured == {"kld_mean", "kld_p99", "top1_agreement", "ppl_baseline"}
    data = json.loads((out / MANIFEST).read_text())
    for name, factor in (("kld_mean", 1.2), ("top1_agreement", 1.02), ("ppl", 1.01)):
        told = data["certificate"] | {name: data["certificate"][name] * factor}
        (out / MANIFEST).write_text(json.dumps(data | {"certificate": told}))
        wrong = [check.name for check in verify(out, original=source).checks if not check.same]
        assert wrong == [name]
    assert main(["verify", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "differs" in shown and "not the same" in shown and "--original" in shown


def test_verify_notices_other_weights(assets: Path, tmp_path: Path) -> None:
    quantized(assets, tmp_path / "out")
    quantized(assets, tmp_path / "other", quant="int8")
    for path in (tmp_path / "other").glob("*"):
        if path.name != MANIFEST:
            shutil.copy(path, tmp_path / "out" / path.name)
    data = json.loads((tmp_path / "other" / MANIFEST).read_text())
    told = json.loads((tmp_path / "out" / MANIFEST).read_text())["certificate"]
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(data | {"certificate": told}))
    found = verify(tmp_path / "out")
    assert "weights_sha256" in [check.name for check in found.checks if not check.same]


def test_verify_refuses_what_is_not_of_the_certificate(assets: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", assets / "nano" / "heldout.txt"
    found = quantized(assets, out, certificate_text=text)
    assert found.text == "heldout.txt"
    assert verify(out, text=text).same
    for options, told in (
        ({}, "measured on heldout.txt: give it"),
        ({"text": assets / "text" / "wiki.test.raw"}, "Give that text"),
        ({"text": text, "original": assets / "nano" / "helium"}, "whose weights have"),
    ):
        with pytest.raises(UsageError, match=told):
            verify(out, **options)
    edgelm.quantize(assets / "nano" / "llama", tmp_path / "without", certificate=False)
    with pytest.raises(UsageError, match="has no certificate"):
        verify(tmp_path / "without")


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_worse_result_is_not_shipped(assets: Path, tmp_path: Path, name: str) -> None:
    """It names the worst matrix, leaves no OUT, and goes on where it stopped."""
    source, out = assets / "nano" / "llama", tmp_path / name
    recipe: Any = "q4_0" if name.endswith("gguf") else BAD
    with pytest.raises(EdgeLMError, match=r"max_kld=1e-06") as raised:
        edgelm.quantize(source, out, quant=recipe, max_kld=1e-6)
    print(raised.value)
    assert not out.exists() and not beside(out).exists()
    assert raised.value.exit_code == 1 and raised.value.results["certificate"]["kld_mean"] > 1e-6
    worst = raised.value.results["worst"]
    if not name.endswith("gguf"):
        assert next(iter(worst)) == "model.layers.1.mlp.down_proj.weight"
    assert next(iter(worst)) in str(raised.value)
    done = edgelm.quantize(source, out, quant=recipe, max_kld=0.5)
    assert out.exists() and done.resumed > 0 and not list(tmp_path.glob("*partial*"))
    edgelm.quantize(source, tmp_path / f"other-{name}", quant=recipe)
    if out.is_dir():
        for path in out.iterdir():
            assert path.read_bytes() == (tmp_path / f"other-{name}" / path.name).read_bytes()


def test_shares_of_the_worst_matrices_add_up(assets: Path, tmp_path: Path) -> None:
    done = edgelm.quantize(assets / "nano" / "gemma2", tmp_path / "out", quant="int4")
    worst = worst_matrices(ModelFiles.open(assets / "nano" / "gemma2"), done.manifest)
    shares = list(worst.values())
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) < 1


def test_a_model_that_cannot_be_measured_gets_none(
    tiny_llama: Any, assets: Path, tmp_path: Path
) -> None:
    """Without a tokenizer; an explicit wish is refused before any work."""
    source = tiny_llama()
    assert edgelm.quantize(source, tmp_path / "out").manifest.certificate is None
    with pytest.raises(UsageError, match=r"max_kld is 0\.1, and .* cannot be measured"):
        edgelm.quantize(source, tmp_path / "other", max_kld=0.1)
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("Too short.")
    with pytest.raises(UsageError, match=r"tiny\.txt has \d+ tokens; 3 windows of 32"):
        edgelm.quantize(assets / "nano" / "llama", tmp_path / "x", certificate_text=tiny)
    for options in ({"max_kld": 0.0}, {"max_kld": True}, {"certificate": 1}):
        with pytest.raises(UsageError, match="allowed"):
            edgelm.quantize(assets / "nano" / "llama", tmp_path / "x", **options)
    with pytest.raises(UsageError, match="certificate=False leaves the measurement out"):
        edgelm.quantize(assets / "nano" / "llama", tmp_path / "x", certificate=False, max_kld=1.0)
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob("other*"))


def test_without_room_a_result_is_kept_and_uncertified(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Certificate:
        raise DoesNotFitError("One layer needs more.")

    monkeypatch.setattr(certification, "certify", refuse)
    done = edgelm.quantize(assets / "nano" / "llama", tmp_path / "out")
    assert done.manifest.certificate is None and "gets no certificate: One layer" in caplog.text
    with pytest.raises(DoesNotFitError):
        edgelm.quantize(assets / "nano" / "llama", tmp_path / "other", max_kld=1.0)


def test_a_damaged_certificate_is_refused(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantized(assets, out)
    data = json.loads((out / MANIFEST).read_text())
    for change in (
        {"tokens": "many"}, {"ppl": None}, {"kernels": []}, {"kld_mean": float("nan")}, {"bos": 1},
        {"window": 0}, {"windows": -1}, {"source": "a\x1b[2Jb"},
    ):  # fmt: skip
        told = data["certificate"] | change
        (out / MANIFEST).write_text(json.dumps(data | {"certificate": told}))
        with pytest.raises(ModelFileError, match=r"edgelm\.json is damaged"):
            ModelFiles.open(out)
    (out / MANIFEST).write_text(json.dumps(data | {"certificate": None}))
    assert ModelFiles.open(out)


def test_parts_left_in_floats_run_in_floats(assets: Path, tmp_path: Path) -> None:
    """A layer and tables of a packed folder that hold no integers, which `auto` would pack."""
    floats = dict.fromkeys(("layers.0.*", "embed", "head"), "none")
    recipe = {"default": "int8", "overrides": floats}
    edgelm.quantize(assets / "nano" / "llama", tmp_path / "out", quant=recipe, certificate=False)
    files = ModelFiles.open(tmp_path / "out")
    whole = edgelm.plan(files, dtype="float32", context=32).products
    settings = Settings(dtype="float32", context=32)
    layers = [layer_engine(files, index, settings).plan.products for index in (0, 1)]
    found = [product.scheme for own in layers for product in own]
    found += [product.scheme for product in head_engine(files, settings).plan.products]
    expected = [product.scheme for product in whole if product.names != ("embed",)]
    assert found == [*expected[:8], expected[-1]] and {"int8", "float32"} == set(found)
    assert found[0] == found[-1] == "float32"
