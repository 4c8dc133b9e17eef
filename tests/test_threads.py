"""Cores to use: the option, the variable and the quotas of containers, under the same limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import edgelm
from edgelm.machine import cgroups, hardware

CORES = os.cpu_count() or 1


@pytest.fixture
def nano(assets: Path) -> Path:
    return assets / "nano" / "llama"


@pytest.mark.parametrize("given", ["999", "0", "-1", "1.5", "two", str(10**30), " ", "²", "true"])
def test_the_variable_obeys_the_limits_of_the_option(
    nano: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("EDGELM_THREADS", given)
    allowed = rf"^EDGELM_THREADS is .*; allowed: 1 to {CORES} on this machine\.$"
    with pytest.raises(edgelm.UsageError, match=allowed):
        edgelm.load(nano, quant="none", context=16)
    edgelm.load(nano, quant="none", context=16, threads=1).close()  # what is given wins


@pytest.mark.parametrize("given", ["1", str(CORES), ""])
def test_the_variable_is_taken(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.delenv("EDGELM_THREADS", raising=False)
    usual = hardware.default_threads()
    monkeypatch.setenv("EDGELM_THREADS", given)
    assert hardware.default_threads() == (int(given) if given else usual)


def quota(text: str) -> dict[str, str]:
    """Files of a group's quota: of version 2 ("200000 100000"), or of version 1 ("-1/100000")."""
    if "/" not in text:
        return {"cpu.max": f"{text}\n"}
    return dict(zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), text.split("/"), strict=True))


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("0::/a/b\n", {"a/b": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a": "150000 100000", "a/b": "max 100000"}, 1.5),
        ("0::/a/b\n", {"": "50000 100000", "a/b": "200000 100000"}, 0.5),
        ("0::/a/b\n", {"a": "max 100000", "a/b": "max 100000", "c": "1000 100000"}, None),
        ("0::/not/seen/inside\n", {"": "300000 100000"}, 3.0),
        ("4:cpu,cpuacct:/a\n", {"cpu,cpuacct/a": "200000/100000"}, 2.0),
        ("4:cpu,cpuacct:/a\n0::/\n", {"cpu": "100000/50000", "cpu/a": "-1/100000"}, 2.0),
        ("4:cpuacct:/a\n3:cpuset:/a\n", {"cpu/a": "100000/100000"}, None),
        ("1:name=systemd:/a\n0::/a\n", {"unified/a": "400000 100000"}, 4.0),
        ("0::/a\n", {"a": "lots 100000"}, None),
        ("0::/a\n", {"a": "100000 0"}, None),
        ("0::/a\n", {"a": ""}, None),
        ("0::/a\n", {}, None),
        ("", {"": "100000 100000"}, None),
    ],
)
def test_quotas_of_groups_bound_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, groups: dict[str, str],
    expected: float | None,
) -> None:  # fmt: skip
    """Of the own group and those around it, of both versions; always at least one thread."""
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "own")
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path / "mount")
    for group, text in groups.items():
        folder = tmp_path / "mount" / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in quota(text).items():
            (folder / name).write_text(content)
    assert cgroups.processors() == expected
    monkeypatch.delenv("EDGELM_THREADS", raising=False)
    monkeypatch.setattr(hardware.torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    assert hardware.default_threads() == (5 if expected is None else max(1, int(expected)))
    monkeypatch.setattr(hardware.torch, "get_num_threads", lambda: 1)
    assert hardware.default_threads() == 1
