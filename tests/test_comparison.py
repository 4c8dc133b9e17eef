"""``compare``: the figures of ``evaluate`` in one table, resumed, reported and refused early."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import edgelm
from edgelm.cli.main import main
from edgelm.errors import EdgeLMError, ModelFileError, UsageError
from edgelm.evaluation.comparison import candidates
from edgelm.evaluation.comparison import compare as comparing
from edgelm.evaluation.comparison.comparison import Comparison
from edgelm.evaluation.comparison.page import page, visible
from edgelm.evaluation.comparison.pictures import pareto
from edgelm.evaluation.comparison.slices import slices, worst_tokens
from edgelm.evaluation.duration import spoken
from edgelm.evaluation.figures import Figures
from edgelm.evaluation.passage import Passage
from edgelm.evaluation.texts import read_texts
from edgelm.machine import hardware
from edgelm.planning.settings import Settings
from edgelm.text.tokenizer import load_tokenizer

WINDOW, LIMIT = 64, 3
FIRST = "<script>alert(1)</script> & $x$ "


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(assets: Path, tmp_path: Path) -> Path:
    """A folder of two categories; one begins with what a page must not take for its own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    words = (assets / "nano" / "heldout.txt").read_text()
    (folder / "stories.txt").write_text(words[:3000])
    (folder / "hostile.txt").write_text(FIRST * 40)
    return folder


def run(assets: Path, *given: Any, **options: Any) -> Comparison:
    own = {"text": assets / "nano" / "heldout.txt", "window": WINDOW, "limit": LIMIT} | options
    return edgelm.compare(assets / "nano" / "llama", given, **own)


def counted(
    monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[..., Any] | None = None
) -> list[str]:
    """Calls of a function of ``compare``; ``act`` runs before each."""
    real, calls = getattr(comparing, name), []

    def counting(*given: Any, **named: Any) -> Any:
        if act is not None:
            act(len(calls))
        calls.append(getattr(given[0], "label", name))
        return real(*given, **named)

    monkeypatch.setattr(comparing, name, counting)
    return calls


def test_figures_are_those_of_evaluate(assets: Path) -> None:
    """Of texts and tasks; the noise floor is over the same tokens, and the rest adds up."""
    tasks = {"winogrande": assets / "tasks" / "winogrande.jsonl"}
    found = run(assets, "int4-g32", {"default": "int8"}, tasks=tasks)
    model, text = assets / "nano" / "llama", assets / "nano" / "heldout.txt"
    for row, quant in zip(found.rows, ("int4-g32", "int8"), strict=True):
        alone = edgelm.evaluate(
            model, text=text, window=WINDOW, limit=LIMIT, tasks=tasks, quant=quant
        )
        assert row.text == alone.text and row.tasks == alone.tasks
        assert row.bits_per_weight == alone.bits_per_weight and row.decode_tok_s > 0
        assert row.weight_bytes < row.predicted_peak_bytes
        for kind in ("position", "confidence", "category"):
            own = row.slices[kind]
            assert sum(part.tokens for part in own) == LIMIT * (WINDOW - 1)
            mean = sum(part.tokens * part.kld_mean for part in own) / (LIMIT * (WINDOW - 1))
            assert row.text is not None and mean == pytest.approx(row.text.kld_mean)
        assert row.worst[0].kld == row.text.kld_max and len(row.worst) == 20
        assert {m.kind for m in row.matrices} >= {"attn.q", "mlp.down", "embed"}
        assert all(m.error_db is not None and m.error_db > 10 for m in row.matrices)
    assert found.noise_floor["tokens"] == LIMIT * (WINDOW - 1)
    int4, int8, noise = found.table()
    assert int4["candidate"] == "int4-g32" and noise["candidate"] == "noise floor"
    assert int4["kld_mean"] > int8["kld_mean"] > 0 and noise["bits_per_weight"] is None
    assert "189 tokens predicted in 3 windows of 64" in found.protocol


