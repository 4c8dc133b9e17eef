"""Devices beside the CPU: found or refused by name, planned, and loaded with every tensor there.

No accelerator is needed. One that a probe makes up stands for a real one: its tensors lie on the
CPU, or are torch's fakes, which know their device but hold no numbers and refuse to be mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import edgelm
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import Part
from edgelm.engine.engine import Engine, Recording, RowTokens
from edgelm.machine import accelerators
from edgelm.machine.accelerators import Accelerator
from edgelm.machine.transfer import Transfer
from edgelm.models.assembled import Assembled
from edgelm.models.attention import Attention
from edgelm.models.model_files import ModelFiles
from edgelm.ops import reference
from edgelm.ops.position import Alibi
from edgelm.planning.settings import Settings, activation_dtype
from quant import PackedWeight, QuantEmbedding, QuantLinear, Scheme, find, sqnr_db

FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
CARD = Accelerator("cuda:0", "made-up card", 3 << 30, 4 << 30, bfloat16=True)
# What bfloat16 activations leave of float32's logits on the nano models.
BFLOAT16_LOGITS_DB = 25.0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that auto finds, whose tensors lie on the CPU and meet torch's operations."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: CARD)
    monkeypatch.setattr(accelerators, "_first_cuda", lambda: CARD)
    monkeypatch.setattr(accelerators, "torch_device", lambda name: torch.device("cpu"))


def cuda_says(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """torch.cuda of a machine with one Ampere card, but for ``changes``."""
    usual = {
        "is_available": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 1,
        "get_device_properties": lambda index: SimpleNamespace(name="A10", major=8, minor=6),
        "mem_get_info": lambda index: (20 << 30, 24 << 30),
    }
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, value in (usual | changes).items():
        monkeypatch.setattr(torch.cuda, name, value)


def raises(text: str) -> Any:
    def call() -> None:
        raise RuntimeError(text)

    return call


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update"


@pytest.mark.parametrize(
    ("device", "changes", "words"),
    [
        ("cuda", {"init": raises(OLD_DRIVER)}, r"driver is older than this PyTorch .* needs"),
        ("cuda", {"init": raises("Found no NVIDIA driver on your system.")}, "no CUDA device"),
        ("cuda", {"init": raises("CUDA unknown error\nmore")}, r"unknown error\. Use device='cpu'"),
        ("cuda:3", {}, "'cuda:3' cannot be used: this machine has 1 such device; the first is"),
        (
            "cuda",
            {"get_device_properties": lambda i: SimpleNamespace(name="P100", major=6, minor=0)},
            r"P100 has compute capability 6\.0, and 7\.0 or newer",
        ),
    ],
)
def test_a_device_that_does_not_serve_is_refused_in_a_sentence(
    device: str, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda_says(monkeypatch, **changes)
    with pytest.raises(edgelm.EdgeLMError, match=words) as caught:
        accelerators.find(device)
    print(caught.value)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert accelerators.find("auto") is None or device == "cuda:3"


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(edgelm.EdgeLMError, match=r"built without CUDA.*device='cpu'"):
        accelerators.find("cuda")
    assert accelerators.find("auto") is None and accelerators.find("cpu") is None


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "mps:1", "CUDA", ""])
def test_names_that_are_no_devices(device: str) -> None:
    with pytest.raises(edgelm.UsageError, match="allowed: auto, cpu, cuda") as caught:
        accelerators.find(device)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("device", ["mps", "xpu", "xpu:1"])
def test_other_devices_that_are_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(edgelm.EdgeLMError, match=r"cannot be used.*"):
        accelerators.find(device)


def test_a_card_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_says(monkeypatch)
    found = accelerators.find("cuda:0")
    assert found == Accelerator("cuda:0", "A10", 20 << 30, 24 << 30, True)
    assert accelerators.find("auto") == found
    turing = SimpleNamespace(name="T4", major=7, minor=5)
    cuda_says(monkeypatch, get_device_properties=lambda index: turing)
    old = accelerators.find("cuda")
    assert old is not None and not old.bfloat16


def test_types_of_activations(assets: Path) -> None:
    llama = ModelFiles.open(assets / "nano" / "llama").config
    gemma = ModelFiles.open(assets / "nano" / "gemma2").config
    old = Accelerator("cuda:0", "T4", 1, 1, bfloat16=False)

    def chosen(config: Any, card: Accelerator | None, dtype: str = "auto") -> torch.dtype:
        return activation_dtype(Settings(dtype=dtype), config, card)

    assert chosen(llama, None) == torch.float32
    assert chosen(llama, CARD) == chosen(gemma, CARD) == torch.bfloat16
    assert (chosen(llama, old), chosen(gemma, old)) == (torch.float16, torch.float32)
    assert chosen(llama, CARD, "float16") == torch.float16
    for config, card, dtype, words in (
        (gemma, CARD, "float16", "float16' is refused"),
        (llama, old, "bfloat16", "float32 or float16"),
        (gemma, old, "bfloat16", "use float32\\."),
        (llama, None, "float16", "not supported on CPUs"),
    ):
        with pytest.raises(edgelm.UsageError, match=words):
            chosen(config, card, dtype)


def test_the_plan_tells_host_and_device_apart(assets: Path, card: None) -> None:
    nano = assets / "nano" / "llama"
    made = edgelm.plan(nano, quant="int4", context=64)
    assert (made.device, made.dtype, made.fits) == ("cuda:0", "bfloat16", True)
    on_device = {part.name for part in made.parts if part.where == "device"}
    assert {"weights.mlp", "kv cache.full", "activations", "logits"} <= on_device
    assert not on_device & {"runtime", "speculation"}
    assert made.predicted_device_peak_bytes == made.to_dict()["predicted_device_peak_bytes"] > 0
    assert made.steady_peak_bytes < edgelm.plan(nano, device="cpu", context=64).steady_peak_bytes
    assert edgelm.plan(nano, device="cpu", context=64).predicted_device_peak_bytes == 0
    assert set(made.placement) == {"cuda:0"}
    with pytest.raises(edgelm.UsageError, match=r"offload 'disk' .* allowed: none, cpu"):
        edgelm.plan(nano, offload="disk")


def test_what_the_card_cannot_hold(
    assets: Path, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name it is refused, with the plan; auto then takes the CPU."""
    small = Accelerator("cuda:0", "small card", 1 << 20, 1 << 20, bfloat16=True)
    monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: small)
    monkeypatch.setattr(accelerators, "_first_cuda", lambda: small)
    nano = assets / "nano" / "llama"
    assert edgelm.plan(nano, context=64).device == "cpu"
    with pytest.raises(edgelm.DoesNotFitError, match=r"on cuda:0, .* more than the 1\.0 MiB") as no:
        edgelm.load(nano, device="cuda", context=64)
    assert no.value.plan.predicted_device_peak_bytes > 1 << 20


