"""gptq in `edgelm quantize`: layers over a text, nearer to the model, resumed, promised."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from test_prediction import write_tokenizer
from test_quantize import content, in_child, needs_fork

import edgelm
from edgelm.checkpoint.safetensors_files import read_json
from edgelm.models.layers import Projection, part_names
from edgelm.models.model_files import ModelFiles
from edgelm.quantization import calibration_text
from edgelm.quantization.calibration import Calibration
from edgelm.quantization.calibration_text import CalibrationText
from edgelm.quantization.conversion import plan_conversion
from quant import Curvature

FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
HESSIAN_ERROR = 1e-5
"""Relative; sums run in float32 here and in float64 in the test."""
DIVERGENCE_SHARE = 0.5
"""Of rtn's, at most."""
WINDOW = 256


@pytest.fixture
def byte_llama(tiny_llama: Callable[..., Path]) -> Path:
    """A tiny Llama whose tokens are bytes."""
    folder = tiny_llama(vocab_size=259, max_position_embeddings=WINDOW)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def short_text(tmp_path: Path) -> Path:
    """Twenty sequences where tokens are bytes."""
    path = tmp_path / "short.txt"
    lines = (f"Line {number} counts {number * number} apples.\n" for number in range(180))
    path.write_text("".join(lines))
    return path


def heldout(assets: Path, characters: int) -> str:
    return (assets / "nano" / "heldout.txt").read_text(encoding="utf-8")[:characters]