def test_an_interrupted_comparison_goes_on(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured twice, the baseline is made once, and the table is the same."""

    def stop(number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    bases = counted(monkeypatch, "make_baseline")
    with monkeypatch.context() as stopped:
        counted(stopped, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            run(assets, "int4-g32", "int8")
    assert len([*(tmp_path / "cache" / "compare").rglob("own.baseline")]) == 1
    calls, told = counted(monkeypatch, "measure"), []
    both = run(assets, "int4-g32", "int8", announce=told.append)
    assert calls == ["int8"] and len(bases) == 1
    assert "1 of 2 candidates over" in told[0] and "1 were finished earlier" in told[0]
    assert not [*(tmp_path / "cache" / "compare").rglob("own.baseline")]
    again = run(assets, "int4-g32", "int8", announce=told.append)
    assert again == both and calls == ["int8"] and len(told) == 1
    run(assets, "int8", again=True)
    assert calls == ["int8", "int8"] and len(bases) == 2
    run(assets, "int8", limit=1)
    assert len(calls) == len(bases) == 3


def test_a_baseline_file_is_made_once_and_checked(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "own.baseline"
    bases = counted(monkeypatch, "make_baseline")
    run(assets, "int8", baseline=kept)
    run(assets, "int8", "int4-g32", baseline=kept)
    assert len(bases) == 1 and kept.exists()
    with pytest.raises(UsageError, match="does not match the windows"):
        run(assets, "int8", baseline=kept, limit=1)
    other = {"text": assets / "nano" / "heldout.txt", "window": WINDOW, "limit": LIMIT}
    with pytest.raises(UsageError, match=r"own\.baseline does not match the (weights|tokenizer)"):
        edgelm.compare(assets / "nano" / "bloom", ["int8"], baseline=kept, **other)
    short = tmp_path / "short.baseline"
    edgelm.evaluate(assets / "nano" / "llama", quant="int8", baseline=short, **other | {"limit": 6})
    named = [row["candidate"] for row in run(assets, "int8", baseline=short, limit=6).table()]
    assert named == ["int8", f"noise floor ({4 * (WINDOW - 1)} tokens)"]
    with pytest.raises(UsageError, match=r"allowed: a file that ends in \.baseline"):
        run(assets, "int8", baseline=assets / "nano" / "bloom")


def test_files_of_the_same_weights(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder has the errors it was written with; other weights and tokenizers are refused."""
    model, folder, gguf = assets / "nano" / "llama", tmp_path / "int8", tmp_path / "own.gguf"
    edgelm.quantize(model, folder, quant="int8", method=Settings().method)
    edgelm.quantize(model, gguf, quant="int8")
    found = run(assets, "int8", folder, gguf, f"gguf:{gguf}")
    made, alone, file, named = found.rows
    assert not found.quantized and "quantized already" not in caplog.text
    assert alone.text == made.text and alone.candidate == str(folder)
    assert {(m.layer, m.kind): m.error_db for m in alone.matrices} == pytest.approx(
        {(m.layer, m.kind): m.error_db for m in made.matrices}
    )
    assert file.text == named.text and file.text is not None
    assert file.text.kld_mean is not None and 0 < file.text.kld_mean < 0.01
    tuned = Path(shutil.copytree(model, tmp_path / "tuned"))
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"note": "another"}))
    edgelm.quantize(tuned, tmp_path / "other", quant="int8")
    caplog.set_level("INFO", "edgelm")  # whatever an earlier test asked of the logger
    again = edgelm.compare(folder, ["nf4"], text=assets / "nano" / "heldout.txt", limit=1)
    assert "whose weights are quantized already" in again.protocol
    assert "quantized already: its own numbers" in caplog.text
    with pytest.raises(UsageError, match="quantized from other weights"):
        run(assets, tmp_path / "other")
    with pytest.raises(UsageError, match=r"bloom is not a file of .* 6 layers of 256 of bloom"):
        run(assets, assets / "nano" / "bloom")
    monkeypatch.setattr(candidates, "tokenizer_sha256", id)
    with pytest.raises(UsageError, match="has another tokenizer"):
        run(assets, gguf)


def test_a_folder_of_texts_has_categories(assets: Path, texts: Path) -> None:
    tokenizer = load_tokenizer(assets / "nano" / "llama")
    whole = read_texts(texts, tokenizer, WINDOW, 2)
    assert whole.parts == (("hostile", 2), ("stories", 2)) and whole.ids.shape == (4, WINDOW)
    alone = Passage.read(texts / "stories.txt", tokenizer, WINDOW, 2)
    assert torch.equal(whole.ids[2:], alone.ids) and whole.sha256 != alone.sha256
    first = whole.first(3)
    assert first.parts == (("hostile", 2), ("stories", 1)) and len(first.ids) == 3
    assert len(first.token_blocks) == 3 * (WINDOW - 1)
    (texts / "empty.txt").write_text("")
    with pytest.raises(UsageError, match=r"empty\.txt holds 0 tokens"):
        read_texts(texts, tokenizer, WINDOW, None)
    (texts / "empty.txt").unlink()
    (texts / "more").mkdir()
    with pytest.raises(UsageError, match="more is a folder"):
        read_texts(texts, tokenizer, WINDOW, None)
    with pytest.raises(UsageError, match="holds no texts"):
        read_texts(texts / "more", tokenizer, WINDOW, None)