def test_the_ledger_knows_where_a_part_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "free_bytes", lambda name: 1 << 30)
    ledger = Ledger([Part("cache", 8, "device"), Part("ids", 8)], 100, 50, "meta")
    assert ledger.empty("cache", (2,), torch.float32).device.type == "meta"
    assert ledger.empty("ids", (2,), torch.float32).device.type == "cpu"
    ledger.extend({"cache": 40})
    assert (ledger.headroom_bytes, ledger.device_headroom_bytes) == (100, 10)
    with pytest.raises(edgelm.BudgetExceededError, match=r"20 B more are needed \(cache\)"):
        ledger.extend({"cache": 20})
    lent = ledger.lend({"cache": 50}, lambda: ledger.empty("cache", (10,), torch.float32))
    del lent
    ledger.extend({"cache": -40})
    assert (ledger.headroom_bytes, ledger.device_headroom_bytes) == (100, 50)
    monkeypatch.setattr(accelerators, "free_bytes", lambda name: 4)
    with pytest.raises(edgelm.BudgetExceededError, match="leaves 4 B"):
        ledger.extend({"cache": 20})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_the_card_answers_as_planned(assets: Path, card: None, family: str) -> None:
    nano, ids = assets / "nano" / family, torch.arange(7, 31)[None]
    own = {"context": 64, "chunk": 16, "backend": "reference", "quant": "none"}
    with edgelm.load(nano, **own) as lm, edgelm.load(nano, device="cpu", **own) as exact:
        assert lm.plan.device == "cuda:0" and exact.plan.device == "cpu"
        expected, logits = exact.forward(ids).logits, lm.forward(ids).logits
        measured = sqnr_db(expected, logits)
        print(f"{family}: {measured:.1f} dB of float32's logits in bfloat16")
        assert measured >= BFLOAT16_LOGITS_DB
        out = lm.generate(ids[0].tolist(), max_new_tokens=6, temperature=0.8, top_p=0.9, seed=3)
        assert len(out.token_ids) <= 6
        planned = {part.name: part.bytes for part in lm.plan.parts if part.where == "device"}
        taken = {name: lm.ledger.taken[name] for name in planned if name != "kernel scratch"}
        assert taken == {name: planned[name] for name in taken}