def whole_models_inputs(folder: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """X^T X [K, K] float64 of every matrix, by its canonical name, in the whole model; "head" of
    the final states."""
    sums: dict[str, torch.Tensor] = {}
    with edgelm.load(folder, quant="none", dtype="float32", context=WINDOW, chunk=WINDOW) as lm:
        decoder = lm._session.engine.decoder
        for path, module in decoder.named_modules():
            if not isinstance(module, Projection) or module is decoder.head:
                continue
            names = part_names(path.rpartition(".")[0], list(module.parts))

            def collect(_: Any, given: Any, names: list[str] = names) -> None:
                x = given[0].double()
                found = sums.get(names[0], 0) + x.T @ x
                sums.update(dict.fromkeys(names, found))

            module.register_forward_pre_hook(collect)
        for sequence in ids:
            found = lm.forward(sequence[None], output_hidden_states=True)
            x = found.hidden_states[-1][0].double()
            sums["head"] = sums.get("head", 0) + x.T @ x
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_are_of_the_whole_models_inputs(assets: Path, tmp_path: Path, family: str) -> None:
    """Every matrix of every layer, each in its own projection's inputs, nothing else."""
    folder, text = assets / "nano" / family, tmp_path / "text"
    text.write_text(heldout(assets, 3600), encoding="utf-8")
    files = ModelFiles.open(folder)
    calibrated = CalibrationText.read(text, files.tokenizer, WINDOW)
    targets = plan_conversion(files, "int4", "gptq").targets
    back = torch.tensor(calibrated.held_back)
    assert 0 < int(back.sum()) < len(back)
    seen = whole_models_inputs(folder, calibrated.ids[~back])
    held = whole_models_inputs(folder, calibrated.ids[back])
    worst, names = 0.0, set()
    for target, curvature in Calibration(files, calibrated, targets).curved(()):
        names.add(target.name)
        tied = files.config.tied and target.parts == ("embed",)
        if curvature is None:
            assert not target.parts or (target.parts == ("embed",) and not tied)
            continue
        key = "head" if tied else target.parts[0]
        damping = float((curvature.matrix.double() - seen[key]).diagonal().mean())
        assert damping > 0
        damped = seen[key] + damping * torch.eye(len(seen[key]))
        for found, wanted in ((curvature.matrix, damped), (curvature.held, held[key])):
            worst = max(worst, float((found - wanted).norm() / wanted.norm()))
    print(f"{family}: {calibrated.to_dict()}, worst relative error {worst:.1e}")
    assert worst <= HESSIAN_ERROR
    assert names == {target.name for target in targets}


def log_probabilities(folder: Path, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    with edgelm.load(folder, context=WINDOW, backend="reference", **settings) as lm:
        return torch.stack([lm.forward(own[None]).logits[0].log_softmax(-1) for own in ids])


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_divergence_on_held_out_text(assets: Path, tmp_path: Path, family: str) -> None:
    """Calibrated on some of the package's own text, measured on another."""
    folder = assets / "nano" / family
    prose = Path(str(resources.files("edgelm").joinpath("data/calibration/prose.txt")))
    tokens = ModelFiles.open(folder).tokenizer.encode(heldout(assets, 16000))
    ids = torch.tensor(tokens[: 8 * WINDOW]).view(8, WINDOW)
    exact = log_probabilities(folder, ids, quant="none", dtype="float32")

    def perplexity(found: torch.Tensor) -> float:
        return float(found[:, :-1].gather(2, ids[:, 1:, None]).mean().neg().exp())

    divergence = {}
    print(f"{family}: perplexity {perplexity(exact):.3f} in floats")
    for method in ("rtn", "gptq"):
        text = {"calibration": prose} if method == "gptq" else {}
        done = edgelm.quantize(folder, tmp_path / method, quant="int4", method=method, **text)
        found = log_probabilities(tmp_path / method, ids)
        divergence[method] = float((exact.exp() * (exact - found)).sum(-1).mean())
        print(f"  {method}: {perplexity(found):.3f}, KLD {divergence[method]:.5f}")
    notes = {m.parts[0]: m.note for m in done.manifest.modules.values()}
    assert ("no inputs" in notes["embed"]) == (family == "llama")
    assert not notes["layers.0.mlp.down"] and not notes.get("head")
    assert divergence["gptq"] <= DIVERGENCE_SHARE * divergence["rtn"]


@needs_fork
def test_kill_and_resume(byte_llama: Path, tmp_path: Path, short_text: Path) -> None:
    """Layers that were done run again, without being packed again; the bytes are the same."""

    def run(out: Path) -> edgelm.Quantized:
        return edgelm.quantize(
            byte_llama, out, quant="int4-g32", method="gptq", calibration=short_text
        )

    run(tmp_path / "undisturbed")
    expected, resumed = content(tmp_path / "undisturbed"), []
    for point in (2, 40, 56, 72):
        out = tmp_path / f"out-{point}"
        assert in_child(lambda out=out: run(out), kill_at=point)
        resumed.append(run(out).resumed)
        assert content(out) == expected
    print(f"weights that were done: {resumed}")
    assert resumed[0] == 0 and 8 < resumed[-1] < 21


@needs_fork
def test_another_text_begins_anew(byte_llama: Path, tmp_path: Path, short_text: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "text"
    text.write_text("Another text, of other words. " * 100)
    begin = {"method": "gptq", "calibration": short_text}
    assert in_child(lambda: edgelm.quantize(byte_llama, out, **begin), kill_at=60)
    done = edgelm.quantize(byte_llama, out, method="gptq", calibration=text)
    assert done.resumed == 0 and done.calibration
    told = {"sequences": 11, "tokens_each": 256, "text": str(text), "held_back": 16}
    assert done.calibration == told | {"tokens_per_input": 11 * 256 / 160}


def test_what_is_promised(byte_llama: Path, tmp_path: Path, short_text: Path) -> None:
    """Parts by name, from headers: two Hessians for q, k and v, two for gate and up, and a factor
    at a time."""
    done = edgelm.quantize(
        byte_llama, tmp_path / "out", quant="int4-g32", method="gptq", calibration=short_text
    )
    parts, text = done.promised_parts, done.calibration
    assert parts["Hessians and a factor"] == 4 * (2 * 3 * 64**2 + 3 * 160**2)
    assert text is not None
    sequences = text["sequences"] + 16  # of the built-in text, to check against
    assert parts["calibration activations"] == 4 * sequences * text["tokens_each"] * 64
    assert parts["layer in float32"] > 4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160)
    assert sum(parts.values()) == done.promised_peak_bytes  # measured in tests/test_promises.py
    plain = edgelm.quantize(byte_llama, tmp_path / "plain", quant="int4-g32")
    assert set(parts) - set(plain.promised_parts) == {
        "layer in float32", "Hessians and a factor", "rows on their way to codes",
        "calibration activations",
    }  # fmt: skip


def written_text(folder: Path, out: Path, **more: Any) -> tuple[Any, torch.Tensor]:
    """What ``quantize`` says, and the ids that the model wrote for it."""
    kept = []
    ids = CalibrationText.ids.func

    def seen(text: CalibrationText) -> torch.Tensor:
        kept.append(ids(text))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CalibrationText, "ids", property(seen))
        done = edgelm.quantize(
            folder, out, quant="int4-g32", method="gptq", calibration="generated", **more
        )
    return done, kept[-1]


def test_text_that_the_model_writes(byte_llama: Path, tmp_path: Path) -> None:
    """Four tokens per input of the widest matrix are fitted to; the same text every time."""
    told = []
    done, ids = written_text(
        byte_llama, tmp_path / "out", progress=lambda *told_: told.append(told_)
    )
    assert done.calibration["text"] == "text that the model wrote"
    assert done.calibration["tokens_per_input"] >= 4
    assert ids.shape == (4, WINDOW) and ("text", 4 * WINDOW - WINDOW, 4 * WINDOW) in told
    _, same = written_text(byte_llama, tmp_path / "again")
    assert torch.equal(ids, same) and content(tmp_path / "out") == content(tmp_path / "again")
    assert len({tuple(row[-200:].tolist()) for row in ids}) == len(ids)


def test_written_text_is_what_the_model_finds_likely(assets: Path, tmp_path: Path) -> None:
    """Its own perplexity on it is far below that of ids drawn without it."""
    folder = assets / "nano" / "llama"
    _, ids = written_text(folder, tmp_path / "out")
    scored = ids[:4]
    found = log_probabilities(folder, scored, quant="none", dtype="float32")
    own = float(found[:, :-1].gather(2, scored[:, 1:, None]).mean())
    shuffled = scored[:, torch.randperm(WINDOW, generator=torch.Generator().manual_seed(0))]
    found = log_probabilities(folder, shuffled, quant="none", dtype="float32")
    other = float(found[:, :-1].gather(2, shuffled[:, 1:, None]).mean())
    print(f"log-likelihood per token: written {own:.2f}, the same tokens shuffled {other:.2f}")
    assert own > other + 1


def test_the_model_that_writes_is_promised(
    byte_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgelm.quantization import generated_text

    peak = 3 << 30
    plan = edgelm.plan(byte_llama, quant="int8", kv="float32", context=WINDOW, rows=4)
    told = replace(plan, load_peak_bytes=peak)
    monkeypatch.setattr(generated_text, "plan", lambda *_, **__: told)
    done, _ = written_text(byte_llama, tmp_path / "out")
    assert done.promised_peak_bytes == peak


@pytest.mark.parametrize("out", ["folder", "file.gguf"])
def test_no_curvature_is_left_when_the_next_layer_runs(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Nor when the next one is made: beside the Hessians nothing of their size was promised."""
    make, run = Calibration._curvature, Calibration._run_layer
    made: list[weakref.ref[Curvature]] = []

    def none_left(function: Any) -> Any:
        def watched(*given: Any) -> Any:
            assert all(own() is None for own in made)
            found = function(*given)
            if found is not None:
                made.append(weakref.ref(found))
            return found

        return watched

    monkeypatch.setattr(Calibration, "_curvature", none_left(make))
    monkeypatch.setattr(Calibration, "_run_layer", none_left(run))
    text = tmp_path / "text"
    text.write_text(heldout(assets, 6000), encoding="utf-8")
    quant = {"default": "int8-g32", "overrides": {"*.mlp.*": "none"}}
    edgelm.quantize(
        assets / "nano" / "llama", tmp_path / out, quant=quant, method="gptq", calibration=text
    )
    assert len(made) >= 8


def test_matrices_left_in_floats(byte_llama: Path, tmp_path: Path, short_text: Path) -> None:
    """They need no Hessian, and those beside them get their own."""
    recipe = {"default": "int4-g32", "overrides": {"layers.0.*": "none", "*.attn.k": "none"}}
    done = edgelm.quantize(
        byte_llama, tmp_path / "out", quant=recipe, method="gptq", calibration=short_text
    )
    packed = {part for m in done.manifest.modules.values() for part in m.parts}
    assert "layers.1.attn.q" in packed and "layers.1.attn.k" not in packed
    assert not any(part.startswith("layers.0") for part in packed)


def test_a_folder_that_is_quantized_already(
    byte_llama: Path, tmp_path: Path, short_text: Path
) -> None:
    """Its numbers are calibrated on as they are; what keeps its integers needs no text."""
    edgelm.quantize(byte_llama, tmp_path / "int8", quant="int8")
    settings: dict[str, Any] = {"method": "gptq", "calibration": short_text}
    done = edgelm.quantize(tmp_path / "int8", tmp_path / "int4", quant="int4-g32", **settings)
    notes = {m.parts[0]: m.note for m in done.manifest.modules.values()}
    assert notes["layers.0.mlp.down"] == "requantized: the file holds int8"
    kept = edgelm.quantize(tmp_path / "int8", tmp_path / "same", **settings)
    assert {m.note for m in kept.manifest.modules.values()} == {"kept as stored"}
    assert kept.promised_parts["Hessians and a factor"] == 0


def test_a_gguf_file_has_the_same_numbers(assets: Path, tmp_path: Path) -> None:
    source, text = assets / "nano" / "llama", tmp_path / "text"
    text.write_text(heldout(assets, 6000), encoding="utf-8")
    quant = {"default": "int8-g32", "overrides": {"*.o": "int4-g32"}}
    for out in ("folder", "file.gguf"):
        edgelm.quantize(source, tmp_path / out, quant=quant, method="gptq", calibration=text)
    ids = torch.arange(5, 60)[None]
    assert torch.equal(
        log_probabilities(tmp_path / "folder", ids), log_probabilities(tmp_path / "file.gguf", ids)
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [(None, "No such file"), (b"", "has 0 tokens"), (b"too short", "has 9 tokens; 1020 are needed"),
     (b"\xff\xfe" * 600, "UTF-8")],
)  # fmt: skip
def test_texts_that_cannot_be_used(
    byte_llama: Path, tmp_path: Path, data: bytes | None, words: str
) -> None:
    text = tmp_path / "text"
    if data is not None:
        text.write_bytes(data)
    with pytest.raises(edgelm.UsageError, match=f"calibration: .*{words}"):
        edgelm.quantize(byte_llama, tmp_path / "out", method="gptq", calibration=text)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("characters", "level"), [(1100, "WARNING"), (5000, "INFO")])
def test_too_few_tokens_for_the_widest_matrix_are_said(
    tiny_llama: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    characters: int, level: str,
) -> None:  # fmt: skip
    """Before the work begins: what there is, and what is needed."""
    folder = tiny_llama(vocab_size=259, max_position_embeddings=WINDOW, intermediate_size=512)
    write_tokenizer(folder)
    text, before = tmp_path / "text", []
    text.write_text("a word " * (characters // 7 + 1))
    caplog.set_level("INFO", "edgelm")
    done = edgelm.quantize(
        folder, tmp_path / "out", method="gptq", calibration=text,
        announce=lambda _: before.extend(caplog.records),
    )  # fmt: skip
    (said,) = [record for record in before if "tokens for each input" in record.getMessage()]
    assert done.calibration is not None
    have = done.calibration["tokens_per_input"]
    print(said.getMessage(), have)
    assert said.levelname == level and (have < 4) == (level == "WARNING")
    assert f"has {have:.2g} tokens" in said.getMessage()
    assert "; 4 are needed" in said.getMessage()


def test_the_built_in_text(byte_llama: Path) -> None:
    """At least 100 kB of every kind; conversations in the model's own template if it has one."""
    folder = resources.files("edgelm").joinpath("data/calibration")
    texts = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    assert sum(sizes.values()) >= 100_000 and min(sizes.values()) > 8_000
    assert {f"{name}.txt" for name in ("prose", "code", "lists", "french", "german")} < set(sizes)
    turns = sum(map(len, json.loads(texts["dialogue.json"])))
    for template in ("", "{% for m in messages %}<<{{ m.role }}>>{{ m.content }}{% endfor %}"):
        (byte_llama / "chat_template.jinja").write_text(template)
        tokenizer = ModelFiles.open(byte_llama).tokenizer
        ids = list(calibration_text.built_in(tokenizer))
        found = tokenizer.decode(ids)
        marks = found.count("<<user>>") + found.count("<<assistant>>")
        print(f"{len(ids)} bytes, {marks} of {turns} turns marked")
        assert len(ids) > 0.95 * sum(sizes.values()) and marks == (turns if template else 0)
        assert found.count("\ufffd") == 0


def test_where_it_does_not_belong(byte_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(edgelm.UsageError, match="looks at weights alone"):
        edgelm.quantize(byte_llama, tmp_path / "out", method="hqq", calibration="text")
    for call in (edgelm.load, edgelm.plan):
        with pytest.raises(edgelm.UsageError, match=r"only edgelm quantize.*rtn, mse, hqq"):
            call(byte_llama, method="gptq")
    with pytest.raises(edgelm.UsageError, match="allowed: rtn, mse, hqq, gptq"):
        edgelm.quantize(byte_llama, tmp_path / "out", method="awq")


def test_a_damaged_layer_is_named(byte_llama: Path, tmp_path: Path, short_text: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = byte_llama / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.input_layernorm.weight"].fill_(1e38)
    save_file(weights, path)
    with pytest.raises(edgelm.EdgeLMError, match="layer 1 produced NaN"):
        edgelm.quantize(byte_llama, tmp_path / "out", method="gptq", calibration=short_text)
    assert not (tmp_path / "out").exists()


def test_hqq_at_load_is_that_of_a_folder(byte_llama: Path, tmp_path: Path) -> None:
    edgelm.quantize(byte_llama, tmp_path / "out", quant="int4-g32-zfloat", method="hqq")
    ids = torch.arange(3, 90)[None]
    loaded = log_probabilities(byte_llama, ids, quant="int4-g32-zfloat", method="hqq")
    assert torch.equal(loaded, log_probabilities(tmp_path / "out", ids))
    nearest = log_probabilities(byte_llama, ids, quant="int4-g32-zfloat")
    assert not torch.equal(loaded, nearest)


def test_command(byte_llama: Path, tmp_path: Path, capfd: Any) -> None:
    from edgelm.cli.main import main

    text = tmp_path / "text"
    text.write_text("Some words to run through the layers. " * 40)
    command = ["quantize", str(byte_llama), str(tmp_path / "out"), "--method", "gptq"]
    command += ["--calibration", str(text)]
    assert main(command) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("promised peak memory") and "Hessians" in lines[0]
    assert lines[-4] == f"calibrated on 5 x 256 tokens of {text}"
    command[2] += "2"
    assert main([*command, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["calibration"]["text"] == str(text)
    assert read_json(tmp_path / "out2" / "edgelm.json")["method"] == "gptq"
