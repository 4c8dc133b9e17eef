"""Several answers to one prompt, log-probabilities, beams, seeds in any batch and chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import family, load_exact

import edgelm
from quant import native

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good"


@pytest.fixture(scope="module")
def lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    settings = {"quant": "none", "context": 160, "chunk": 16, "rows": 3}
    with edgelm.load(assets / "nano" / "llama", **settings) as model:
        yield model


@pytest.mark.skipif(native.missing() is not None, reason=f"no native library: {native.missing()}")
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_n_answers_share_one_prompt(
    assets: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Five answers on three rows: each as alone with its seed, the prompt run once.

    With native products, whose rows are the same in any company; torch's differ in the last bits.
    """
    sizes: list[int] = []
    with edgelm.load(assets / "nano" / name, quant="int8", context=160, chunk=16, rows=3) as lm:
        options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.9}
        alone = [lm.generate(PROMPT, seed=40 + index, **options) for index in range(5)]
        original = lm._session.engine.run

        def counted(cache: Any, batch: Any) -> Any:
            sizes.append(sum(len(entry.tokens) for entry in batch))
            return original(cache, batch)

        monkeypatch.setattr(lm._session.engine, "run", counted)
        together = lm.generate(PROMPT, n=5, seed=40, **options)
    prompt = together[0].stats.prompt_tokens
    print(f"{prompt} tokens of prompt, {sum(sizes)} run for 5 answers of 12")
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.stats.seed for a in together] == [40, 41, 42, 43, 44]
    assert len({a.text for a in together}) == 5
    assert sum(sizes) <= prompt + 4 + 5 * 11


def test_n_of_each_prompt_of_a_list(lm: edgelm.LanguageModel) -> None:
    both = lm.generate([PROMPT, "The whale"], n=2, seed=1, temperature=1.0, max_new_tokens=3)
    assert [len(own) for own in both] == [2, 2]
    with pytest.raises(edgelm.UsageError, match="n is 0"):
        lm.generate(PROMPT, n=0)


def test_logprobs_are_of_the_models_own_distribution(lm: edgelm.LanguageModel) -> None:
    """Before temperature and penalties, for every id; chunks carry what the result carries."""
    options: dict[str, Any] = {
        "temperature": 3.0, "seed": 5, "max_new_tokens": 12, "repetition_penalty": 1.5,
        "logprobs": 4,
    }  # fmt: skip
    out = lm.generate(PROMPT, **options)
    whole = [*lm.encode(PROMPT), *out.token_ids]
    wanted = lm.forward(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    for at, entry in enumerate(out.logprobs, len(whole) - len(out.token_ids) - 1):
        assert entry.token_id == whole[at + 1]
        assert entry.logprob == pytest.approx(float(wanted[at, entry.token_id]), abs=1e-4)
        top = wanted[at].topk(4)
        assert [token for token, _ in entry.top] == top.indices.tolist()
        torch.testing.assert_close(
            torch.tensor([p for _, p in entry.top]), top.values.float(), atol=1e-4, rtol=0
        )
    assert len(out.logprobs) == 12
    chunks = list(lm.stream(PROMPT, **options))
    assert all(len(chunk.logprobs) == len(chunk.token_ids) for chunk in chunks)
    assert json.dumps(out.to_dict()["logprobs"][0]["top"][3]["logprob"])
    assert "logprobs" not in lm.generate(PROMPT, max_new_tokens=1).to_dict()


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0])
def test_beams_are_transformers_own(tmp_path: Path, width: int, length_penalty: float) -> None:
    """Six prompts; every kept answer and its score, some ended by the end token."""
    model, folder = family("llama", tmp_path / "llama")
    end, ended = 17, 0  # made likely, so that beams finish early
    with torch.no_grad():
        model.lm_head.weight[end] *= 1.5
    model.generation_config.eos_token_id = model.config.eos_token_id = end
    model.save_pretrained(folder)
    with load_exact(folder, context=64, chunk=8, rows=4) as lm:
        for seed in range(6):
            torch.manual_seed(seed)
            prompt = torch.randint(20, 190, (1, 11))
            theirs = model.generate(
                prompt, num_beams=width, num_return_sequences=width, max_new_tokens=10,
                do_sample=False, length_penalty=length_penalty, return_dict_in_generate=True,
                output_scores=True, eos_token_id=end, pad_token_id=0,
            )  # fmt: skip
            found = search(lm, prompt[0].tolist(), width, length_penalty, end)
            for beam, ids, score in zip(
                found, theirs.sequences[:, 11:].tolist(), theirs.sequences_scores, strict=True
            ):
                assert list(beam.ids) == ids[: len(beam.ids)]
                assert set(ids[len(beam.ids) :]) <= {end}  # what transformers fills up with
                assert beam.score == pytest.approx(float(score), abs=2e-4)
                ended += beam.finish_reason == "stop"
    print(f"{ended} of {6 * width} answers ended by the end token")
    assert ended or length_penalty == 2.0  # which favours answers of full length


