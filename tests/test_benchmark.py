"""What bench measures is what it says, and random models are the shapes they claim to be."""

from __future__ import annotations

import pytest
import torch

import edgelm
from edgelm.checkpoint.random_weights import WEIGHT_STD, RandomWeights
from edgelm.checkpoint.shapes import SHAPES
from edgelm.machine import hardware
from edgelm.reports import benchmark
from edgelm.reports.benchmark import Workload, measure, random_model
from quant import Scheme, dequantize, native

# Parameters as the model pages state them.
PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
    "llama-2-7b": 6_738_415_616,
}
STD_SHARE = 0.05
TINY_CHANGES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY = SHAPES["llama-3.2-1b"] | TINY_CHANGES | {"vocab_size": 320, "head_dim": 64}


@pytest.mark.parametrize("shape", PARAMETERS)
def test_shapes_have_the_parameters_of_the_public_models(shape: str) -> None:
    files = random_model(shape)
    infos = [files.checkpoint.info(name) for name in files.checkpoint.names()]
    assert sum(torch.Size(info.shape).numel() for info in infos) == PARAMETERS[shape]
    plan = edgelm.plan(files, quant="int4", context=256)
    assert plan.scheme == "int4" and all(product.stored for product in plan.products)


@pytest.mark.parametrize("text", ["int4-g32", "int4-g64-zint", "int8-zfloat", "int8", "bfloat16"])
def test_random_weights_are_the_same_in_any_pieces(text: str) -> None:
    scheme = Scheme.parse(text)
    source = RandomWeights("x", {}, {"w": ((2500, 128), scheme), "v": ((2500, 128), scheme)})

    def rows(name: str, start: int, stop: int) -> torch.Tensor:
        if scheme.is_float:
            return source.read(name, start, stop).float()
        return dequantize(source.read_packed(name, start, stop))

    whole = rows("w", 0, 2500)
    assert torch.equal(whole[1000:2100], rows("w", 1000, 2100))
    assert not torch.equal(whole, rows("v", 0, 2500))
    print(f"{text}: standard deviation {float(whole.std()):.5f}")
    assert abs(float(whole.std()) / WEIGHT_STD - 1) < STD_SHARE
    assert abs(float(whole.mean())) < WEIGHT_STD / 4


@pytest.mark.parametrize("quant", ["int4", "int8-g32", "none"])
def test_measure_counts_what_it_ran(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_gb_s", lambda: 20.0)
    told: list[tuple[int, int]] = []
    files = random_model(TINY, quant)
    workload = Workload(prompt_tokens=20, decode_tokens=5, repeat=2)
    row = measure(
        files,
        workload,
        quant=quant,
        context=64,
        on_round=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert (row.prompt_tokens, row.decode_tokens, row.scheme) == (20, 5, quant)
    assert row.decode_gb_s == pytest.approx(row.bytes_per_token * row.decode_tok_s / 1e9)
    assert 0 < row.bytes_per_token <= row.weight_bytes
    assert row.load_s > 0 and row.first_token_s > 0 and row.peak_rss_bytes > row.weight_bytes


def test_end_tokens_do_not_shorten_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    every = TINY | {"eos_token_id": list(range(320))}
    with edgelm.load(random_model(every), quant="int4", context=64) as lm:
        stats = benchmark.run_round(lm, Workload(prompt_tokens=8, decode_tokens=9))
    assert (stats.new_tokens, stats.kept_tokens) == (10, 0)


def test_a_workload_beyond_the_context_is_refused() -> None:
    with pytest.raises(edgelm.ContextLengthError) as refused:
        measure(random_model(TINY), Workload(60, 5, 1), quant="int4", context=64)
    assert (refused.value.given, refused.value.allowed) == (66, 64)


def test_a_head_of_its_own_is_read_instead_of_the_embedding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "read_gb_s", lambda: 20.0)
    untied = random_model(TINY | {"tie_word_embeddings": False})
    row = measure(untied, Workload(4, 2, 1), quant="int4", context=16)
    embed = Scheme.parse("int6-g32-coded").nbytes((320, 64))
    norms = 5 * 64 * 4
    assert row.weight_bytes - row.bytes_per_token == embed + norms
    assert row.backend == ("reference" if native.missing() else "native")
