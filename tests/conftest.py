"""What every test shares: the assets folder, fixed seeds, one thread, small model folders."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when torch is first imported: two xdist workers on two cores must not start four threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("EDGELM_ASSETS") or ROOT.parent / "shared" / "assets")

torch.set_num_threads(1)
# Read when Triton is first imported: without a card its kernels run number by number, on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every run: a mutation is noticed always or never.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_report_header() -> str:
    """Which packages are under test: `pytest` and `python -m pytest` may find different ones."""
    from provenance import sentence  # imports the packages, which read the variables set above

    return sentence()


def pytest_sessionstart(session: pytest.Session) -> None:
    """In CI a missing assets folder is a failure: skipped tests would look like passed ones."""
    if os.environ.get("CI") == "true" and not ASSETS.is_dir():
        pytest.exit(f"CI=true but there is no assets folder at {ASSETS}", returncode=1)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of test data: ``EDGELM_ASSETS``, else ``../shared/assets`` beside the tree."""
    if not ASSETS.is_dir():
        pytest.skip(f"no assets folder at {ASSETS}; set EDGELM_ASSETS to it")
    return ASSETS


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for a test wherever and in whatever order it runs."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def own_runs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests' runs took must not change the plans of this one."""
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(
        "edgelm.budget.past_runs.KEPT", str(folder / f"runs-{time.monotonic_ns()}.json")
    )


@pytest.fixture(autouse=True)
def short_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates over 96 tokens: the same steps as over 4,096, in a fraction of a second."""
    monkeypatch.setattr("edgelm.evaluation.certify.WINDOWS", 3)
    monkeypatch.setattr("edgelm.evaluation.certify.WINDOW", 32)


TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 199,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Odd vocabulary, grouped heads, and weights wide enough that a wrong mask moves the logits."""


def tiny_llama_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under HF names for a Llama config; norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * config["initializer_range"]

    hidden, inner, vocab = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    query = config["num_attention_heads"] * config["head_dim"]
    key_value = config["num_key_value_heads"] * config["head_dim"]
    linears = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    weights = {"model.embed_tokens.weight": normal(vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in linears.items():
            prefix = f"model.layers.{layer}.{name}"
            weights[f"{prefix}.weight"] = normal(*shape)
            bias_key = "mlp_bias" if name.startswith("mlp") else "attention_bias"
            if config[bias_key]:
                weights[f"{prefix}.bias"] = normal(shape[0])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = 1 + normal(hidden)
    weights["model.norm.weight"] = 1 + normal(hidden)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = normal(vocab, hidden)
    return weights


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random Llama folder in HF layout (no tokenizer): ``tiny_llama(rope_theta=1e6)``.

    Keywords replace entries of ``TINY_LLAMA``; ``seed=`` and ``dtype=`` concern the weights.
    """

    def write(*, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        from safetensors.torch import save_file

        config = TINY_LLAMA | changes
        folder = tmp_path / f"tiny-llama-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        weights = tiny_llama_weights(config, seed)
        save_file({k: v.to(dtype) for k, v in weights.items()}, folder / "model.safetensors")
        return folder

    return write


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's GGUF, fetched once into the cache folder."""
    from edgelm.errors import HubError
    from edgelm.hub.references import resolve

    try:
        return resolve("demo")
    except HubError as error:
        pytest.skip(f"the demo cannot be fetched: {error}")