def search(lm: Any, prompt: list[int], width: int, penalty: float, end: int) -> list[Any]:
    from edgelm.generation.beams import BeamSearch
    from edgelm.generation.request import Request

    with lm._running() as session:
        request = Request(tuple(prompt), max_new_tokens=10)
        ends = frozenset([end])
        return BeamSearch(session, request, width, penalty, ends, lambda: lm.tokenizer).run()


def test_beams_give_results(lm: edgelm.LanguageModel) -> None:
    best, second = lm.generate(PROMPT, beams=3, n=2, max_new_tokens=8)
    assert best.score >= second.score and best.text != second.text
    assert best.to_dict()["score"] == best.score
    greedy = lm.generate(PROMPT, max_new_tokens=8)
    own = lm.log_likelihoods([*lm.encode(PROMPT), *greedy.token_ids])[-8:].sum()
    assert best.score * len(best.token_ids) >= float(own) - 1e-3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"beams": 4}, "load with rows=4"),
        ({"beams": 2, "n": 3}, "allowed: 1-2"),
        ({"beams": 2, "temperature": 1.0}, "temperature"),
        ({"beams": 2, "logprobs": 1}, "logprobs"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"banned_tokens": [10**6]}, "1000000"),
    ],
)
def test_what_beams_and_requests_refuse(
    lm: edgelm.LanguageModel, wrong: dict[str, Any], words: str
) -> None:
    with pytest.raises(edgelm.UsageError, match=words):
        lm.generate(PROMPT, **wrong)


def test_a_seed_gives_the_same_tokens_in_any_batch_and_chunk(assets: Path) -> None:
    """Eight prompts in batches of 1, 3 and 8, chunks of 7 and 512, on the reference backend."""
    prompts = [PROMPT[: 20 + 8 * index] for index in range(8)]
    options: dict[str, Any] = {
        "temperature": [0.0, 0.8, 1.0, 1.5] * 2, "seed": list(range(8)), "max_new_tokens": 16,
        "top_p": 0.95, "repetition_penalty": 1.1,
    }  # fmt: skip
    found = {}
    for rows in (1, 3, 8):
        for chunk in (7, 512):
            settings = {"quant": "none", "dtype": "float32", "backend": "reference"}
            with edgelm.load(
                assets / "nano" / "llama", context=512, chunk=chunk, rows=rows, **settings
            ) as lm:
                found[rows, chunk] = [a.token_ids for a in lm.generate(prompts, **options)]
    first = found[1, 7]
    same = sum(
        own == wanted for ids in found.values() for own, wanted in zip(ids, first, strict=True)
    )
    print(f"{same} of {8 * len(found)} answers equal those of one row and chunks of 7")
    assert same == 8 * len(found)


def test_defaults_come_from_the_generation_config(
    assets: Path, tmp_path: Path, lm: edgelm.LanguageModel
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for file in (assets / "nano" / "llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    told = {
        "do_sample": True, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.2,
        "suppress_tokens": [3],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(told), encoding="utf-8")
    with edgelm.load(folder, quant="none", context=64, chunk=16) as own:
        chosen = own.request("a", min_p=0.3).sampling
    assert (chosen.min_p, chosen.typical_p, chosen.repetition_penalty) == (0.3, 0.9, 1.2)
    assert chosen.temperature == 1.0 and chosen.banned_tokens == (3,)
