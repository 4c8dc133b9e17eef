"""A baseline made layer by layer: the whole model's numbers, in the memory of one layer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.errors import DoesNotFitError, NonFiniteError
from edgelm.evaluation.baseline import Baseline, Facts, writing
from edgelm.evaluation.choices import encode_item
from edgelm.evaluation.inputs import Work
from edgelm.evaluation.layerwise import Stretch, write_hidden
from edgelm.evaluation.make_baseline import EXACT, NOISY, log_likelihoods
from edgelm.evaluation.rows import Rows
from edgelm.evaluation.tasks import Item, read_items
from edgelm.models.model_files import ModelFiles
from quant import native

LIKELIHOOD_DIFFERENCE = 1e-4
"""Of a continuation: choices are run side by side in one case, one after another in the other."""
FAMILIES = ("llama", "gemma2", "helium", "persimmon", "bloom")
ROOM_BYTES = (280 if native.missing() else 275) << 20
"""Of the deep model's evaluation: attention in torch takes more than the library's."""


def layer_by_layer(folder: Path, ids: torch.Tensor, path: Path, **settings: Any) -> torch.Tensor:
    """Last hidden states [windows, window, N] of ids [windows, window]."""
    files = ModelFiles.open(folder)
    with path.open("w+b") as file:
        rows = Rows(file, 5, files.config.hidden_size)
        write_hidden(files, [Stretch(window) for window in ids], rows, settings, None)
        return rows.read(0, ids.numel()).view(*ids.shape, -1)


@pytest.mark.parametrize("settings", [EXACT, NOISY], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_the_whole_models(
    assets: Path, tmp_path: Path, family: str, settings: dict[str, str]
) -> None:
    """Bit for bit, in windows of more than one piece and beyond Gemma's own window."""
    folder = assets / "nano" / family
    ids = torch.randint(3, 2000, (2, 300))
    own = layer_by_layer(folder, ids, tmp_path / "states", **settings)
    with edgelm.load(folder, context=300, chunk=256, **settings) as lm:
        for number, window in enumerate(ids):
            out = lm.forward(window[None], output_hidden_states=True, logits_to_keep=1)
            assert out.hidden_states is not None
            assert torch.equal(own[number], out.hidden_states[-1][0].float())


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_as_likely_as_in_the_whole_model(
    assets: Path, tmp_path: Path, family: str
) -> None:
    """Choices that share a prompt, longer than Gemma's window too, and some that share nothing."""
    folder = assets / "nano" / family
    words = (assets / "nano" / "heldout.txt").read_text().split()
    items = read_items("arc_easy", assets / "tasks" / "arc_easy.jsonl", 3)
    items += read_items("winogrande", assets / "tasks" / "winogrande.jsonl", 2)
    items.append(Item(tuple((" ".join(words[:80]), " ".join(words[n:90])) for n in (80, 60)), 0))
    items.append(Item((("Once upon", "a time"), ("Once", "upon")), 0))
    files = ModelFiles.open(folder)
    encoded = [encode_item(files.tokenizer, item) for item in items]
    work = Work(files, None, {"all": items}, {"all": encoded}, {}, lambda title: None)
    with edgelm.load(folder, context=work.context, **EXACT) as lm:
        scores = lm.score_choices(encoded)
        expected = [[score.log_likelihood for score in item] for item in scores]
        head = lm._session.engine.decoder.head if lm._session.engine else None
    assert head is not None
    sizes = (files.config.hidden_size, files.config.vocab_size)
    with writing(tmp_path / "own.baseline") as file, torch.inference_mode():
        baseline = Baseline(file, Facts("", "", None, (0, 0), *sizes, head.softcap))
        baseline.write_head(files)
        found = log_likelihoods(work, encoded, files, baseline, EXACT, None)
    differences = [
        abs(a - b) for own, theirs in zip(found, expected, strict=True)
        for a, b in zip(own, theirs, strict=True)
    ]  # fmt: skip
    print(f"{family}: {len(differences)} choices, largest difference {max(differences):.1e}")
    assert max(differences) < LIKELIHOOD_DIFFERENCE


def test_a_damaged_layer_is_named(tiny_llama: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_llama()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"].mul_(1e30)
    weights["model.layers.1.mlp.gate_proj.weight"].mul_(1e30)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(NonFiniteError, match="layer 1 produced"):
        layer_by_layer(folder, torch.arange(64).view(1, -1), tmp_path / "states", **EXACT)


def deep_model(assets: Path, folder: Path) -> Path:
    """A llama of 22 layers, 280 MiB in float32, with the nano model's tokenizer."""
    from safetensors.torch import save_file

    shutil.copytree(assets / "nano" / "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 22}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config | sizes))
    n, k = 512, 1408
    shapes = {"model.embed_tokens": (2048, n), "lm_head": (2048, n), "model.norm": (n,)}
    for layer in range(22):
        start = f"model.layers.{layer}."
        shapes |= {f"{start}self_attn.{name}_proj": (n, n) for name in "qkvo"}
        shapes |= {f"{start}mlp.{name}_proj": (k, n) for name in ("gate", "up")}
        shapes |= {f"{start}mlp.down_proj": (n, k)}
        shapes |= {f"{start}{name}_layernorm": (n,) for name in ("input", "post_attention")}
    weights = {
        f"{name}.weight": torch.randn(shape).mul_(0.04).half() if len(shape) > 1 else torch.ones(n)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


SCRIPT = """
import json, sys
import edgelm
from edgelm.machine import hardware
from edgelm.models.model_files import ModelFiles
folder, text, task, room = sys.argv[1:]
import edgelm.evaluation.evaluate, safetensors.torch
ModelFiles.open(folder).tokenizer.encode("a")
start = hardware.resident_bytes()
budget = start + int(room)
settings = {"quant": "int4", "budget": budget, "context": 128}
floats = edgelm.plan(folder, **settings | {"quant": "none", "dtype": "float32"})
tasks = {"piqa": task}
found = edgelm.evaluate(folder, text=text, tasks=tasks, window=64, limit=2, **settings).to_dict()
peak = hardware.peak_resident_bytes() - start
print(json.dumps([floats.fits, floats.weight_bytes, peak, found["kld_mean"], found["tasks"]]))
"""


def test_a_baseline_beyond_the_budget_stays_within_it(assets: Path, tmp_path: Path) -> None:
    """The whole floats do not fit, their layers do; memory is what the system says of a process."""
    folder, room = deep_model(assets, tmp_path / "deep"), ROOM_BYTES
    text, task = assets / "nano" / "heldout.txt", assets / "tasks" / "piqa.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(text), str(task), str(room)],
        capture_output=True, text=True, env=os.environ | {"EDGELM_THREADS": "1"},
        cwd=Path(edgelm.__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fits, float_bytes, grown, kld, tasks = json.loads(done.stdout)
    print(f"{grown >> 20} MiB more at the peak; the floats alone are {float_bytes >> 20} MiB")
    assert not fits and kld > 0 and tasks["piqa"]["accuracy_baseline"] is not None
    assert grown < min(room, 0.9 * float_bytes)


def test_a_layer_beyond_the_budget_is_refused(assets: Path) -> None:
    """It says so with the plan, and leaves no file."""
    with pytest.raises(DoesNotFitError, match="One layer of") as raised:
        edgelm.evaluate(
            assets / "nano" / "llama", text=assets / "nano" / "heldout.txt", window=64, limit=1,
            budget="64MiB",  # less than the process has already
        )  # fmt: skip
    assert raised.value.plan is not None and raised.value.plan.parts
