"""Masks: those that transformers makes, those that the engine attends by, and their drawings."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch

import edgelm
from edgelm.checkpoint.shapes import shape_config
from edgelm.cli.main import main
from edgelm.config import ModelConfig
from edgelm.models import family_of
from edgelm.ops import cache
from edgelm.reports.masks import Cell, layer_masks, mask_of_layer

WINDOW, LENGTHS = 5, (17, 6, 1)
GEMMA2: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
}


def gemma2(**changes: Any) -> ModelConfig:
    data = GEMMA2 | {"model_type": "gemma2"} | changes
    return family_of(data).read_config(data)


def seen(lengths: tuple[int, ...], chunk: int, padding: str = "right") -> list[torch.Tensor]:
    """What is seen in the windowed and in the full layers: [rows, T, T] bool each."""
    made = layer_masks(gemma2(), lengths, chunk, padding)
    assert [(own.window, own.layers) for own in made] == [(WINDOW, (0, 2)), (None, (1, 3))]
    return [torch.stack(own.rows) == Cell.SEEN for own in made]


def of_transformers(lengths: tuple[int, ...], padding: str) -> list[torch.Tensor]:
    """As ``seen``, with the queries that are padding left blank."""
    from transformers import Gemma2Config
    from transformers.masking_utils import (
        create_causal_mask,
        create_sliding_window_causal_mask,
    )

    config = Gemma2Config(**GEMMA2, attn_implementation="eager")
    total = max(lengths)
    tokens = torch.zeros(len(lengths), total, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, total - length if padding == "left" else 0 :][:length] = 1
    masks = []
    for create in (create_sliding_window_causal_mask, create_causal_mask):
        made = create(config, torch.zeros(*tokens.shape, 1), tokens, None)
        assert made is not None and made.dtype == torch.float32
        masks.append((made[:, 0] == 0) & (tokens[:, :, None] == 1))
    return masks


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_equal_to_transformers(chunk: int, padding: str) -> None:
    """Also where the text is three times the window and the ring has gone round."""
    for ours, theirs in zip(
        seen(LENGTHS, chunk, padding), of_transformers(LENGTHS, padding), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_ring_with_one_slot_fewer_is_wrong(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = cache.ring_slots

    def one_fewer(window: int | None, context: int, chunk: int) -> int:
        return enough(window, context, chunk) - (window is not None)

    monkeypatch.setattr(cache, "ring_slots", one_fewer)
    windowed, full = seen(LENGTHS, chunk)
    right_windowed, right_full = of_transformers(LENGTHS, "right")
    lost = int((right_windowed & ~windowed).sum())
    print(f"chunk {chunk}: {lost} keys lost of {int(right_windowed.sum())}")
    assert lost > 0
    assert torch.equal(full, right_full)


@pytest.fixture(scope="module")
def engine_lm(assets: Path) -> Iterator[edgelm.LanguageModel]:
    with oracle.load_exact(assets / "tiny-random" / "gemma2", chunk=5) as lm:
        yield lm


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_engine_attends_by_these_masks(engine_lm: edgelm.LanguageModel, padding: str) -> None:
    lengths = (23, 9)
    tokens = torch.zeros(2, 23, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, 23 - length if padding == "left" else 0 :][:length] = 1
    ids = torch.randint(3, 60, tokens.shape)
    out = engine_lm.forward(ids, attention_mask=tokens, output_attentions=True)
    made = layer_masks(engine_lm.config, lengths, engine_lm.plan.chunk, padding)
    assert {own.window for own in made} == {8, None}
    for layer, attention in enumerate(out.attentions):
        for row, cells in enumerate(mask_of_layer(made, layer).rows):
            attended = attention[row].gt(0).any(0)
            real = tokens[row] == 1
            assert torch.equal(attended[real], (cells == Cell.SEEN)[real]), (layer, row)


def test_cells_say_why_a_key_is_not_seen() -> None:
    windowed, full = layer_masks(gemma2(), (7, 4), chunk=2, padding="left")
    S, L, B, P = Cell.SEEN, Cell.LATER, Cell.BEYOND, Cell.PADDING
    assert windowed.rows[0][6].tolist() == [B, B, S, S, S, S, S]
    assert full.rows[0][5].tolist() == [S, S, S, S, S, S, L]
    assert windowed.rows[1][4].tolist() == [P, P, P, S, S, L, L]
    assert windowed.rows[1][0].tolist() == [P] * 7
    assert windowed.seen(0)[5:] == [[(1, 6)], [(2, 7)]] and windowed.seen(1)[0] == []
    assert (windowed.slots, full.slots) == (WINDOW + 2 - 1, 64)


def test_a_family_without_windows_has_one_mask() -> None:
    data = shape_config("bloom-560m")
    (only,) = layer_masks(family_of(data).read_config(data), [5], chunk=2)
    assert only.layers == tuple(range(24)) and only.kind == "full"
    assert torch.equal(only.rows[0] == Cell.SEEN, torch.ones(5, 5).tril().bool())


def test_misuse_is_refused() -> None:
    config = gemma2()
    with pytest.raises(edgelm.ContextLengthError) as caught:
        layer_masks(config, [65], chunk=8)
    assert (caught.value.given, caught.value.allowed) == (65, 64)
    for lengths, chunk, padding in (([4], 0, "left"), ([], 4, "left"), ([4, 0], 4, "left")):
        with pytest.raises(edgelm.UsageError, match="at least 1"):
            layer_masks(config, lengths, chunk, padding)
    with pytest.raises(edgelm.UsageError, match="allowed: left, right"):
        layer_masks(config, [4], 4, "middle")
    with pytest.raises(edgelm.UsageError, match="layers 0 to 3"):
        mask_of_layer(layer_masks(config, [4], 4), 4)


@pytest.fixture
def nano(assets: Path, tmp_path: Path) -> Path:
    """The nano Gemma 2 without its weights' numbers, its window cut to the text's size."""
    folder = Path(shutil.copytree(assets / "nano" / "gemma2", tmp_path / "nano"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": WINDOW}))
    return folder


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in ("mask", *arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


TEXTS = ("Once upon a time there was a little cat", "The cat ran")


def test_the_terminal_shows_windows_and_padding(
    nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, nano, *TEXTS, "--padding", "left", "--chunk", 4)
    print(out)
    assert code == 0
    assert "window of 5, a ring of 8 slots: layers 0, 2, 4" in out
    assert "full: layers 1, 3, 5" in out
    for mark in ("█ seen", "· comes later", "░ beyond the window", "╳ padding"):
        assert mark in out
    assert "␣upon" in out and "<pad>" in out
    code, out, _ = ran(capsys, nano, TEXTS[0], "--layer", 1)
    assert code == 0 and "window" not in out
    code, out, _ = ran(capsys, nano, TEXTS[0] * 12, "--layer", 0)
    assert code == 0 and "the share of keys seen" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_json_holds_the_runs_of_keys(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, nano, *TEXTS, "--chunk", 3, "--json")
    document = json.loads(out)
    assert code == 0 and document["chunk"] == 3 and document["padding"] == "right"
    first, second = document["rows"]
    count, short = len(first["token_ids"]), len(second["token_ids"])
    assert second["tokens"][short:] == ["<pad>"] * (count - short)
    windowed, full = document["masks"]
    assert (windowed["kind"], windowed["window"], windowed["slots"]) == ("window", 5, 7)
    assert windowed["seen"][0] == [[[max(0, q - 4), q + 1]] for q in range(count)]
    assert full["seen"][1] == [[[0, q + 1]] for q in range(short)] + [[]] * (count - short)


def test_a_picture(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    picture = tmp_path / "mask.png"
    code, _, err = ran(capsys, nano, *TEXTS, "cat $x_1$ 日", "--out", picture)
    assert code == 0 and not err, err
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, err = ran(capsys, nano, *TEXTS, "--out", tmp_path / "no" / "mask.png")
    assert code == 2 and "cannot be written" in err


def test_without_matplotlib_the_extra_is_named(
    nano: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    code, _, err = ran(capsys, nano, *TEXTS, "--out", "mask.png")
    assert code == 2 and "pip install 'edgelm[plot]'" in err


def test_wrong_usage(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("--padding", "middle"), "middle"),
        (("--layer", 6), "layers 0 to 5"),
        (("--chunk", 0), "chunk is 0"),
    ):
        code, _, err = ran(capsys, nano, "Once", *arguments)
        assert code == 2 and message in err, err
    assert ran(capsys, nano, TEXTS[0] * 400)[0] == 2
