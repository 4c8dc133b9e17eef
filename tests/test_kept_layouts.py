"""Kept layouts are what was written, of these weights, by this user; anything else is not used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from test_offload import SETTINGS, layer_files, tight
from test_second_start import answer, assert_same, machine, nano, packed  # noqa: F401

import edgelm
from edgelm.budget.placement import file_groups
from edgelm.checkpoint import stamps
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.checkpoint.stamps import file_stamps
from edgelm.layerstore import layer_folder
from edgelm.layerstore.block_sums import BLOCK_BYTES, block_sums
from edgelm.layerstore.layer_file import _MAGIC, _TAIL, LayerFile
from edgelm.layerstore.layer_table import DamagedLayerError, LayerTable

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
Change = Callable[[bytearray], None]


def zeros(start: float, count: int) -> Change:
    def damage(data: bytearray) -> None:
        begin = int(start * len(data))
        data[begin : begin + count] = bytes(count)

    return damage


def swapped(data: bytearray) -> None:
    """Two pages in each other's places."""
    data[4096:8192], data[8192:12288] = data[8192:12288], data[4096:8192]


@pytest.mark.parametrize(
    "damage", [zeros(0.0, 30_000), zeros(0.5, 4096), zeros(0.3, 600), swapped],
    ids=["beginning", "a page", "a sector", "two pages"],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True], ids=["mapped", "streamed"])
