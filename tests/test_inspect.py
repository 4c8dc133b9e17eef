"""`edgelm inspect` for every format: facts from headers, and what loading would convert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracle import family

import edgelm
from edgelm.checkpoint.rows import fill
from edgelm.cli.main import main
from edgelm.models.model_files import ModelFiles
from edgelm.reports.inspection import Inspection, inspect_files

Maker = Callable[[Path], Path]


def llama(tmp_path: Path) -> Path:
    return family("llama", tmp_path / "safe", hidden_size=96, intermediate_size=160)[1]


def ours(tmp_path: Path) -> Path:
    edgelm.quantize(llama(tmp_path), tmp_path / "ours", quant="int8")
    return tmp_path / "ours"


def pickled(tmp_path: Path) -> Path:
    import test_other_files

    return test_other_files.pickled(llama(tmp_path), tmp_path / "bin")


def flax(tmp_path: Path) -> Path:
    pytest.importorskip("msgpack")
    import test_other_files

    return test_other_files.flax_folder(family("bloom", tmp_path / "safe")[1], tmp_path / "flax")


def packed(kind: str) -> Maker:
    def make(tmp_path: Path) -> Path:
        for library in ("compressed_tensors", "bitsandbytes"):
            pytest.importorskip(library)
        import packed_folders

        found = next(v for v in packed_folders.VARIANTS if v.name.startswith(kind))
        return found.write(tmp_path)[0]

    return make


FLOATS = {("float32", "int8")}  # fits, and is as accurate as the floats
# format -> how it is made, matrices kept as stored, (stored, in memory) of the others
FORMATS: dict[str, tuple[Maker, bool, set[tuple[str, str]]]] = {
    "safetensors": (llama, False, FLOATS),
    "edgelm": (ours, True, set()),
    "pickle": (pickled, False, FLOATS),
    "flax": (flax, False, FLOATS),
    "gptq": (packed("gptq"), True, set()),
    "awq": (packed("awq"), True, set()),
    "compressed-tensors": (packed("compressed"), True, set()),
    "bitsandbytes": (packed("bnb-nf4"), True, set()),
}


def inspected(path: Path) -> Inspection:
    return inspect_files(ModelFiles.open(path, allow_pickle=True))


@pytest.mark.parametrize("name", FORMATS)
def test_what_loading_would_convert(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As load does it: the plan's kept products and the rest, by the file's types."""
    make, keeps, expected = FORMATS[name]
    path = make(tmp_path)
    found = inspected(path)
    pairs = {(change.stored, change.loaded) for change in found.loading.changes}
    print(f"{name}: {found.bits_per_weight:.2f} bits, kept {found.loading.kept}, {pairs}")
    assert found.format == name and found.loading.error is None
    assert (found.loading.kept > 0) is keeps and pairs == expected
    names = {tensor.name for tensor in found.tensors}
    assert all(set(change.names) <= names for change in found.loading.changes)
    with edgelm.load(path, allow_pickle=True, context=16) as lm:
        kept = sum(len(product.names) for product in lm.plan.products if product.stored)
    assert found.loading.kept == kept
    if keeps:  # the same as a plan's, without the shapes and orders that are stored beside
        assert found.bits_per_weight == lm.plan.bits_per_weight
    else:
        assert found.bits_per_weight == found.nbytes * 8 / found.parameters
    assert (found.certificate is not None) is (name == "edgelm")
    assert found.limits["context"] > 0 and found.limits["vocabulary"] > 0
    assert main_output(path, capsys)["format"] == name


def main_output(path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command's JSON document, after its table was shown too."""
    monkeypatch = pytest.MonkeyPatch()
    documents = []
    with monkeypatch.context() as patched:
        for words in (["-v"], ["--json"]):
            given = ["edgelm", "inspect", str(path), "--allow-pickle", *words]
            patched.setattr("sys.argv", given)
            capsys.readouterr()
            assert main() == 0
            documents.append(capsys.readouterr().out)
    assert "bits per weight" in documents[0] and "loading keeps" in documents[0]
    return json.loads(documents[1])


def test_gguf_blocks_are_kept_and_floats_are_not(assets: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, bool]] = [("int8", True), ("none", False)]
    for quant, kept in cases:
        out = tmp_path / f"{quant}.gguf"
        edgelm.quantize(assets / "nano" / "llama", out, quant=quant)
        found = inspected(out)
        print(quant, found.loading.kept, [(c.stored, c.loaded) for c in found.loading.changes])
        assert found.format == "gguf" and found.certificate is not None
        assert (found.loading.kept > 0, bool(found.loading.changes)) == (kept, not kept)


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = llama(tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("edgelm.checkpoint.stored.fill", refuse)
    assert fill is not refuse and inspected(path).loading.changes


def test_limits_and_accuracy(assets: Path, tmp_path: Path) -> None:
    gemma = inspected(assets / "nano" / "gemma2").limits
    print(gemma)
    assert gemma["windows"] and gemma["not_in_float16"] and gemma["rope"] == "default"
    bloom = inspected(assets / "nano" / "bloom").limits
    assert bloom["beyond_context"] and bloom["rope"] is None and not bloom["windows"]
    told = inspected(ours(tmp_path)).certificate
    assert told and told["method"] == "mse"
    assert 30 < told["lowest_error_db"] <= told["mean_error_db"] < 60


def test_files_that_cannot_be_loaded_are_still_shown(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    found = inspected(folder)
    assert found.parameters > 0 and found.loading.error and "no tensor" in found.loading.error
