"""Our picks against lm-eval's own run over the same local lines, item by item."""

from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

import edgelm
from edgelm.evaluation.choices import encode_item
from edgelm.evaluation.tasks import read_items
from edgelm.hub.references import resolve

ITEMS = 200
SCORE_DIFFERENCE = 2e-3
"""Largest allowed difference of a choice's log-likelihood, float32 on both sides."""

PROMPTS = {
    "arc_easy": "{{query}}\nAnswer:",
    "piqa": "{{query.rstrip()}}\nAnswer:",
    "hellaswag": "{{query}}",
}
YAML = """
task: local_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: {prompt}
doc_to_target: gold
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def their_samples(lm: Any, name: str, file: Path, folder: Path) -> list[dict[str, Any]]:
    """What lm-eval logged of each item."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = file.read_text("utf-8").splitlines()[:ITEMS] if name != "hellaswag" else six_lines(file)
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    prompt = json.dumps(PROMPTS[name])
    text = YAML.format(name=name, data=json.dumps(str(data)), prompt=prompt)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = f"local_{name}"
    found = simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return sorted(found["samples"][task], key=lambda sample: sample["doc_id"])


def six_lines(file: Path) -> list[str]:
    with bz2.open(file, "rt", encoding="utf-8") as opened:
        lines = opened.read().splitlines()[: 6 * ITEMS]
    groups = (lines[start : start + 6] for start in range(0, len(lines), 6))
    return [json.dumps({"query": g[0], "gold": int(g[1]), "choices": g[2:]}) for g in groups]


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_scores_equal_lm_eval(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The demo dequantized to float32 by transformers, 200 items; no pick may differ."""
    models = pytest.importorskip("lm_eval.models.huggingface")
    import transformers

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = Path(resolve("demo"))
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    # Reading a GGUF, transformers forgets that SmolLM2's own tokenizer.json parts digits first.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    lm = models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
    file = (
        assets
        / "tasks"
        / ("hellaswag_val_full.txt.bz2" if name == "hellaswag" else f"{name}.jsonl")
    )
    theirs = their_samples(lm, name, file, tmp_path)
    items = read_items(name, file, ITEMS)
    assert len(theirs) == len(items) == ITEMS
    largest, differ, right = 0.0, 0, [0, 0]
    with edgelm.load("demo", quant="none", dtype="float32", context=512) as ours:
        scores = ours.score_choices([encode_item(ours.tokenizer, item) for item in items])
        for item, own_scores, sample in zip(items, scores, theirs, strict=True):
            expected = [float(score[0]) for score in sample["filtered_resps"]]
            got = [score.log_likelihood for score in own_scores]
            largest = max(largest, *(abs(a - b) for a, b in zip(got, expected, strict=True)))
            per_length = [s / len(text) for s, (_, text) in zip(got, item.pairs, strict=True)]
            for index, (scores, key) in enumerate(((got, "acc"), (per_length, "acc_norm"))):
                own = scores.index(max(scores)) == item.gold
                right[index] += own
                differ += own != bool(sample[key])
    print(f"{name}: acc {right[0]} and acc_norm {right[1]} of {ITEMS}, {differ} differ; "
          f"log-likelihoods within {largest:.1e}")  # fmt: skip
    assert differ == 0
    assert largest < SCORE_DIFFERENCE
