"""Evaluation: perplexity, divergence, tasks and baselines are what their definitions say."""

from __future__ import annotations

import json
import math
import operator
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import edgelm
from edgelm.cli.main import main
from edgelm.errors import BudgetExceededError, ModelFileError, UsageError
from edgelm.evaluation import divergence
from edgelm.evaluation.baseline import Baseline, Facts
from edgelm.evaluation.choices import Picks, accuracy, cut_to_context, encode_item, pick
from edgelm.evaluation.divergence import block_tokens, score_text, working_bytes
from edgelm.evaluation.evaluate import Evaluation, task_score, with_pairs
from edgelm.evaluation.inputs import right
from edgelm.evaluation.make_baseline import NOISE_ITEMS
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.tasks import TASKS, Item, read_items
from edgelm.models.model_files import ModelFiles
from edgelm.text.continuation import Encoded, encode_pair
from edgelm.text.tokenizer import load_tokenizer

INT8_KLD = 0.002
INT8_TOP1 = 0.975
FLOAT_DIFFERENCE = 1e-3
"""Between our float32 log-likelihoods and transformers', summed over a continuation."""
FIGURE_SHARE = 1e-3

FILES = {name: f"{name}.jsonl" for name in TASKS} | {
    "hellaswag": "hellaswag_val_full.txt.bz2",
    "social_iqa": "social_i_qa.test.json",
    "mmlu": "mmlu_test",
}
KEYS = {
    *(
        "bos",
        "window",
        "windows",
        "tokens",
        "ppl",
        "ppl_baseline",
        "ppl_stderr",
        "word_ppl",
        "kld_mean",
        "kld_p99",
    ),
    *("kld_max", "top1_agreement", "noise_floor", "tasks"),
}


def run(assets: Path, family: str, **options: Any) -> Evaluation:
    model, text = assets / "nano" / family, assets / "nano" / "heldout.txt"
    return edgelm.evaluate(model, **({"text": text, "window": 128, "limit": 4} | options))