def test_damaged_weights_are_made_again(
    machine: Path, nano: Path, packed: list[str], damage: Change, streamed: bool,  # noqa: F811
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings: dict[str, Any] = {}
    if streamed:
        monkeypatch.setattr("edgelm.machine.hardware.resident_bytes", lambda: 300 << 20)
        (machine / "disk.json").write_text('{"read_gb_s": 0.001}')
        settings = tight(nano, 0.5, **SETTINGS)
    first = answer(nano, **settings)
    (target,) = machine.rglob("layers.3.layer")
    before = target.read_bytes()
    data = bytearray(before)
    damage(data)
    target.unlink()  # files are never shortened in place
    target.write_bytes(data)
    packed.clear()
    found = answer(nano, **settings)
    assert (found[0] == first[0]).all() and found[2] == first[2]
    assert f"{target} is damaged" in caplog.text and target.read_bytes() == before
    assert packed and all(name.startswith("layers.3.") for name in packed)


@pytest.mark.parametrize("size", [1, 7, 8, 4096, BLOCK_BYTES, BLOCK_BYTES + 3])
def test_every_byte_counts(size: int) -> None:
    data = bytes(range(1, 252)) * (size // 251 + 1)
    data = data[:size]
    sums = block_sums(memoryview(data))
    assert len(sums) == -(-size // BLOCK_BYTES)
    for place in {0, size // 2, size - 2, size - 1} & {*range(size)}:
        changed = bytearray(data)
        changed[place] ^= 0x80
        assert block_sums(memoryview(changed)) != sums, place
    assert block_sums(memoryview(bytes(size))) != sums


@pytest.fixture
def model(tmp_path: Path, nano: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(nano, tmp_path / "model"))


def other(weights: Path) -> bytes:
    data = bytearray(weights.read_bytes())
    data[-100_000:] = data[-200_000:-100_000]
    return bytes(data)


def replaced(weights: Path) -> None:
    beside = weights.with_name("new")
    beside.write_bytes(other(weights))
    beside.replace(weights)


def written_over(weights: Path) -> None:
    data = other(weights)
    with weights.open("r+b") as file:
        file.write(data)


@pytest.mark.parametrize("change", [replaced, written_over])
def test_a_model_of_the_same_size_and_time_is_another(
    model: Path, change: Callable[[Path], None]
) -> None:
    first = answer(model)
    weights = model / "model.safetensors"
    stat = weights.stat()
    change(weights)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    found = answer(model)
    shutil.rmtree(Path(os.environ["EDGELM_CACHE"]))
    assert_same(found, answer(model))
    assert not (found[0] == first[0]).all()


@pytest.mark.parametrize("where", [0, 3_000_000, -1], ids=["first", "any", "last"])
def test_samples_tell_what_no_time_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    """On a file system that has neither inodes nor times of change."""
    path = tmp_path / "file"
    path.write_bytes(bytes(5_000_000))
    unchanged = path.stat()
    monkeypatch.setattr(os, "fstat", lambda _: unchanged)
    before = file_stamps([path])
    data = bytearray(5_000_000)
    place = sorted(stamps._offsets(len(data)))[5] if where == 3_000_000 else where
    data[place] = 1
    path.write_bytes(data)
    assert file_stamps([path]) != before


def test_only_files_that_are_read_decide(
    model: Path, packed: list[str], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """Not what lies beside them, nor where they lie."""
    first = answer(model)
    packed.clear()
    (model / "README.md").write_text("About this model.")
    (model / "more").mkdir()
    (model / "gone").symlink_to(tmp_path / "nowhere")
    for path in model.glob("*.json"):
        os.utime(path)
    assert_same(answer(model), first)
    model = model.rename(tmp_path / "elsewhere")
    assert_same(answer(model), first)
    assert packed == []


def test_settings_beside_the_weights_decide(model: Path) -> None:
    """Files that say how weights are stored are read with them."""
    weights = model / "model.safetensors"
    assert open_checkpoint(model).files == [weights]
    index = model / "model.safetensors.index.json"
    names = open_checkpoint(model).names()
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "shard.safetensors")}))
    shard = weights.rename(model / "shard.safetensors")
    assert open_checkpoint(model).files == [index, shard]
    edgelm.quantize(model, out := model.with_name("int4"), quant="int4")
    assert {out / "edgelm.json", out / "model.safetensors"} <= {*open_checkpoint(out).files}


def rewrite(path: Path, lie: Callable[[dict[str, Any]], None]) -> None:
    """The same file with a table that lies, and says so with a right checksum."""
    data = path.read_bytes()
    length, _, _ = _TAIL.unpack(data[-_TAIL.size :])
    image, text = data[: -_TAIL.size - length], data[-_TAIL.size - length : -_TAIL.size]
    table = json.loads(text)
    lie(table)
    text = json.dumps(table).encode()
    path.unlink()
    path.write_bytes(image + text + _TAIL.pack(len(text), crc32(text), _MAGIC))
    path.chmod(0o600)


NAME, DTYPE, SHAPE, OFFSET, SUMS = range(5)


def tensors(table: dict[str, Any]) -> list[list[Any]]:
    return [own for product in table["products"].values() for own in product["tensors"]]


def lie(field: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(table: dict[str, Any]) -> None:
        own = tensors(table)[1]
        own[field] = value(own[field]) if callable(value) else value

    return change


def less(table: dict[str, Any]) -> None:
    table["products"].popitem()


LIES = {
    "a shape": lie(SHAPE, lambda shape: [shape[0] // 2, *shape[1:]]),
    "a larger shape": lie(SHAPE, lambda shape: [shape[0] * 10**9, *shape[1:]]),
    "a negative shape": lie(SHAPE, [-1, -64]),
    "a type": lie(DTYPE, lambda kind: "uint8" if kind == "int8" else "int8"),
    "no type": lie(DTYPE, "nn"),
    "a name": lie(NAME, "other"),
    "beyond the end": lie(OFFSET, lambda offset: offset + (1 << 40)),
    "before the beginning": lie(OFFSET, -64),
    "not aligned": lie(OFFSET, lambda offset: offset + 1),
    "another tensor's place": lie(OFFSET, 0),
    "a place that is no number": lie(OFFSET, True),
    "a fraction": lie(OFFSET, 64.0),
    "no sums": lie(SUMS, []),
    "a sum too many": lie(SUMS, lambda sums: [*sums, 0]),
    "a matrix less": less,
    "no tensors": lambda table: table.update(products={}),
    "a list": lambda table: table.update(products=[]),
    "null": lambda table: table.update(products=None),
    "another size": lambda table: table.update(image_bytes=table["image_bytes"] - 64),
    "a part's name": lambda table: next(iter(table["products"].values()))["modules"].clear(),
    "a scheme": lambda table: next(iter(table["products"].values()))["modules"][0].update(
        scheme="int3"
    ),
}


@pytest.fixture(scope="module")
def kept(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, edgelm.Plan]:
    """A layer's file, and the plan that it belongs to."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGELM_CACHE", str(cache))
        patched.setattr(layer_folder, "PAYS_BYTES", 0)
        patched.setattr(layer_folder, "_FREE_SHARE", 10**6)
        with edgelm.load(assets / "nano" / "llama", backend="reference", **SETTINGS) as lm:
            return next(cache.rglob("layers.2.layer")), lm.plan


@pytest.mark.parametrize("told", LIES)
def test_a_table_that_lies_is_refused(
    kept: tuple[Path, edgelm.Plan], tmp_path: Path, told: str
) -> None:
    path, plan = kept
    products = file_groups(plan.products)["layers.2"]
    copy = Path(shutil.copy(path, tmp_path / path.name))
    copy.chmod(0o600)

    def checked() -> LayerTable:
        table = LayerFile(copy).table
        table.check_against(products)
        return table

    assert len(checked().products) == len(products)
    rewrite(copy, LIES[told])
    with pytest.raises(DamagedLayerError):
        checked()


def test_what_is_refused_is_laid_out_again(
    machine: Path, nano: Path, packed: list[str], caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    settings = {"backend": "reference"}
    first = answer(nano, **settings)
    (target,) = machine.rglob("layers.3.layer")
    before = target.read_bytes()
    rewrite(target, LIES["a shape"])
    packed.clear()
    assert_same(answer(nano, **settings), first)
    assert f"{target} is damaged" in caplog.text and target.read_bytes() == before and packed


@posix
@pytest.mark.parametrize("what", ["file", "folder", "folder of all"])
def test_what_others_may_write_is_not_used(
    machine: Path, nano: Path, packed: list[str], what: str,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = answer(nano)
    (target,) = machine.rglob("layers.3.layer")
    path = {"file": target, "folder": target.parent, "folder of all": target.parent.parent}[what]
    path.chmod(0o777)
    count = len(packed)
    packed.clear()
    assert_same(answer(nano), first)
    assert f"{path} is" in caplog.text and "other users may write to it" in caplog.text
    assert path.stat().st_mode & 0o777 == (0o600 if what == "file" else 0o700)
    assert 0 < len(packed) < count if what == "file" else len(packed) == count
    packed.clear()
    assert_same(answer(nano), first)
    assert packed == []


@posix
def test_another_users_layouts_are_not_used(
    machine: Path, nano: Path, packed: list[str], caplog: pytest.LogCaptureFixture,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("edgelm.machine.hardware.resident_bytes", lambda: 300 << 20)
    (machine / "disk.json").write_text('{"read_gb_s": 0.001}')
    first = answer(nano)
    files = {path: path.stat().st_mtime_ns for path in layer_files(machine)}
    count = len(packed)
    packed.clear()
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert_same(answer(nano), first)
    assert len(packed) == count and "it belongs to another user" in caplog.text
    with pytest.raises(edgelm.EdgeLMError, match=r"another user.*EDGELM_CACHE"):
        answer(nano, **tight(nano, 0.8, **SETTINGS))
    assert {path: path.stat().st_mtime_ns for path in layer_files(machine)} == files


@posix
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o277])
def test_the_cache_is_its_owners_alone(
    machine: Path, nano: Path, umask: int, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    from edgelm.machine import disk
    from edgelm.planning import kernel_choice

    cache = machine / "new" / "folder"
    monkeypatch.setenv("EDGELM_CACHE", str(cache))
    monkeypatch.setattr(disk, "_PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(disk, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(kernel_choice, "MEASURED_SCHEMES", ("int8",))
    before = os.umask(umask)
    try:
        disk.measure_once(cache)
        kernel_choice.measure(cache)
        with edgelm.load(nano, **SETTINGS) as lm:
            from edgelm.budget import past_runs

            past_runs.record(cache, "m", lm.plan, lm.plan.predicted_peak_bytes)
    finally:
        os.umask(before)
    found = {path: path.stat().st_mode & 0o777 for path in (cache.parent, cache, *cache.rglob("*"))}
    expected = {path: 0o700 if path.is_dir() else 0o600 for path in found}
    assert found == expected and len(layer_files(cache)) > 3
    assert {path.name for path in cache.iterdir()} >= {"layers", "disk.json", "kernels.json"}
