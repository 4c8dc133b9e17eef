"""benches/before_after.py: what becomes of measured pairs, without measuring."""

from __future__ import annotations

import sys

import before_after
import pytest


def told(decode_tok_s: float, load_s: float, read_gb_s: float = 10.0) -> dict[str, object]:
    return {
        "decode_tok_s": decode_tok_s,
        "prefill_tok_s": 100.0,
        "load_s": load_s,
        "first_token_s": 1.0,
        "read_gb_s": read_gb_s,
        "backend": "native",
    }


def test_ratios_lie_within_pairs_and_above_one_is_faster() -> None:
    """Medians of both sides would call this slower: the machine was, in the last two pairs."""
    found = [
        {"before": told(20.0, 2.0), "after": told(22.0, 1.0)},
        {"before": told(10.0, 4.0), "after": told(11.0, 8.0)},
        {"before": told(30.0, 2.0, 14.0), "after": told(15.0, 1.0, 14.0)},
    ]
    rows = {row["metric"]: row for row in before_after.compared("demo", found)}
    decode, load = rows["decode_tok_s"], rows["load_s"]
    assert decode["pairs"] == [1.1, 1.1, 0.5]
    assert (decode["ratio"], decode["lowest"], decode["highest"]) == (1.1, 0.5, 1.1)
    assert (decode["before"], decode["after"], decode["read_gb_s"]) == (20.0, 15.0, 10.0)
    assert load["pairs"] == [2.0, 0.5, 2.0]
    assert rows["prefill_tok_s"]["ratio"] == 1.0


@pytest.mark.parametrize(("after", "code"), [(19.7, 0), (19.5, 1)])
def test_a_slower_change_ends_with_one(
    after: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"before": told(20.0, 1.0), "after": told(after, 9.0)}
    monkeypatch.setattr(before_after, "pairs", lambda *given: [pair])
    monkeypatch.setattr(before_after.Side, "package", lambda side: str(side.path))
    monkeypatch.setattr(sys, "argv", ["", sys.executable, "--after-path", ".", "--models", "demo"])
    assert before_after.main() == code
    assert ("below the floor of 0.98" in capsys.readouterr().out) == bool(code)


def test_one_installation_is_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(before_after.Side, "package", lambda side: "the same")
    monkeypatch.setattr(sys, "argv", ["", sys.executable])
    with pytest.raises(SystemExit, match="nothing to compare"):
        before_after.main()