def their_logits(assets: Path, family: str, ids: torch.Tensor) -> torch.Tensor:
    """transformers' logits [B, T, V] in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        assets / "nano" / family, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        return model(ids).logits


@pytest.mark.parametrize("family", ["llama", "gemma2", "helium", "persimmon", "bloom"])
def test_int8_keeps_the_predictions(assets: Path, family: str) -> None:
    score = run(assets, family, quant="int8", limit=8).text
    assert score is not None and score.kld_mean is not None and score.top1_agreement is not None
    print(f"{family}: KLD {score.kld_mean:.6f}, same top {score.top1_agreement:.2%}")
    assert 1e-7 < score.kld_mean < INT8_KLD
    assert score.top1_agreement > INT8_TOP1


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_figures_by_their_definitions(assets: Path, tmp_path: Path, family: str) -> None:
    """From transformers' logits of the floats and ours of int4, all in float64."""
    found = run(assets, family, quant="int4-g32", limit=2)
    with edgelm.load(assets / "nano" / family, quant="int4-g32", context=128) as lm:
        ids = lm.tokenizer.encode((assets / "nano" / "heldout.txt").read_text(), add_special=False)
        windows = torch.tensor(ids[:256]).view(2, 128)
        assert lm.tokenizer.add_bos
        windows[:, 0] = lm.tokenizer.bos_id
        q = lm.forward(windows).logits.double().log_softmax(-1)[:, :-1]
        words = len(lm.decode(ids[:256]).split())
    p = their_logits(assets, family, windows).double().log_softmax(-1)[:, :-1]
    kld = (p.exp() * (p - q)).sum(-1).flatten()
    loss = -q.gather(2, windows[:, 1:, None]).flatten()
    own = -p.gather(2, windows[:, 1:, None]).flatten()
    expected = {
        "bos": True,
        "window": 128,
        "windows": 2,
        "tokens": 254,
        "ppl": math.exp(loss.mean()),
        "blocks": 2,
        "ppl_stderr": math.exp(loss.mean()) * float(loss.view(2, 127).mean(1).std()) / math.sqrt(2),
        "word_ppl": math.exp(float(loss.mean()) * 256 / words),
        "ppl_baseline": math.exp(own.mean()),
        "word_ppl_baseline": math.exp(float(own.mean()) * 256 / words),
        "ppl_diff": math.exp(loss.mean()) - math.exp(own.mean()),
        "kld_p50": float(kld.sort().values[126]),
        "kld_p90": float(kld.sort().values[228]),
        "kld_p95": float(kld.sort().values[241]),
        "kld_p999": float(kld.sort().values[253]),
        "delta_p_rms": float(((-loss).exp() - (-own).exp()).square().mean().sqrt()),
        "kld_mean": float(kld.mean()),
        "kld_stderr": float(kld.view(2, 127).mean(1).std()) / math.sqrt(2),
        "kld_p99": float(kld.sort().values[251]),
        "kld_max": float(kld.max()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    }
    got = found.to_dict()
    for name, value in expected.items():
        print(f"{name}: {got[name]:.6f}, expected {value:.6f}")
        assert got[name] == pytest.approx(value, rel=FIGURE_SHARE, abs=1e-7)
    noise = found.noise_floor
    assert noise is not None
    per_word = math.log(noise["word_ppl"]) / math.log(noise["ppl"])
    assert (
        per_word == pytest.approx(256 / words) and noise["word_ppl"] != noise["word_ppl_baseline"]
    )
    assert 0 < found.noise_floor["kld_mean"] < expected["kld_mean"]


def test_floats_are_their_own_baseline(assets: Path) -> None:
    score = run(assets, "llama", quant="none", dtype="float32", limit=1).text
    assert score is not None and score.kld_max is not None
    print(f"largest KLD of the same floats {score.kld_max:.2e}")
    assert score.kld_max < 1e-6 and score.top1_agreement == 1.0


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_log_likelihoods_are_those_of_transformers(assets: Path, family: str) -> None:
    """lm-eval's formula over transformers' logits: whole encodings, the continuation's last ids."""
    items = read_items("arc_easy", assets / "tasks" / "arc_easy.jsonl", 3)
    items += read_items("winogrande", assets / "tasks" / "winogrande.jsonl", 2)
    items.append(Item((("Once upon a time  ", "there was"), ("Once", "upon")), 0))
    with edgelm.load(assets / "nano" / family, quant="none", dtype="float32", context=256) as lm:
        encoded = [encode_item(lm.tokenizer, item) for item in items]
        for choices, got in zip(encoded, lm.score_choices(encoded), strict=True):
            for choice, score in zip(choices, got, strict=True):
                ids = torch.tensor([choice.ids])
                logits = their_logits(assets, family, ids)[0, :-1].log_softmax(-1)
                own = logits.gather(1, ids[0, 1:, None])[-choice.count :, 0]
                likeliest = logits[-choice.count :].argmax(-1)
                assert score.log_likelihood == pytest.approx(float(own.sum()), abs=FLOAT_DIFFERENCE)
                assert score.token_log_likelihoods == pytest.approx(
                    own.tolist(), abs=FLOAT_DIFFERENCE
                )
                assert score.token_ids == choice.ids[-choice.count :]
                assert score.is_greedy == torch.equal(likeliest, ids[0, -choice.count :])
        assert lm.ledger.planned["evaluation"] == 0


def test_pairs_are_encoded_whole(assets: Path) -> None:
    """With a tokenizer that keeps spaces apart: a prompt's last one begins the continuation."""
    tokenizer = load_tokenizer(assets / "tokenizers" / "llama3")
    plain = encode_pair(tokenizer, "Once upon", " a time")
    spaced = encode_pair(tokenizer, "Once upon ", "a time")
    assert plain == spaced and plain.count == 2 < len(plain.ids)


def test_a_baseline_of_another_protocol_is_refused(assets: Path, tmp_path: Path) -> None:
    """Windows that begin with the text's own id, as older versions made them."""
    path = tmp_path / "own.baseline"
    run(assets, "llama", quant="int8", limit=1, baseline=path)
    baseline = Baseline.open(path)
    facts = baseline.facts
    baseline.close()
    assert facts.bos
    old = replace(facts, bos=False)
    with pytest.raises(UsageError, match=r"windows' first id.*has the text's.*needs BOS"):
        old.require(facts, path, weights=None)


def test_choices_beyond_the_context_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    """On the left, as lm-eval does, and it is said; a continuation longer than that loses too."""
    items = [[Encoded(tuple(range(10)), 3), Encoded(tuple(range(5)), 2)], [Encoded((1, 2), 1)]]
    cut = cut_to_context("a task", items, 6)
    assert cut == [[Encoded(tuple(range(3, 10)), 3), items[0][1]], items[1]]
    assert "a task: 1 of 3 choices do not fit the context of 6 tokens" in caplog.text
    assert cut_to_context("a task", [[Encoded(tuple(range(9)), 8)]], 4)[0][0].count == 4
    caplog.clear()
    assert cut_to_context("a task", items, 9) == items and not caplog.text


def test_both_scores_pick(assets: Path) -> None:
    items = read_items("arc_easy", assets / "tasks" / "arc_easy.jsonl", 12)
    with edgelm.load(assets / "nano" / "llama", quant="none", context=256) as lm:
        encoded = [encode_item(lm.tokenizer, item) for item in items]
        picks = pick(lm, items, encoded, None)
        for index, item in enumerate(items):
            scores = [lm.score(prompt, f" {choice}") for prompt, choice in item.pairs]
            lengths = [len(choice) for _, choice in item.pairs]
            normed = [s / n for s, n in zip(scores, lengths, strict=True)]
            assert picks.plain[index] == scores.index(max(scores))
            assert picks.by_length[index] == normed.index(max(normed))
    assert picks.plain != picks.by_length


def test_accuracy_has_lm_evals_error() -> None:
    items = [Item((("a", "b"), ("a", "c")), gold) for gold in (0, 0, 1, 0)]
    share, stderr = accuracy([0, 1, 1, 0], items)
    sample = torch.tensor([1.0, 0, 1, 1])
    assert share == 0.75 and stderr == pytest.approx(float(sample.std() / math.sqrt(4)))


@pytest.mark.parametrize("name", TASKS)
def test_task_files(assets: Path, name: str) -> None:
    path = assets / "tasks" / FILES[name]
    items = read_items(name, path, 400)
    assert len(items) == 400
    golds = {item.gold for item in items}
    assert golds >= {0, 1} and max(golds) < len(items[0].pairs)
    prompts = {prompt for prompt, _ in items[0].pairs}
    assert len(prompts) == (2 if name == "winogrande" else 1)
    if name not in ("openbook_qa", "hellaswag", "winogrande"):
        assert next(iter(prompts)).endswith(("\nAnswer:", "\nA:"))


def test_prompts_are_worded_as_lm_eval_words_them(assets: Path) -> None:
    tasks = assets / "tasks"
    piqa = read_items("piqa", tasks / "piqa.jsonl", 2)[1]
    assert piqa.pairs[0][0] == "Question: dresser\nAnswer:"
    mmlu = read_items("mmlu", tasks / "mmlu_test" / "abstract_algebra_test.csv", 1)[0]
    assert mmlu.pairs[1] == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "Find the degree for the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) over Q.\n"
        "A. 0\nB. 4\nC. 2\nD. 6\nAnswer:",
        "B",
    )
    social = read_items("social_iqa", tasks / "social_i_qa.test.json", 1)[0]
    assert social.gold == 2 and social.pairs[2][1] == "Find somewhere to go"


