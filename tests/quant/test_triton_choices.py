"""Which config runs: usual ones, measured ones in their file, and why the backend may decline."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import quant.triton
from quant import (
    KernelUnavailableError,
    PackedWeight,
    QuantError,
    Scheme,
    choose,
    dequantize,
    find,
)
from quant.triton import choices, configs, launch, layout, tuning, workspace
from quant.triton.configs import Config

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
INT4 = Scheme.parse("int4-g32")
OWN = layout.geometry(INT4, 192)
CASE = tuning.Case(INT4, (16, 192), 1, torch.float32)
MANY = tuning.Case(INT4, (16, 192), 40, torch.float32)


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "_CHOSEN", {})
    monkeypatch.setattr(choices, "card", lambda device: "card A")


@pytest.mark.parametrize("outputs", [576, 2048, 4096, 28672, 128256])
@pytest.mark.parametrize("rows", [1, 8, 9, 64, 127, 128, 2048])
def test_configs_are_sound_and_stay_within_the_workspace(outputs: int, rows: int) -> None:
    for text, inputs in (
        ("int4-g64", 576),
        ("int4-g32", 4096),
        ("int8", 14336),
        ("int4-row", 2048),
        ("int6-g16-coded", 4096),
    ):
        own = layout.geometry(Scheme.parse(text), inputs)
        words, found = own.words, list(configs.candidates(own, outputs, rows, 132))
        assert found[0] == configs.usual(own, outputs, rows, 132)
        assert len(set(found)) == len(found)
        for config in found:
            assert choices._is_config(asdict(config)), config
            needed = configs.split_bytes(config, outputs, rows)
            assert needed <= configs.most_split_bytes(outputs, rows), config
            assert config.splits * config.block_words < words + config.block_words * config.splits
            if config.how == "rows":  # every thread has whole outputs
                assert config.block_n * config.block_words >= 128 * config.warps, config
    shape = (outputs, 4096)
    assert configs.most_split_bytes(outputs, rows) <= launch.workspace_bytes(shape, rows)


def test_choices_survive_in_a_file_beside_those_of_other_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config("rows", 1, 4, 128, 2, 1, 2)
    choices.choose(CASE.key, config)
    choices.keep(tmp_path, CUDA)
    monkeypatch.setattr(choices, "card", lambda device: "card B")
    monkeypatch.setattr(choices, "_CHOSEN", {})
    assert choices.use(tmp_path, CUDA) == 0
    choices.choose(CASE.key, Config("unpack"))
    choices.keep(tmp_path, CUDA)
    monkeypatch.setattr(choices, "card", lambda device: "card A")
    assert choices.use(tmp_path, CUDA) == 1
    assert launch.config_for(INT4, CASE.shape, 8, torch.float32, CPU) == config
    assert [path.name for path in tmp_path.iterdir()] == [choices.FILE]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"card A": 1}',
        '{"card A": {"k": {"how": "rows"}}}',
        json.dumps({"card A": {CASE.key: asdict(Config("rows", block_n=3))}}),
        json.dumps({"card A": {CASE.key: asdict(Config("rows", warps=0))}}),
        json.dumps({"card A": {CASE.key: asdict(Config("cat"))}}),
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / choices.FILE).write_text(text)
    with caplog.at_level(logging.WARNING, "quant"):
        assert choices.use(tmp_path, CUDA) == 0
    assert "ignored" in caplog.text and str(tmp_path) in caplog.text
    choices.choose(CASE.key, Config("unpack"))
    choices.keep(tmp_path, CUDA)
    assert choices.use(tmp_path, CUDA) == 1


def test_the_fastest_config_is_kept_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed; pip install 'edgelm[gpu]'")
    from triton.runtime.errors import OutOfResources

    wanted, ran = list(configs.candidates(OWN, 16, 40, 1))[1], []
    first = configs.usual(OWN, 16, 40, 1)

    def run(config: Config, *rest: object) -> None:
        ran.append(config)
        if config == first:
            raise OutOfResources(2, 1, "shared memory")

    def clock(work: Callable[[], None]) -> float:
        work()
        return 1.0 if ran[-1] == wanted else 2.0

    monkeypatch.setattr(launch, "run", run)
    monkeypatch.setattr(tuning, "device_clock", lambda device: clock)
    assert tuning.tune([MANY, MANY], tmp_path, CPU) == 1
    assert len(ran) == len(set(ran)) > 2
    assert choices.chosen(MANY.key) == wanted
    monkeypatch.setattr(choices, "_CHOSEN", {})
    assert tuning.tune([MANY], tmp_path, CPU) == 0
    assert choices.chosen(MANY.key) == wanted


@pytest.mark.parametrize("text", ["int4-g32-zfloat-coded", "int6-g16-coded", "int8-zint"])
def test_a_matrix_for_timings_has_finite_numbers(text: str) -> None:
    packed = tuning.random(Scheme.parse(text), (8, 512), CPU)
    numbers = [t for t in (packed.scales, packed.supers) if t is not None and t.is_floating_point()]
    assert len(numbers) == 1 and bool((numbers[0] == numbers[0].flatten()[0]).all())
    assert 0.009 < float(numbers[0].flatten()[0]) < 0.011
    assert bool(dequantize(packed).isfinite().all())


def test_a_measured_config_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Config] = []
    monkeypatch.setattr(launch, "run", lambda config, *rest: ran.append(config))
    packed = PackedWeight.empty(CASE.shape, INT4)
    kernel, config = find("triton.int4"), Config("rows", 1, 4, 128, 4)
    choices.choose(CASE.key, config)
    for rows in (5, 9):
        x, out = torch.zeros(rows, 192), torch.empty(rows, 16)
        kernel.multiply(x, layout.laid_out(packed), INT4, None, out)
    assert ran == [config, configs.usual(OWN, 16, 9, 1)]


def test_the_backend_says_why_it_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, shape = find("triton.int4"), (16, 192)
    assert kernel.refusal(Scheme.parse("int8"), shape, CUDA, False) == "supports int4 only"
    assert "not on cpu" in str(kernel.refusal(INT4, shape, CPU, False))
    with pytest.raises(KernelUnavailableError, match="runs on CUDA devices, not on cpu"):
        choose(INT4, shape, "cpu", "triton")
    if not torch.cuda.is_available():
        quant.triton._unfit.cache_clear()
        assert "torch sees no CUDA device" in str(kernel.refusal(INT4, shape, CUDA, False))
    monkeypatch.setattr(quant.triton, "_unfit", lambda device: None)
    monkeypatch.setattr(quant.triton, "library", lambda name: None)
    assert "edgelm[gpu]" in str(kernel.refusal(INT4, shape, CUDA, False))
    monkeypatch.setattr(quant.triton, "library", lambda name: torch)
    for lookup in (False, True):
        assert kernel.refusal(INT4, shape, CUDA, lookup) is None
    assert choose(INT4, shape, "cuda").name == "triton.int4"


@pytest.mark.parametrize(("own", "fits"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_old_cards_are_named(
    own: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: own)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old One")
    quant.triton._unfit.cache_clear()
    reason = quant.triton._unfit(CUDA)
    quant.triton._unfit.cache_clear()
    assert (reason is None) == fits
    assert fits or reason == "needs compute capability 8.0 (Ampere), Old One has 7.5"


def test_products_take_no_memory_after_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a piece that a captured graph may know stays when a larger matrix needs more."""
    monkeypatch.setattr(workspace, "_PIECES", {})
    kernel = find("triton.int4")
    kernel.prepare(PackedWeight.empty((256, 192), INT4))
    before = [piece.data_ptr() for piece in workspace._PIECES[CPU]]
    assert len(before) == 1
    workspace.workspace(CPU, 8 * 8 * 256, torch.float32)  # eight ranges of eight rows
    assert [piece.data_ptr() for piece in workspace._PIECES[CPU]] == before
    kernel.prepare(PackedWeight.empty((1024, 192), INT4))
    pieces = workspace._PIECES[CPU]
    assert len(pieces) == 2 and pieces[0].data_ptr() == before[0]


def test_sizes_that_do_not_belong_together_are_refused() -> None:
    kernel, packed = find("triton.int4"), PackedWeight.empty((16, 192), INT4)
    tensors = kernel.prepare(packed)
    x, out = torch.zeros(2, 192), torch.empty(2, 16)
    wrong = (
        (x[:, :160], None, out),
        (x, None, out[:, :8]),
        (x[:1], None, out),
        (x, torch.zeros(8), out),
        (x.double(), None, out),
        (torch.zeros(192, 2).t(), None, out),
    )
    for given, bias, target in wrong:
        with pytest.raises(QuantError, match=r"allowed|prepare"):
            kernel.multiply(given, tensors, INT4, bias, target)
    with pytest.raises(QuantError, match="allowed"):
        kernel.lookup(torch.zeros(3, dtype=torch.int64), tensors, INT4, torch.empty(2, 192))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would measure")
def test_the_benchmark_asks_for_a_card_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gpu_products

    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr("sys.argv", ["gpu_products", "--out", str(out)])
    assert gpu_products.main() == 1
    said = capsys.readouterr().err
    assert "torch sees none here" in said and said.count("\n") == 1
    assert not out.exists()
