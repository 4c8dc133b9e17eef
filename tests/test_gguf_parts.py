"""GGUF models in parts, as gguf-split writes them: any part or their folder is the whole model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import write_gguf_model
from test_hub_headers import planned, same
from test_hub_server import Hub, found, resolve, server  # noqa: F401  (a fixture)

import edgelm
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.stamps import file_stamps
from edgelm.models.model_files import ModelFiles

IDS = torch.tensor([[1, 5, 77, 12, 9, 100, 41, 3]])
ROPE = {"rope_type": "default", "rope_theta": 1e4}
VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [f"<{i}>" for i in range(199)],
    "tokenizer.ggml.scores": [0.0] * 199,
    "tokenizer.ggml.token_type": [2, 3, 3] + [4] * 196,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


@pytest.fixture
def model(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama(rope_parameters=ROPE)


def in_parts(model: Path, folder: Path, per_part: int = 8, **split: Any) -> list[Path]:
    """The model in parts of so many tensors (21 in all: three parts)."""
    folder.mkdir(exist_ok=True)
    split["split_max_tensors"] = per_part
    write_gguf_model(model, folder / "m.gguf", Type.Q4_0, VOCABULARY, **split)
    return sorted(folder.iterdir())


def logits(path: Path) -> torch.Tensor:
    with edgelm.load(path, quant="none", dtype="float32", context=64) as lm:
        found = lm.forward(IDS).logits
    assert found is not None
    return found.clone()


@pytest.fixture
def whole(model: Path, tmp_path: Path) -> Path:
    return write_gguf_model(model, tmp_path / "whole.gguf", Type.Q4_0, VOCABULARY)


@pytest.mark.parametrize("first_without_tensors", [False, True])
def test_any_part_is_the_whole_model(
    model: Path, whole: Path, tmp_path: Path, first_without_tensors: bool
) -> None:
    parts = in_parts(model, tmp_path / "parts", small_first_shard=first_without_tensors)
    assert parts[0].name == f"m-00001-of-{len(parts):05d}.gguf"
    expected, one = logits(whole), open_checkpoint(whole)
    for path in (*parts, parts[0].parent):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == parts[0] and checkpoint.config == one.config
        assert checkpoint.metadata == one.metadata
        assert sorted(checkpoint.names()) == sorted(one.names())
        assert all(torch.equal(checkpoint.read(n, 1, 3), one.read(n, 1, 3)) for n in one.names())
    assert torch.equal(logits(parts[-1]), expected)


def test_links_to_parts(model: Path, whole: Path, tmp_path: Path) -> None:
    """A folder of links; a link of another name, and a link to it."""
    parts = in_parts(model, tmp_path / "parts")
    links = tmp_path / "links"
    links.mkdir()
    for number, part in enumerate(parts):
        part.rename(tmp_path / f"blob{number}")
        (links / part.name).symlink_to(f"../blob{number}")
    (tmp_path / "mine.gguf").symlink_to(links / parts[0].name)
    with pytest.raises(edgelm.ModelFileError, match=r"mine\.gguf is one of 3 parts.*not say"):
        open_checkpoint(tmp_path / "mine.gguf")
    assert torch.equal(logits(links / parts[1].name), logits(whole))
    named = in_parts(model, tmp_path / "named")
    (tmp_path / "other.gguf").symlink_to(named[1])
    (tmp_path / "another.gguf").symlink_to("other.gguf")
    assert torch.equal(logits(tmp_path / "another.gguf"), logits(whole))


def test_what_works_with_one_file_works_with_parts(
    model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgelm.cli.main import main

    part = in_parts(model, tmp_path / "parts")[1]
    settings: dict[str, Any] = {"context": 64, "budget": "8GiB"}
    assert edgelm.plan(part, **settings).weight_bytes == edgelm.plan(whole, **settings).weight_bytes
    text, found = tmp_path / "text.txt", []
    text.write_text("<5><6><7> " * 40, encoding="utf-8")
    for path in (whole, part):
        folder, file = tmp_path / f"{path.stem}-int8", tmp_path / f"{path.stem}-int4.gguf"
        edgelm.quantize(path, folder, quant="int8")
        edgelm.quantize(path, file, quant="int4")
        assert main(["inspect", str(path), "--json"]) == 0
        inspected = json.loads(capsys.readouterr().out)
        found.append({
            "folder": logits(folder).tolist(),
            "file": logits(file).tolist(),
            "inspect": (inspected["nbytes"], inspected["tokenizer"]),
            "eval": edgelm.evaluate(path, text=text, window=32).to_dict()["ppl"],
        })  # fmt: skip
    assert found[0] == found[1]


def lose(parts: list[Path]) -> str:
    for part in parts[1:]:
        part.unlink()
    return r"00001-of-00003.* 2 are not here.*00002-of-00003\.gguf is missing.*00003-of-00003\.gguf"


def lead_nowhere(parts: list[Path]) -> str:
    parts[2].unlink()
    parts[2].symlink_to("blob")
    return r"1 are not here.*00003-of-00003\.gguf is a link to .*blob, and no file is there"


def repeat(parts: list[Path]) -> str:
    shutil.copyfile(parts[1], parts[2])
    return r"00003-of-00003\.gguf does not belong.*part 1 \(from 0\) of 3"


def exchange(parts: list[Path]) -> str:
    parts[1].rename(parts[1].parent / "x")
    parts[2].rename(parts[1])
    (parts[1].parent / "x").rename(parts[2])
    return r"00002-of-00003\.gguf does not belong.*part 2 \(from 0\) of 3"


def take_a_whole_model(parts: list[Path]) -> str:
    shutil.copyfile(parts[0].parent.parent / "whole.gguf", parts[2])
    return r"00003-of-00003\.gguf does not belong.*part None \(from 0\) of None"


def edit(key: bytes, where: int, value: int) -> Callable[[list[Path]], None]:
    """Change the number under a key of the part `where`."""

    def change(parts: list[Path]) -> None:
        content = parts[where].read_bytes()
        at = content.index(key) + len(key) + 4
        parts[where].write_bytes(content[:at] + bytes([value]) + content[at + 1 :])

    return change


def count_otherwise(parts: list[Path]) -> str:
    edit(b"split.tensors.count", 2, 77)(parts)
    return r"00003-of-00003\.gguf does not belong.*its split\.tensors\.count"


def count_all_otherwise(parts: list[Path]) -> str:
    for where in range(3):
        edit(b"split.tensors.count", where, 22)(parts)
    return r"split\.tensors\.count is 22, but the 3 parts hold 21 tensors"


def be_of_more(parts: list[Path]) -> str:
    edit(b"split.count", 2, 4)(parts)
    return r"00003-of-00003\.gguf does not belong.*part 2 \(from 0\) of 4"


def hold_the_same(parts: list[Path]) -> str:
    """Tensors of the second part also in the third."""
    shutil.copyfile(parts[1], parts[2])
    edit(b"split.no", 2, 2)(parts)
    return r"00003-of-00003\.gguf does not belong.*another part also holds"


def rename(parts: list[Path]) -> str:
    for number, part in enumerate(parts):
        part.rename(part.with_name(f"part{number}.gguf"))
    shutil.move(parts[0].with_name("part0.gguf"), parts[0].with_name("m.gguf"))
    (parts[0].with_name("part1.gguf")).unlink()
    (parts[0].with_name("part2.gguf")).unlink()
    return r"m\.gguf is one of 3 parts of a model, which its name does not say.*00001-of-00003"


DAMAGES = (
    *(lose, lead_nowhere, repeat, exchange, take_a_whole_model, count_otherwise),
    *(count_all_otherwise, be_of_more, hold_the_same, rename),
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_do_not_belong_together(
    damage: Callable[[list[Path]], str], model: Path, whole: Path, tmp_path: Path
) -> None:
    parts = in_parts(model, tmp_path / "parts")
    assert len(parts) == 3
    words = damage(parts)
    for path in (next(iter(sorted(parts[0].parent.iterdir()))), parts[0].parent):
        with pytest.raises(edgelm.ModelFileError, match=words):
            open_checkpoint(path)


def test_a_folder_of_several_models(model: Path, whole: Path, tmp_path: Path) -> None:
    in_parts(model, tmp_path / "parts")
    one = tmp_path / "parts" / "z.gguf"
    shutil.copyfile(whole, one)
    with pytest.raises(edgelm.ModelFileError, match=r"several models.*m-0000.*z\.gguf.*give the"):
        open_checkpoint(one.parent)
    for part in one.parent.glob("m-*"):
        part.unlink()
    (one.parent / "gone.gguf").symlink_to("/nowhere/x.gguf")
    assert open_checkpoint(one.parent).path == one
    one.unlink()
    with pytest.raises(edgelm.ModelFileError, match=r"gone\.gguf is a link to /nowhere"):
        open_checkpoint(one.parent)


def test_a_folder_with_weights_of_both_kinds(model: Path, whole: Path) -> None:
    shutil.copyfile(whole, model / "m.gguf")
    assert open_checkpoint(model).format == "safetensors"
    (model / "model.safetensors").unlink()
    assert open_checkpoint(model).format == "gguf"


def test_every_part_is_one_of_the_model_s_files(model: Path, tmp_path: Path) -> None:
    """What is kept of a model, and a quantization that resumes, see a change of any part."""
    parts = in_parts(model, tmp_path / "parts")
    before, sha256 = file_stamps(open_checkpoint(parts[0]).files), ModelFiles.open(parts[0]).sha256
    assert [name for name, *_ in before] == [part.name for part in parts]
    content = parts[2].read_bytes()
    parts[2].write_bytes(content[:-4] + b"\x01\x02\x03\x04")
    os.utime(parts[2], (1, 1))
    assert file_stamps(open_checkpoint(parts[0]).files) != before
    assert ModelFiles.open(parts[1]).sha256 != sha256


def test_no_part_stays_open_or_mapped(model: Path, tmp_path: Path) -> None:
    parts = in_parts(model, tmp_path / "parts")
    process = psutil.Process()
    before = process.num_fds()
    checkpoint = open_checkpoint(parts[0])
    _ = [checkpoint.read(name) for name in checkpoint.names()]
    assert process.num_fds() == before
    if hasattr(process, "memory_maps"):
        assert not [m.path for m in process.memory_maps() if str(tmp_path) in m.path]
    parts[1].unlink()
    with pytest.raises(edgelm.ModelFileError, match=rf"{parts[1].name} cannot be read"):
        [checkpoint.read(name) for name in checkpoint.names()]


def test_parts_on_the_hub(server: Hub, model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Naming one of them plans with the headers of all, and fetches all."""
    parts = in_parts(model, tmp_path / "parts")
    server.files = {part.name: part.read_bytes() for part in parts} | {"other.gguf": b"x" * 99}
    reference = f"owner/model/{parts[1].name}"
    there = planned(server, tmp_path / "a", reference)
    same(there, edgelm.plan(parts[0], context=64, budget="8GiB"))
    fetched = Path(resolve(server, tmp_path / "b", reference))
    assert fetched.name == parts[1].name
    assert found(fetched.parent) == {part.name for part in parts}
    assert sorted(open_checkpoint(fetched).names()) == sorted(open_checkpoint(parts[0]).names())
    del server.files[parts[2].name]
    told = planned(server, tmp_path / "c", reference)["error"]
    assert told.startswith(f"ModelFileError: owner/model has no file {parts[2].name}")