def test_flips_count_both_ways() -> None:
    """One item turned right and one wrong: the same accuracy, half of the items flipped."""
    items = [Item((("a", "b"), ("a", "c")), 0)] * 4
    facts = Facts("", "", None, (0, 0), 1, 1, None, {"piqa": {"right": [True, False, True, False]}})
    picks = Picks(plain=(0, 0, 1, 1), by_length=(0, 0, 0, 1))
    score = task_score("piqa", picks, items, facts)
    assert (score.accuracy, score.accuracy_norm, score.accuracy_baseline) == (0.5, 0.75, 0.5)
    assert score.flips == 0.5


def test_passages_of_a_file_make_the_clusters(tmp_path: Path) -> None:
    """The same answers are less evidence if they are about few passages."""
    row = {"query": "Question: a\nAnswer:", "choices": ["b", "c"], "gold": 0}
    path, found = tmp_path / "items.jsonl", {}
    facts = Facts("", "", None, (0, 0), 1, 1, None, {"piqa": {"right": [True] * 40}})
    right_now = [number >= 8 for number in range(40)]
    for named in (False, True):
        rows = [row | ({"passage": number // 8} if named else {}) for number in range(40)]
        path.write_text("".join(f"{json.dumps(own)}\n" for own in rows))
        items = read_items("piqa", path)
        picks = Picks(tuple(int(not own) for own in right_now), (0,) * 40)
        scores = {"piqa": task_score("piqa", picks, items, facts)}
        found[named] = with_pairs(scores, {"piqa": right_now}, {"piqa": items}, facts, 1.0)["piqa"]
    apart, together = found[False].paired, found[True].paired
    assert apart is not None and together is not None
    assert apart.lost == together.lost == 8 and apart.difference == -0.2
    assert together.high - together.low > 2 * (apart.high - apart.low)
    path.write_text(json.dumps(row | {"passage": ["a"]}))
    with pytest.raises(ModelFileError, match="passage is"):
        read_items("piqa", path)


def test_tasks_have_a_noise_floor(assets: Path, tmp_path: Path) -> None:
    """The first items again with bfloat16 activations of the same weights, against the baseline."""
    model, path = assets / "nano" / "llama", assets / "tasks" / "winogrande.jsonl"
    tasks = {"winogrande": path}
    found = edgelm.evaluate(model, tasks=tasks, limit=NOISE_ITEMS + 5, quant="int4-g32")
    assert found.noise_floor is not None and found.tasks["winogrande"].n == NOISE_ITEMS + 5
    noise = found.noise_floor["tasks"]["winogrande"]
    items = read_items("winogrande", path, NOISE_ITEMS)
    rights = {}
    for dtype in ("float32", "bfloat16"):
        with edgelm.load(model, quant="none", dtype=dtype, kv="float32", context=256) as lm:
            encoded = [encode_item(lm.tokenizer, item) for item in items]
            rights[dtype] = right(pick(lm, items, encoded, None).plain, items)
    print(f"bfloat16 activations: {noise}")
    assert noise == {
        "n": NOISE_ITEMS,
        "accuracy": sum(rights["bfloat16"]) / NOISE_ITEMS,
        "accuracy_baseline": sum(rights["float32"]) / NOISE_ITEMS,
        "flips": sum(map(operator.ne, *rights.values())) / NOISE_ITEMS,
    }
    assert noise["flips"] > 0


def test_the_baselines_head_is_read_once_for_many_tokens(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks grow into the budget, at most to a window, and the figures stay."""
    assert block_tokens(256_000, 512, 0) == block_tokens(256_000, 512, 150 << 20) == 32
    assert block_tokens(256_000, 512, working_bytes(256_000, 128)) == 128
    assert block_tokens(256_000, 500, 1 << 40) == 500
    whole = run(assets, "llama", quant="int4-g64").text
    calls: list[int] = []
    head = Baseline.head

    def counted(self: Baseline, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(len(hidden))
        return head(self, hidden)

    monkeypatch.setattr(Baseline, "head", counted)
    monkeypatch.setattr(divergence, "BLOCK_BYTES", 4 * 2048 * 2)
    assert run(assets, "llama", quant="int4-g64").text == whole
    assert set(calls) == {127}
    monkeypatch.setattr(divergence, "block_tokens", lambda vocab, window, room: 50)
    pieces = run(assets, "llama", quant="int4-g64").text
    assert pieces is not None and whole is not None and set(calls) == {127, 50, 27}
    for name, value in vars(whole).items():
        assert getattr(pieces, name) == pytest.approx(value, rel=FIGURE_SHARE)


def test_a_baseline_file_is_kept_and_checked(assets: Path, tmp_path: Path) -> None:
    kept = tmp_path / "llama.baseline"
    first = run(assets, "llama", quant="int4-g64", baseline=kept)
    made = kept.read_bytes()
    again = run(assets, "llama", quant="int4-g64", baseline=kept)
    assert first == again and kept.read_bytes() == made and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UsageError, match="does not match the text"):
        run(assets, "llama", baseline=kept, text=assets / "text" / "wiki.test.raw")
    with pytest.raises(UsageError, match="does not match the windows"):
        run(assets, "llama", baseline=kept, limit=2)
    with pytest.raises(UsageError, match="does not match the weights"):
        run(assets, "helium", baseline=kept)
    kept.write_bytes(made[:-100])
    with pytest.raises(ModelFileError, match="not a complete baseline"):
        run(assets, "llama", baseline=kept)


def test_quantized_folders_need_their_original(assets: Path, tmp_path: Path) -> None:
    """And a folder says and scores what the same scheme does when made at load, bit for bit."""
    model = assets / "nano" / "llama"
    for quant in ("int8", "int4-g32", "int4"):
        out = tmp_path / quant
        edgelm.quantize(model, out, quant=quant)
        with edgelm.load(model, quant=quant) as before, edgelm.load(out) as after:
            ids = [lm.generate("Once upon a time", max_new_tokens=24) for lm in (before, after)]
            assert ids[0].token_ids == ids[1].token_ids
            assert torch.equal(*(lm.log_likelihoods(list(range(3, 60))) for lm in (before, after)))
    alone = run(assets, "llama", quant="int4")
    folder = {"text": assets / "nano" / "heldout.txt", "window": 128, "limit": 4}
    assert edgelm.evaluate(tmp_path / "int4", **folder).to_dict()["kld_mean"] is None
    beside = edgelm.evaluate(tmp_path / "int4", baseline=model, **folder)
    assert beside.text == alone.text
    with pytest.raises(UsageError, match="quantized already"):
        edgelm.evaluate(tmp_path / "int4", baseline=tmp_path / "x.baseline", **folder)


def test_a_folder_knows_what_it_was_quantized_from(assets: Path, tmp_path: Path) -> None:
    """Also at second hand; an older folder that does not say takes any baseline file."""
    model, kept = assets / "nano" / "llama", tmp_path / "llama.baseline"
    edgelm.quantize(model, tmp_path / "int8", quant="int8")
    edgelm.quantize(tmp_path / "int8", tmp_path / "int4", quant="int4")
    tuned = Path(shutil.copytree(model, tmp_path / "tuned"))
    weights = load_file(tuned / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, tuned / "model.safetensors")
    run(assets, "llama", quant="int8", baseline=kept)
    edgelm.quantize(tuned, tmp_path / "other", quant="int8")
    folder = {"text": assets / "nano" / "heldout.txt", "window": 128, "limit": 4}
    for name in ("int8", "int4"):
        score = edgelm.evaluate(tmp_path / name, baseline=kept, **folder).text
        assert score is not None and score.kld_mean is not None
        print(f"{name}: KLD {score.kld_mean:.6f}")
    with pytest.raises(UsageError, match=r"llama\.baseline does not match the weights") as told:
        edgelm.evaluate(tmp_path / "other", baseline=kept, **folder)
    print(told.value)
    manifest = json.loads((tmp_path / "other" / "edgelm.json").read_text())
    assert manifest.pop("source_sha256") == ModelFiles.open(tuned).sha256
    (tmp_path / "other" / "edgelm.json").write_text(json.dumps(manifest))
    assert edgelm.evaluate(tmp_path / "other", baseline=kept, **folder).text is not None


@pytest.mark.parametrize("window", [1, 0, 8])
def test_a_window_beyond_the_text_is_refused(assets: Path, tmp_path: Path, window: int) -> None:
    tokenizer = load_tokenizer(assets / "nano" / "llama")
    text = tmp_path / "short.txt"
    text.write_text("Once upon a time")
    count = len(tokenizer.encode("Once upon a time", add_special=False))
    assert 2 <= count < 8 and Passage.read(text, tokenizer, count, None).ids.shape == (1, count)
    with pytest.raises(UsageError, match=f"window is {window}; allowed: 2 to the {count} tokens"):
        Passage.read(text, tokenizer, window, None)


def test_wrong_use(assets: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": "a", "choices": ["b"], "gold": 3}\n')
    for error, options in (
        (UsageError, {"text": None}),
        (UsageError, {"limit": 0}),
        (UsageError, {"window": 1}),
        (UsageError, {"tasks": {"chess": broken}}),
        (ModelFileError, {"tasks": {"piqa": broken}}),
        (ModelFileError, {"tasks": {"piqa": tmp_path / "none"}}),
        (ModelFileError, {"text": tmp_path / "none"}),
    ):
        with pytest.raises(error) as raised:
            run(assets, "llama", **options)
        print(raised.value)


def test_memory_comes_out_of_the_budget(assets: Path) -> None:
    path = assets / "nano" / "heldout.txt"
    with edgelm.load(assets / "nano" / "llama", quant="int8", context=128) as lm:
        passage = Passage.read(path, lm.tokenizer, 128, 1)
        before = lm.ledger.headroom_bytes
        score_text(lm, passage, None, None)
        assert lm.ledger.headroom_bytes == before
        lm.ledger.headroom_bytes = 1 << 20
        with pytest.raises(BudgetExceededError, match="evaluation"):
            score_text(lm, passage, None, None)


def test_command_line(assets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = assets / "nano" / "llama", assets / "nano" / "heldout.txt"
    task = f"arc_easy={assets / 'tasks' / 'arc_easy.jsonl'}"
    given = ["eval", model, "--text", text, "--task", task, "--limit", "3", "--quant", "int8"]
    assert main([*map(str, given), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) >= KEYS and data["tokens"] == 3 * 511
    entry = data["tasks"]["arc_easy"]
    assert set(entry) >= {"n", "accuracy", "accuracy_baseline", "stderr", "flips"}
    assert entry["low"] <= entry["accuracy"] <= entry["high"]
    paired = entry["paired"]
    assert paired["difference"] == entry["accuracy"] - entry["accuracy_baseline"]
    assert paired["margin"] == 0.01 and paired["verdict"] == "undecided"  # of three items
    assert main([*map(str, given)]) == 0
    shown = capsys.readouterr().out
    assert "token perplexity" in shown and "word perplexity" in shown
    assert "paired difference" in shown and "at 1 pt" in shown and "undecided" in shown
    print(shown)
    floors = data["noise_floor"]
    shift = floors["word_ppl"] - floors["word_ppl_baseline"]
    assert f"{shift:+.4f}" in shown and f"{floors['kld_mean']:.6f}" in shown
    assert shown.count("noise floor") == 2
    noise = floors["tasks"]["arc_easy"]
    row = next(
        line.split() for line in shown.splitlines() if "  noise floor" in line and "%" in line
    )
    assert row[2:] == ["3", f"{noise['accuracy']:.2%}", "-", *(
        f"{noise[name]:.2%}" for name in ("accuracy_baseline", "flips")
    )]  # fmt: skip
    assert main(["eval", str(model), "--task", "arc_easy"]) == 2
    assert "NAME=FILE" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_task_files_as_people_have_them(end: str, mark: str, tmp_path: Path) -> None:
    """Any separator but a line feed is text, a mark (BOM) is none, blank lines say nothing."""
    odd = "a\u2028b\x85c\x0bd\x0ce"
    row = {"query": odd, "choices": [odd, "no"], "gold": 0}
    text = json.dumps(row, ensure_ascii=False)
    files = {
        "piqa": [text, "", text],
        "hellaswag": [odd, "0", odd, "b", "c", "d"] * 2,
        "mmlu": ["question,choice0,choice1,choice2,choice3,answer", *[f"{odd},{odd},b,c,d,0"] * 2],
    }
    for name, lines in files.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes((mark + end.join(lines) + end).encode())
        items = read_items(name, path)
        assert len(items) == 2 and odd in items[1].pairs[0][0]
        assert name == "mmlu" or items[0].pairs[0][1].strip() == odd


def test_a_csv_of_another_world_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_bytes(b"question,choice0,choice1,choice2,choice3,answer\na\rb,1,2,3,4,0\n")
    with pytest.raises(edgelm.ModelFileError, match="cannot be read as mmlu"):
        read_items("mmlu", path)
