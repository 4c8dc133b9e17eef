"""Folders of every scheme: integers as they were chosen, one number of bits, errors in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_offload import layer_files, machine, tight  # noqa: F401
from test_quantize import ROW_STEP, content, killed_and_resumed, needs_fork, same

import edgelm
from edgelm.budget.placement import streamed_layers
from edgelm.budget.plan import MatrixPlan
from edgelm.checkpoint import canonical_layout, manifest, packed_layout
from edgelm.checkpoint.manifest import MANIFEST, Manifest
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.random_weights import WEIGHT_STD, RandomWeights
from edgelm.engine.loader import Loader
from edgelm.layerstore import layer_folder
from edgelm.models.model_files import ModelFiles
from edgelm.planning.settings import Settings
from edgelm.reports.inspection import inspect_files
from edgelm.reports.verification import verify_folder
from quant import PackedWeight, Recipe, Scheme, native, pack
from quant.methods.rtn import rtn

SCHEMES = (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
    "int4-g16", "int5-row-zint", "int6-g64-zint", "int8-g32-coded", "int4-g32-zint-coded",
    "int6-g128-zfloat-coded-sbfloat16", "int5-g16-coded-sfloat32", "nf4-g32-coded", "fp4",
)  # fmt: skip
WIDE: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 512}
"""Row lengths that all groups divide; those of 512 have two super-scales, the others one."""
MIX = {
    "default": "q4_k",
    "overrides": {"*.v": "q6_k", "*.down": "q6_k", "embed": "q6_k", "head": "q6_k"},
}
"""As Q4_K_M files have it."""
TOLD: dict[str, Any] = {"backend": "reference", "context": 64, "kv": "float32", "chunk": 8}
QUERY = "model.layers.0.self_attn.q_proj.weight"
METHOD = Settings().method
"""What a load chooses, which packs without the library as fast as it can."""


def logits(model: Path, **settings: Any) -> torch.Tensor:
    tokens = torch.randint(3, 150, (2, 9), generator=torch.Generator().manual_seed(3))
    with edgelm.load(model, **(TOLD | settings)) as lm:
        return lm.forward(tokens).logits


@pytest.mark.parametrize("text", SCHEMES)
def test_canonical_layout_round_trip(text: str) -> None:
    """Its specs are what is stored, its bytes those of the scheme, and rows may be cut anywhere."""
    scheme = Scheme.parse(text)
    packed = rtn(torch.randn(21, 512), scheme)
    stored = canonical_layout.to_stored(packed)
    specs = canonical_layout.specs(scheme, (21, 512))
    assert specs == {name: (part.dtype, tuple(part.shape)) for name, part in stored.items()}
    assert sum(part.nbytes for part in stored.values()) == scheme.nbytes((21, 512))
    cut = {name: part[ROW_STEP:13] for name, part in stored.items()}
    same(canonical_layout.from_stored(cut, scheme), packed.rows(ROW_STEP, 13))


@pytest.mark.parametrize("text", SCHEMES)
def test_a_folder_holds_what_was_chosen(
    tiny_llama: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    source, out = tiny_llama(**WIDE), tmp_path / "out"
    done = edgelm.quantize(source, out, quant=text, method=METHOD)
    assert verify_folder(out).same
    found, original = open_checkpoint(out), open_checkpoint(source)
    scheme = Scheme.parse(text)
    for name in done.manifest.modules:
        rows = original.read(name)
        chosen, _ = pack([(0, rows)], (rows.shape[0], rows.shape[1]), scheme, METHOD)
        same(found.read_packed(name), chosen)
        same(found.read_packed(name, 9, 30), chosen.rows(9, 30))
    assert torch.equal(logits(out), logits(source, quant=text))


@pytest.mark.parametrize("quant", ["int4", "int5", "int6", "nf4", "int4-g32", "q5_k", MIX], ids=str)
def test_bits_per_weight_are_one_number(
    tiny_llama: Callable[..., Path], tmp_path: Path, quant: Any
) -> None:
    """Of the files, of the folder's own words, of plans before and after, and of what was loaded;
    whatever a kernel adds (vocabularies of 199 rows fill no panel) and however norms are held."""
    source, out = tiny_llama(**WIDE, dtype=torch.bfloat16), tmp_path / "out"
    told = edgelm.quantize(source, out, quant=quant).manifest.bits_per_weight
    backend = "reference" if native.missing() else "auto"  # torch's kernels take other schemes
    before = edgelm.plan(source, quant=quant, backend=backend)
    found = inspect_files(ModelFiles.open(out))
    with edgelm.load(out, backend="reference") as lm:
        bits = [before.bits_per_weight, lm.plan.bits_per_weight, lm.report.bits_per_weight]
    print(f"{quant}: {told:.4f} bits, {bits}")
    assert bits == pytest.approx([told] * 3) and found.bits_per_weight == pytest.approx(told)
    assert f"| bits per weight | {told:.2f} |" in (out / "README.md").read_text("utf-8")
    if json.loads((out / MANIFEST).read_text())["format_version"] == 2:
        assert found.nbytes * 8 / found.parameters == pytest.approx(told)


def test_scales_take_16_bits(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """Also where transformers dequantizes, which multiplies in their type."""
    edgelm.quantize(tiny_llama(), tmp_path / "out", quant="int4-g32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["dequantize"] is True
    weights = load_file(tmp_path / "out" / "model.safetensors")
    scales = {w.dtype for name, w in weights.items() if name.endswith("weight_scale")}
    assert scales == {torch.float16}


MIXED_TABLES = {"default": "int4-g32", "overrides": {"embed": "int8", "head": "int8"}}


@pytest.mark.parametrize("quant", ["int4", "nf4", "q4_k", "int5", MIXED_TABLES])
def test_transformers_refuses_in_words(
    tiny_llama: Callable[..., Path], tmp_path: Path, quant: Any
) -> None:
    """Before, it filled the matrices with random numbers, or raised an AttributeError."""
    transformers = pytest.importorskip("transformers", minversion="5")
    done = edgelm.quantize(tiny_llama(**WIDE), tmp_path / "out", quant=quant)
    assert done.peer_note.startswith("transformers cannot load it: ")
    assert done.peer_note in (tmp_path / "out" / "README.md").read_text("utf-8")
    for model in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
        with pytest.raises(ValueError, match="opens in edgelm only; its README"):
            model.from_pretrained(tmp_path / "out")
    header = (tmp_path / "out" / "model.safetensors").read_bytes()[8:].partition(b"}")[0]
    assert json.loads(header + b"}}")["__metadata__"] == {"format": "edgelm"}  # transformers 4


def test_other_engines_own_layouts_stay(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """What compressed-tensors or bitsandbytes can express is of version 1, and named theirs."""
    source = tiny_llama(**WIDE, transformers_weights="other.safetensors")
    floats = {"embed": "none", "head": "none"}
    for number, (quant, method) in enumerate((
        ("int4-g32", "compressed-tensors"),
        ("int8-zint", "compressed-tensors"),
        ({"default": "int4-g32", "overrides": floats | {"*.down": "int8"}}, "compressed-tensors"),
        ({"default": "nf4", "overrides": floats}, "bitsandbytes"),
        ("int4-g16", "edgelm"),
        ({"default": "int4-g32-zint", "overrides": floats | {"*.down": "int8"}}, "edgelm"),
    )):  # fmt: skip
        out = tmp_path / f"out-{number}"
        done = edgelm.quantize(source, out, quant=quant)
        config = json.loads((out / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == method
        assert done.manifest.format_version == (2 if method == "edgelm" else 1)
        assert ("transformers_weights" in config) == (method == "edgelm")
        opener = "nothing else" if method == "edgelm" else f"where {method} is installed"
        assert opener in (out / "README.md").read_text("utf-8")


def test_an_older_edgelm_refuses_by_version(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a manifest of version 1 holds only what that version had."""
    edgelm.quantize(tiny_llama(**WIDE), tmp_path / "out", quant="q4_k")
    path = tmp_path / "out" / MANIFEST
    with monkeypatch.context() as older:
        older.setattr(manifest, "FORMAT_VERSION", 1)
        with pytest.raises(edgelm.UnsupportedModelError, match=r"format version 2; .* up to 1"):
            Manifest.read(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(edgelm.ModelFileError, match="version 1 hold no int4-g32-zfloat-coded"):
        open_checkpoint(tmp_path / "out")
    assert not any(packed_layout.expresses(Scheme.parse(s)) for s in ("q5_0", "iq4_nl", "int4-g16"))


@pytest.mark.parametrize(
    ("part", "number", "words"),
    [
        ("supers", float("nan"), "its super-scales hold NaN or infinite numbers"),
        ("supers", float("inf"), "its super-scales hold NaN or infinite numbers"),
        ("scales", float("-inf"), "its scales hold NaN or infinite numbers"),
        ("zeros", float("nan"), "its minima hold NaN or infinite numbers"),
        ("zeros", 32, "its zeros go up to 32, and codes to 31"),
    ],
)
def test_damaged_numbers_are_refused_by_name(
    tiny_llama: Callable[..., Path], tmp_path: Path, part: str, number: float, words: str
) -> None:
    """By loading and by copying into a new folder, in which they would pass for sound."""
    quant = {"supers": "q4_k", "scales": "int5-g32", "zeros": "int5-g32-zfloat"}[part]
    quant = "int5-g32-zint" if number == 32 else quant
    edgelm.quantize(tiny_llama(**WIDE), tmp_path / "out", quant=quant)
    path = tmp_path / "out" / "model.safetensors"
    weights = load_file(path)
    weights[QUERY.removesuffix("weight") + part].view(-1)[3] = number
    save_file(weights, path)
    for use in (edgelm.load, lambda folder: edgelm.quantize(folder, tmp_path / "new")):
        with pytest.raises(edgelm.ModelFileError, match=f"tensor {QUERY}: {words}"):
            use(tmp_path / "out")


def test_parts_of_other_shapes_are_refused(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:  # fmt: skip
    edgelm.quantize(tiny_llama(**WIDE), tmp_path / "out", quant="q4_k")
    path = tmp_path / "out" / "model.safetensors"
    weights, stem = load_file(path), QUERY.removesuffix("weight")
    for part, change in (
        ("supers", lambda t: t[:, :, :1]), ("supers", torch.Tensor.float), ("scales", None),
        ("zeros", lambda t: t.view(torch.uint8)), ("qweight", lambda t: t[:, :-1]),
    ):  # fmt: skip
        changed = dict(weights)
        own = changed.pop(stem + part)
        if change is not None:
            changed[stem + part] = change(own).contiguous()
        save_file(changed, path)
        with pytest.raises(edgelm.ModelFileError, match=f"{stem}{part}".replace(".", r"\.")):
            open_checkpoint(tmp_path / "out")


@needs_fork
def test_kill_and_resume(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    points = [1, 30, 64, 90]
    assert killed_and_resumed(tiny_llama(**WIDE), tmp_path, points, "q4_k") == len(points)


@pytest.mark.parametrize("quant", ["q5_k", "q6_k", "iq4_xs"])
def test_kept_and_streamed_layouts(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    """A second start maps super-scales too, and layers streamed from disk bring theirs."""
    monkeypatch.setattr(layer_folder, "PAYS_BYTES", 0)
    monkeypatch.setattr(layer_folder, "_FREE_SHARE", 10**6)
    source = tiny_llama(**WIDE, num_hidden_layers=4)
    first = logits(source, quant=quant)
    assert len(layer_files(tmp_path / "cache")) == 6
    packed: list[str] = []
    pack_one = Loader._pack

    def counted(self: Loader, product: MatrixPlan, *given: Any) -> PackedWeight:
        packed.append(product.names[0])
        return pack_one(self, product, *given)

    monkeypatch.setattr(Loader, "_pack", counted)
    assert torch.equal(logits(source, quant=quant), first)
    assert not packed
    edgelm.quantize(source, tmp_path / "out", quant=quant, method=METHOD)
    assert torch.equal(logits(tmp_path / "out"), first)
    streamed = tight(source, **TOLD, quant=quant)
    assert streamed_layers(edgelm.plan(source, **streamed))
    assert torch.equal(logits(source, **streamed), first)


@pytest.mark.parametrize("text", SCHEMES)
def test_random_weights_have_their_deviation(text: str) -> None:
    weights = RandomWeights("r", {}, {"x.weight": ((64, 512), Scheme.parse(text))})
    values = weights.read("x.weight")
    print(f"{text}: {float(values.std()):.4f}, mean {float(values.mean()):.5f}")
    assert float(values.std()) == pytest.approx(WEIGHT_STD, rel=0.08)
    assert abs(float(values.mean())) < 0.12 * WEIGHT_STD


def test_what_is_quantized_stays_by_default(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """A mix as in Q4_K_M files is kept by a load and by ``quantize``, to the last byte."""
    edgelm.quantize(tiny_llama(**WIDE), tmp_path / "mix", quant=MIX)
    with edgelm.load(tmp_path / "mix", backend="reference") as lm:
        assert all(product.stored for product in lm.plan.products)
        assert {p.scheme for p in lm.plan.products} == {"int4-g32-zfloat-coded", "int6-g16-coded"}
    again = edgelm.quantize(tmp_path / "mix", tmp_path / "again")
    assert str(again.manifest.recipe["name"]) == "auto"
    assert {m.note for m in again.manifest.modules.values()} == {"kept as stored"}
    assert (
        content(tmp_path / "again")["model.safetensors"]
        == content(tmp_path / "mix")["model.safetensors"]
    )
    smaller = edgelm.quantize(tmp_path / "mix", tmp_path / "smaller", quant="int4")
    notes = {m.parts[0]: m.note for m in smaller.manifest.modules.values()}
    assert notes["layers.0.attn.q"] == notes["embed"] == "kept as stored"
    assert notes["layers.0.mlp.down"].startswith("requantized")


def test_recipes_accept_what_their_bits_allow() -> None:
    int4, int5 = Recipe.parse("int4"), Recipe.parse("int5")
    name = "layers.0.attn.q"
    assert all(int4.accepts(name, Scheme.parse(s)) for s in ("q4_k", "iq4_xs", "iq4_nl", "q4_1"))
    assert not any(int4.accepts(name, Scheme.parse(s)) for s in ("q5_k", "q6_k", "nf4"))
    assert all(int5.accepts(name, Scheme.parse(s)) for s in ("q4_k", "q5_k", "iq4_xs"))
    assert not int5.accepts(name, Scheme.parse("q6_k"))
    assert int5.accepts("embed", Scheme.parse("q6_k"))
    assert not Recipe.parse("int5-g32").accepts(name, Scheme.parse("q4_k"))


def test_a_fallback_is_said(
    tiny_llama: Callable[..., Path], tmp_path: Path, capfd: Any
) -> None:  # fmt: skip
    """Rows that no group of the rule's first scheme divides: in plan, report, folder, terminal."""
    from edgelm.cli.main import main

    source = tiny_llama(intermediate_size=72)
    note = "int8, because rows of 72 weights cannot be int5-g32-coded"
    assert f"2 matrices in {note}" in str(edgelm.plan(source, quant="int5"))
    with edgelm.load(source, quant="int5", backend="reference") as lm:
        assert {m.name for m in lm.report.modules if m.note == note} == {
            "layers.0.mlp.down", "layers.1.mlp.down",
        }  # fmt: skip
    assert main(["quantize", str(source), str(tmp_path / "out"), "--quant", "int5"]) == 0
    assert f"2 matrices: {note}" in " ".join(capfd.readouterr().out.split())
    assert note in (tmp_path / "out" / "README.md").read_text("utf-8")
    with pytest.raises(edgelm.UsageError) as refused:
        edgelm.plan(source, quant="int7")
    for word in ("int5", "int6", "-coded", "q4_k", "iq4_xs", "int5-g"):
        assert word in str(refused.value) or word == "int5-g"


def test_the_readme_of_a_folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """What it is, how it was made, what opens it; nobody's paths, and the original card beside."""
    source = tiny_llama(**WIDE)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\nMine.\n", "utf-8")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(MIX), "utf-8")
    edgelm.quantize(source, tmp_path / "out", quant=str(recipe), method="mse")
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    for line in (
        "license: apache-2.0", f"# {source.name}, quantized", "| licence | apache-2.0 |",
        "| method | mse |", "edgelm quantize MODEL OUT --quant RECIPE.json --method mse",
        '"*.down": [', "- nothing else: transformers cannot load it", "folder format 2 |",
    ):  # fmt: skip
        assert line in text, text
    assert str(tmp_path) not in text
    assert (tmp_path / "out" / "README-source.md").read_text("utf-8").endswith("Mine.\n")
    edgelm.quantize(tmp_path / "out", tmp_path / "again")
    again = (tmp_path / "again" / "README-source.md").read_text("utf-8")
    assert again.endswith("Mine.\n") and "license: apache-2.0" in again
    shutil.rmtree(tmp_path / "again")


def test_packed_weights_tell_damage() -> None:
    """An empty block of rows is sound, as are codes of scales of any sign."""
    packed = rtn(torch.randn(4, 64), Scheme.parse("q6_k"))
    packed.scales = torch.full_like(packed.grid.scales, -128)
    packed.check()
    PackedWeight.empty((1, 64), Scheme.parse("int4-g32-zint")).rows(0, 0).check()
