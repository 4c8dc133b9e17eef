"""Every item's log-likelihoods through lm-evaluation-harness, `edgelm eval` and transformers.

    python benches/lm_eval_agreement.py demo llama gemma2     200 items of four tasks each

MODEL is `demo` or a family of the nano models among the test assets. The model is packed as int4
(the demo keeps its integers), then both run its dequantized weights in float32, since kernels of
few bits also round activations, which transformers does not. The exit code is 1 where a
log-likelihood differs by more than 0.001 or an accuracy at all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import announce
from safetensors.torch import save_file

import edgelm
from edgelm.evaluation.choices import accuracy, encode_item, picks_of
from edgelm.evaluation.tasks import Item, read_items
from edgelm.models.model_files import ModelFiles
from edgelm.text.continuation import Encoded

TASK_FILES = {
    "arc_easy": "arc_easy.jsonl",
    "hellaswag": "hellaswag_val_full.txt.bz2",
    "piqa": "piqa.jsonl",
    "winogrande": "winogrande.jsonl",
}
ITEMS = 200
CLOSE = 1e-3
CONTEXT = 512
Scores = list[list[float]]


@dataclass(frozen=True)
class Row:
    """One task of one model; differences are from the harness's log-likelihoods."""

    task: str
    choices: int
    to_eval: float
    to_transformers: float
    accuracies: tuple[float, float, float]

    @property
    def agrees(self) -> bool:
        close = max(self.to_eval, self.to_transformers) <= CLOSE
        return close and len(set(self.accuracies)) == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", help="demo, or a family of the nano models")
    parser.add_argument("--items", type=int, default=ITEMS, help="of each task")
    given = parser.parse_args()
    assets = Path(os.environ["EDGELM_ASSETS"])
    wrong = 0
    for model in given.models:
        source = model if model == "demo" else assets / "nano" / model
        with tempfile.TemporaryDirectory() as folder:
            for row in agreement(source, assets / "tasks", given.items, Path(folder)):
                wrong += not row.agrees
                print(f"{model}: {row}, {'agrees' if row.agrees else 'DIFFERS'}", flush=True)
    return int(wrong > 0)


def agreement(source: str | Path, tasks: Path, count: int, scratch: Path) -> list[Row]:
    """A row a task, of ``count`` items each."""
    items = {name: read_items(name, tasks / file, count) for name, file in TASK_FILES.items()}
    out = scratch / "packed"
    edgelm.quantize(source, out, quant="auto" if source == "demo" else "int4", certificate=False)
    exact = {"quant": "none", "dtype": "float32", "kv": "float32", "method": "rtn"}
    with edgelm.load(out, context=CONTEXT, **exact) as lm:
        encoded = {name: [encode_item(lm.tokenizer, i) for i in own] for name, own in items.items()}
        harness = through_harness(lm, items, scratch)
        own = {
            name: [[score.log_likelihood for score in scores] for scores in lm.score_choices(each)]
            for name, each in encoded.items()
        }
    theirs = through_transformers(out, encoded, scratch / "floats")
    return [
        Row(
            name,
            sum(map(len, own[name])),
            difference(harness[name][0], own[name]),
            difference(harness[name][0], theirs[name]),
            (
                harness[name][1],
                *(_accuracy(each, items[name]) for each in (own[name], theirs[name])),
            ),
        )
        for name in items
    ]


def difference(a: Scores, b: Scores) -> float:
    pairs = zip(a, b, strict=True)
    return max(abs(x - y) for own, other in pairs for x, y in zip(own, other, strict=True))


def _accuracy(scores: Scores, items: Sequence[Item]) -> float:
    return accuracy(picks_of(items, scores).plain, items)[0]


def through_harness(
    lm: edgelm.LanguageModel, items: Mapping[str, Sequence[Item]], scratch: Path
) -> dict[str, tuple[Scores, float]]:
    """Log-likelihoods and accuracy of each task, as the harness reports them."""
    os.environ.setdefault("HF_DATASETS_CACHE", str(scratch / "datasets"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from edgelm.evaluation.harness import HarnessModel

    folder = scratch / "tasks"
    for name, own in items.items():
        write_task(folder, name, own)
    found = simple_evaluate(
        model=HarnessModel(lm), tasks=[f"own_{name}" for name in items], bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    told = {}
    for name in items:
        samples = sorted(found["samples"][f"own_{name}"], key=lambda sample: sample["doc_id"])
        scores = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
        told[name] = (scores, float(found["results"][f"own_{name}"]["acc,none"]))
    return told


def write_task(folder: Path, name: str, items: Sequence[Item]) -> None:
    """A task of the harness with these items: one prompt and choices, or prompts and one text."""
    folder.mkdir(exist_ok=True)
    rows = []
    for item in items:
        prompts, choices = zip(*item.pairs, strict=True)
        rows.append({"prompts": prompts, "choices": choices, "gold": item.gold})
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    by_prompt = len(set(rows[0]["prompts"])) > 1
    config: dict[str, Any] = {
        "task": f"own_{name}", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(data)}}, "output_type": "multiple_choice",
        "doc_to_text": "gold" if by_prompt else "{{prompts[0]}}",
        "doc_to_target": "{{choices[0]}}" if by_prompt else "gold",
        "doc_to_choice": "prompts" if by_prompt else "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(config), "utf-8")  # JSON is YAML


@torch.inference_mode()
def through_transformers(
    packed: Path, encoded: Mapping[str, list[list[Encoded]]], folder: Path
) -> dict[str, Scores]:
    """Log-likelihoods by transformers of the dequantized weights, one text at a time."""
    from transformers import AutoModelForCausalLM

    write_floats(packed, folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    found: dict[str, Scores] = {}
    for name, items in encoded.items():
        found[name] = []
        for item in items:
            own = []
            for choice in item:
                ids = torch.tensor([choice.ids])
                scores = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                own.append(float(scores[-choice.count :].sum()))
            found[name].append(own)
    return found


def write_floats(packed: Path, folder: Path) -> None:
    """The weights of a packed folder as float32, for transformers."""
    files = ModelFiles.open(packed)
    folder.mkdir()
    weights = {name: files.checkpoint.read(name).float() for name in files.checkpoint.names()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        key: value
        for key, value in json.loads((packed / "config.json").read_text("utf-8")).items()
        if key not in ("quantization_config", "transformers_weights")
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


if __name__ == "__main__":
    announce()
    sys.exit(main())
