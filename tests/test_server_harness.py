"""lm-evaluation-harness's ``local-completions`` on a running server: the in-process numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # of lm-eval[api]
pytest.importorskip("uvicorn")
from lm_eval import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from lm_eval_agreement import TASK_FILES, write_task
from running_server import running, wait_until_ready
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import edgelm
from edgelm.evaluation.harness import HarnessModel
from edgelm.evaluation.tasks import read_items
from edgelm.server.app import Server

ITEMS = 20
CONTEXT = 512
CLOSE = 1e-3


def scores(model: Any, tasks: Path) -> dict[str, tuple[list[Any], float]]:
    """Log-likelihoods and whether they are greedy, item by item, and the accuracy of each task."""
    names = [f"own_{name}" for name in TASK_FILES]
    found = simple_evaluate(
        model=model, tasks=names, bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )  # fmt: skip
    told = {}
    for name in names:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        answers = [answer[0] for sample in samples for answer in sample["resps"]]
        told[name] = (answers, found["results"][name]["acc,none"])
    return told


def write_tokenizer(model: Path, folder: Path) -> None:
    """The model's tokenizer for the harness; read from tokenizer.model alone it leaves BOS out."""
    found = AutoTokenizer.from_pretrained(model)
    bos = [(found.bos_token, found.bos_token_id)]
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{found.bos_token} $A", special_tokens=bos
    )
    found.save_pretrained(folder)


@pytest.mark.slow
def test_tasks_are_scored_as_in_process(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for name, file in TASK_FILES.items():
        write_task(tmp_path / "tasks", name, read_items(name, assets / "tasks" / file, ITEMS))
    folder = assets / "nano" / "llama"
    write_tokenizer(folder, tmp_path / "tokenizer")
    with edgelm.load(folder, quant="int8", context=CONTEXT, rows=4, threads=1) as lm:
        own = scores(HarnessModel(lm), tmp_path / "tasks")
        with running(Server(lambda: lm)) as address:
            wait_until_ready(address)
            client = LocalCompletionsAPI(
                model=lm.name, base_url=f"{address}/v1/completions",
                tokenizer=str(tmp_path / "tokenizer"), tokenizer_backend="huggingface",
                add_bos_token=True, num_concurrent=4, max_length=CONTEXT, max_retries=1,
            )  # fmt: skip
            served = scores(client, tmp_path / "tasks")
    for name, (answers, accuracy) in own.items():
        told, other = served[name]
        assert other == accuracy, name
        for (a, _), (b, _) in zip(answers, told, strict=True):
            assert float(b) == pytest.approx(float(a), abs=CLOSE), name