def fake_model(files: ModelFiles, device: str) -> Assembled:
    """A family's decoder over fake weights on the device."""
    model = files.assemble("causal-lm")
    decoder = model.decoder
    floats = Scheme.floating(torch.bfloat16)

    def packed(shape: tuple[int, int], scheme: Scheme) -> PackedWeight:
        return PackedWeight.empty(shape, scheme, device)

    decoder.embed.table = QuantEmbedding(packed(decoder.embed.shape, floats), find("reference"))
    for _, projection in decoder.projections():
        shape = (projection.out_size, projection.in_size)
        bias = torch.empty(shape[0], dtype=torch.bfloat16, device=device)
        scheme = floats if projection is decoder.head else Scheme.parse("int4-g32")
        product = QuantLinear(packed(shape, scheme), find("reference"), bias)
        projection.products.append(product)
    for _, norm in decoder.norms():
        for vector in norm.vectors:
            setattr(norm, vector, torch.empty(norm.size, device=device))
    for layer in decoder.layers:
        layer.attn.move(torch.device(device))
    return model


@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_a_step_is_made_on_another_device(
    assets: Path, family: str, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's fakes raise where an operation meets tensors of two devices."""
    monkeypatch.setitem(accelerators.PROBES, "cuda", lambda index: CARD)
    files = ModelFiles.open(assets / "nano" / family)
    plan = edgelm.plan(files, device="cuda", quant="int4", kv=kv, context=64, chunk=16, rows=2)
    monkeypatch.setattr("edgelm.engine.engine.all_finite", lambda x: True)
    # Of torch's device types the one whose fakes can be sliced without the device.
    places = {"cpu": torch.device("cpu"), "cuda:0": torch.device("lazy:0")}
    monkeypatch.setattr(accelerators, "torch_device", places.__getitem__)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = fake_model(files, "lazy:0")
        engine = Engine(model, plan, Ledger.of(plan))
        cache = engine.make_cache(2, 64, getattr(torch, kv))
        prompt, more = torch.arange(5), torch.arange(3)
        for batch in ([RowTokens(0, prompt)], [RowTokens(0, more), RowTokens(1, prompt)]):
            assert engine.run(cache, batch).states.device.type == "lazy"
        hidden = engine.run(cache, [RowTokens(1, more)], Recording([], [])).states
        logits = engine.logits(hidden[-1:])
        assert logits.device.type == "lazy" and logits.dtype == torch.float32
    if isinstance(model.decoder.layers[0].attn.position, Alibi):
        assert model.decoder.layers[0].attn.scoring.slopes.device.type == "lazy"


def test_transfers_go_through_buffers_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgelm.machine.transfer._BUFFER_BYTES", 64)
    send = Transfer("cpu")
    for shape, dtype in (((7, 9), torch.float32), ((1,), torch.int8), ((5, 64), torch.bfloat16)):
        source = torch.randn(shape).mul(40).to(dtype)
        target = torch.zeros_like(source)
        send.copy(source, target)
        assert torch.equal(source, target)
    assert len(send._buffers) == 2


def test_a_buffer_is_not_refilled_while_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA a copy goes on behind our back; its event says when it ended."""
    monkeypatch.setattr("edgelm.machine.transfer._BUFFER_BYTES", 64)
    said: list[str] = []

    class Sent:
        def synchronize(self) -> None:
            said.append("waited")

    send = Transfer("cpu")
    send._sent = [Sent(), Sent()]  # type: ignore[list-item]
    source = torch.arange(80.0)
    send.copy(source, torch.zeros(80))
    assert len(said) == 5, f"320 bytes in pieces of 64 waited {len(said)} times"


def test_slopes_go_to_the_device(assets: Path, card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(Attention, "move", lambda own, device: asked.append(device))
    with edgelm.load(assets / "nano" / "bloom", context=32, quant="none") as lm:
        assert asked == [torch.device("cpu")] * lm.config.num_layers


def answered(lm: edgelm.LanguageModel, prompt: list[int]) -> list[int]:
    return lm.generate(prompt, max_new_tokens=8, temperature=0.0).token_ids


def computed(lm: edgelm.LanguageModel, prompt: list[int]) -> list[float]:
    found: list[float] = lm.forward(torch.tensor([prompt])).logits.flatten().tolist()
    return found


@pytest.mark.parametrize("ask", [answered, computed])
def test_running_out_of_memory_within_a_request(
    assets: Path, card: None, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., Any]
) -> None:
    """It is reported with the plan; what rows and ledger hold is as before; the next one runs."""
    own = {"context": 64, "chunk": 16, "backend": "reference", "quant": "none"}
    prompt = list(range(7, 30))
    with edgelm.load(assets / "nano" / "gemma2", **own) as lm:
        expected = ask(lm, prompt)
        before = dict(lm.ledger.taken), dict(lm.ledger.planned), lm.ledger.device_headroom_bytes
        released: list[str] = []
        monkeypatch.setattr(accelerators, "release", released.append)
        attend, calls = reference.attend, [0]

        def failing(*given: Any) -> Any:
            calls[0] += 1
            if calls[0] == 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return attend(*given)

        monkeypatch.setattr(reference, "attend", failing)
        with pytest.raises(edgelm.DoesNotFitError, match=r"cuda:0 ran out of memory: .* planned"):
            ask(lm, prompt)
        assert released == ["cuda:0"] and not any(lm._session.held)
        assert ask(lm, prompt) == expected
        assert before == (
            dict(lm.ledger.taken), dict(lm.ledger.planned), lm.ledger.device_headroom_bytes
        )  # fmt: skip


def test_running_out_of_memory_for_a_cache(
    assets: Path, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerators, "release", lambda name: None)
    with edgelm.load(assets / "nano" / "gemma2", context=64, chunk=8, quant="none") as lm:
        before = lm.ledger.device_headroom_bytes
        make = Ledger.empty
        wanted: list[str] = []

        def failing(ledger: Ledger, part: str, *given: Any) -> torch.Tensor:
            wanted.append(part)
            if len(wanted) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return make(ledger, part, *given)

        monkeypatch.setattr(Ledger, "empty", failing)
        with pytest.raises(edgelm.DoesNotFitError) as caught:
            lm.new_cache(2)
        assert caught.value.plan is lm.plan and caught.value.exit_code == 3
        assert lm.ledger.device_headroom_bytes == before
        assert lm.new_cache(2).rows == 2


def test_running_out_of_memory_while_loading(
    assets: Path, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Transfer, "__call__", failing)
    with pytest.raises(edgelm.DoesNotFitError, match="ran out of memory"):
        edgelm.load(assets / "nano" / "llama", context=64)


def test_heads_of_classifiers_on_the_card(tmp_path: Path, card: None) -> None:
    _, folder = oracle.llama(tmp_path)
    with edgelm.load(folder, task="base", quant="none", context=32) as lm:
        out = lm.forward(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
        assert out.last_hidden_state is not None and out.hidden_states is not None
        assert out.last_hidden_state.dtype == torch.float32