def test_conversations_are_read_in_the_template(assets: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(assets / "nano" / "llama")
    path = tmp_path / "chat.jsonl"
    talk = [{"role": "user", "content": "Once upon"}, {"role": "assistant", "content": "a time"}]
    path.write_text(json.dumps({"messages": talk}) + "\n\n" + json.dumps({"messages": talk}))
    with pytest.raises(UsageError, match="no chat template"):
        Passage.read(path, tokenizer, 4, None)
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(assets / "nano" / "llama" / "tokenizer.model", folder)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    chatting = load_tokenizer(folder)
    ids = chatting.encode("user: Once upon\nassistant: a time\n", add_special=False)
    passage = Passage.read(path, chatting, len(ids), None)
    assert passage.ids.shape == (2, len(ids))
    assert passage.ids[:, 1:].tolist() == [ids[1:], ids[1:]]
    path.write_text('{"messages": []}')
    with pytest.raises(ModelFileError, match="line 1 is not a conversation"):
        Passage.read(path, chatting, 4, None)


def figures() -> tuple[Figures, Passage]:
    """Six windows of nine ids, three in each of two texts, with made-up figures."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = torch.randn(2, 48, 32, generator=generator)
    ids = torch.arange(54).view(6, 9) % 32
    passage = Passage(ids, False, 1.0, "", (("a", 3), ("b", 3)))
    return Figures.of(mine, theirs, ids[:, 1:].flatten()), passage


def test_slices_by_their_definitions() -> None:
    found, passage = figures()
    kinds = slices(found, passage)
    grid = found.kld.view(6, 8)
    assert [s.name for s in kinds["position"]] == ["1", "2-3", "4-7", "8-15"]
    assert [s.tokens for s in kinds["position"]] == [6, 12, 24, 6]
    assert kinds["position"][1].kld_mean == pytest.approx(float(grid[:, 1:3].mean()))
    error = grid[:, 1:3].mean(1).std() / 6**0.5
    assert kinds["position"][1].kld_stderr == pytest.approx(float(error))
    assert [s.name for s in kinds["category"]] == ["a", "b"]
    assert kinds["category"][1].kld_mean == pytest.approx(float(grid[3:].mean()))
    for part in kinds["confidence"]:
        low = int(part.name.split("-")[0]) / 100
        mask = (found.confidence >= low) & (found.confidence < low + 0.1)
        assert part.tokens == int(mask.sum())
        assert part.kld_mean == pytest.approx(float(found.kld[mask].mean()))


def test_the_worst_tokens_stand_in_their_context(assets: Path) -> None:
    found, passage = figures()
    tokenizer = load_tokenizer(assets / "nano" / "llama")
    worst = worst_tokens(found, passage, tokenizer)
    order = found.kld.argsort(descending=True)[:20].tolist()
    assert [token.kld for token in worst] == found.kld[order].tolist()
    window, place = divmod(order[0], 8)
    first, ids = worst[0], passage.ids[window].tolist()

    def text(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special=False, continues=True)

    assert first.position == place + 1 and first.category == ("a" if window < 3 else "b")
    assert first.token == text([ids[place + 1]]) and first.left == text(ids[: place + 1])
    assert first.right == text(ids[place + 2 :])
    assert first.probability_after == pytest.approx(float((-found.loss[order[0]]).exp()))


class Tags(HTMLParser):
    """What a page would ask the network for, its scripts, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_in_itself(assets: Path, texts: Path, tmp_path: Path) -> None:
    """Texts and names are escaped; pictures are images inside it and well formed."""
    tasks = {"winogrande": assets / "tasks" / "winogrande.jsonl"}
    out = tmp_path / "out.html"
    found = run(assets, "int4-g32", "int8", text=texts, tasks=tasks, report=out)
    named = replace(found.rows[0], candidate="<b>$x_$</b>")
    parsed = Tags()
    parsed.feed(page(replace(found, rows=(named, found.rows[1]))))
    assert not {"script", "b", "link", "iframe"} & {*parsed.tags}
    assert parsed.sources and all(
        s.startswith("data:image/svg+xml;base64,") for s in parsed.sources
    )
    drawn = [b64decode(source.partition(",")[2]).decode() for source in parsed.sources]
    for picture in drawn:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        addresses = set(re.findall(r'(?:href|src)="((?!#|data:)[^"]*)"', picture))
        assert not addresses, addresses
    assert len(drawn) == 1 + 2 + 3 + 2  # frontier; errors of two; slices; flips and differences
    assert "<script>" in parsed.text and "<b>$x_$</b>" in parsed.text
    assert found.protocol in parsed.text and "hostile" in drawn[5]
    assert out.read_text() == page(found)
    assert visible("a\n\u202eb\x00") == "a⏎\\x202eb\\x00"


def test_pareto_is_what_nothing_beats() -> None:
    points = [(4.0, 3.0), (5.0, 1.0), (4.5, 3.5), (8.0, 0.5), (6.0, 1.0)]
    assert pareto(points) == [(4.0, 3.0), (5.0, 1.0), (8.0, 0.5)]


def test_durations_are_spoken() -> None:
    assert [spoken(s) for s in (0.2, 89, 700, 12_000)] == ["1 s", "89 s", "12 min", "3 h 20 min"]


def test_a_peak_can_begin_anew() -> None:
    if not hardware.forget_peak():
        pytest.skip("this system keeps the peak of the whole past")
    held = torch.ones(1 << 24)
    high = hardware.peak_resident_bytes()
    del held
    hardware.release_freed_memory()
    assert hardware.forget_peak() and hardware.peak_resident_bytes() < high - (1 << 25)


def wrong_uses(tmp_path: Path) -> list[tuple[dict[str, Any], type[EdgeLMError], str]]:
    """Options, the error and its words."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "tiny.txt").write_text("Once upon a time")
    (tmp_path / "items.jsonl").write_text('{"query": "a", "choices": ["b", "c"]}\n')
    items = {"tasks": {"piqa": tmp_path / "items.jsonl"}}
    return [
        ({"text": tmp_path / "empty.txt"}, UsageError, "holds 0 tokens"),
        ({"text": tmp_path / "tiny.txt"}, UsageError, "window is 64; allowed: 2 to the"),
        ({"text": tmp_path / "none.txt"}, ModelFileError, "cannot be read"),
        ({"text": None}, UsageError, "Give a text or a task"),
        (items, ModelFileError, "item 1: KeyError: 'gold'"),
        ({"report": tmp_path / "none" / "out.html"}, UsageError, "report .* cannot be written"),
        ({"report": tmp_path}, UsageError, "report .* cannot be written"),
        ({"csv": tmp_path / "none" / "out.csv"}, UsageError, "csv .* cannot be written"),
        ({"baseline": tmp_path / "no" / "x.baseline"}, UsageError, "baseline .* cannot be written"),
        ({"margin": 0}, UsageError, "margin is 0"),
        ({"quant": "int4"}, UsageError, "given by the candidates"),
        ({"candidates": []}, UsageError, "candidates is"),
        ({"candidates": ["int8", "int8"]}, UsageError, "int8 twice"),
        ({"candidates": ["int3"]}, UsageError, "has 'int3'; allowed: auto"),
        ({"candidates": ["gguf:none.gguf"]}, EdgeLMError, r"none\.gguf"),
        ({"budget": "1MiB"}, EdgeLMError, "does not fit"),
    ]


def test_wrong_use_is_found_before_the_work(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: int) -> None:
        raise AssertionError("the work began")

    counted(monkeypatch, "make_baseline", never)
    counted(monkeypatch, "measure", never)
    for options, error, words in wrong_uses(tmp_path):
        given = options.pop("candidates", ["int8"])
        with pytest.raises(error, match=words) as raised:
            run(assets, *given, **options)
        print(raised.value)
    assert not (tmp_path / "out.html").exists()


def test_outputs_that_exist_are_kept_until_the_end(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")
    with pytest.raises(UsageError):
        run(assets, "int8", csv=out, text=None)
    assert out.read_text() == "before"


def test_command_line(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text, out = (
        assets / "nano" / "llama",
        assets / "nano" / "heldout.txt",
        tmp_path / "o.csv",
    )
    task = f"arc_easy={assets / 'tasks' / 'arc_easy.jsonl'}"
    given = ["compare", model, "--quant", "int8,int4-g32", "--quant", "nf4", "--text", text]
    given += ["--limit", "2", "--window", "64", "--task", task, "--csv", out]
    assert main([*map(str, given), "--json"]) == 0
    told = capsys.readouterr()
    data = json.loads(told.out)
    assert [row["candidate"] for row in data["rows"]] == ["int8", "int4-g32", "nf4"]
    assert "about" in told.err and "3 of 3 candidates and the baseline" in told.err
    with out.open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["candidate"] for row in rows] == ["int8", "int4-g32", "nf4", "noise floor"]
    assert float(rows[1]["kld_mean"]) == data["rows"][1]["text"]["kld_mean"]
    assert rows[0]["arc_easy_paired_verdict"] == "undecided"
    assert main([*map(str, given)]) == 0
    shown = capsys.readouterr()
    for words in ("KLD mean", "paired difference", "same top", "noise floor", "99.9 %"):
        assert words in shown.out
    assert "at 1 pt" in shown.out and "undecided" in shown.out and "candidates" not in shown.err
    for options, code in (
        (["--report", tmp_path / "none" / "x.html"], 2),
        (["--quant", "int3"], 2),
        (["--text", tmp_path / "none"], 4),
        (["--budget", "1MiB"], 3),
    ):
        assert main([*map(str, given), *map(str, options)]) == code
        error = capsys.readouterr().err
        print(error)
    assert "does not fit" in error
