"""What cannot be had is refused: exit code, one message, and no memory in the size of the lie."""

from __future__ import annotations

import json
import platform
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from memory_cgroup import memory_cgroup, run_inside
from test_cli import Run, edit_config, nano, run  # noqa: F401  (fixtures)

from edgelm.machine import hardware

MIB = 1 << 20
TAKEN_BYTES = 48 * MIB  # code pages of libraries that a command imports, and no more
WEIGHTS = "model.safetensors"


def lie_of_header(folder: Path) -> None:
    """A header that is longer than any file."""
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((1 << 62).to_bytes(8, "little") + data[8:])


def lie_of_tensor(folder: Path) -> None:
    """One tensor claims 4 TiB, and so does its place in the file."""
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    own = header["model.embed_tokens.weight"]
    own["shape"][0] = 1 << 33
    own["data_offsets"][1] = own["data_offsets"][0] + (1 << 42)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def gguf(tensors: int, keys: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "lie.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + bytes(256))
        return path

    return write


def count(**changes: int) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


Change = Callable[[Path], Any]
CASES: dict[str, tuple[Change | None, tuple[str, ...], int, str]] = {
    "header of 2**62": (lie_of_header, (), 4, "damaged or was cut off"),
    "tensor of 4 TiB": (lie_of_tensor, (), 4, "damaged or was cut off"),
    "gguf of 2**60 tensors": (gguf(1 << 60, 1), (), 4, "claims 1152921504606846976 tensors"),
    "gguf of 2**60 keys": (gguf(0, 1 << 60), (), 4, "claims 1152921504606846976"),
    "2**40 layers": (count(num_hidden_layers=1 << 40), (), 4, "num_hidden_layers"),
    "vocabulary of 2**31": (count(vocab_size=2**31 - 1), (), 4, "embed_tokens"),
    "2**31 wide": (count(intermediate_size=2**31 - 1), (), 4, "gate_proj"),
    "context of 10**30": (None, ("--context", "1" + "0" * 30), 2, "allowed: auto, or a count"),
    "context of 10**9": (None, ("--context", "1000000000"), 2, "beyond the model's"),
    "budget 0": (None, ("--budget", "0"), 2, "write it as 6GiB"),
    "budget -1": (None, ("--budget", "-1"), 2, "write it as 6GiB"),
    "budget 0%": (None, ("--budget", "0%"), 2, "write it as 6GiB"),
    "budget of 400 digits": (None, ("--budget", "9" * 400), 2, "write it as 6GiB"),
    "below the runtime": (None, ("--budget", "20MiB"), 3, "take before any model"),
    "of one byte": (None, ("--budget", "1B"), 3, "take before any model"),
}


@pytest.mark.parametrize("verb", ["plan", "generate"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_taken_for_what_is_refused(
    nano: Path, run: Run, case: str, verb: str  # noqa: F811
) -> None:  # fmt: skip
    change, options, code, words = CASES[case]
    changed = change(nano) if change else None
    prompt = ("Once",) if verb == "generate" else ()
    before = begin_peak()
    ran = run(verb, changed or nano, *prompt, *options)
    taken = hardware.peak_resident_bytes() - before
    print(f"{case}: {taken / MIB:.1f} MiB, {ran.code}: {ran.err}{ran.out}")
    assert ran.code == code and words in " ".join((ran.err + ran.out).split())
    assert taken < TAKEN_BYTES


def test_10_tib_are_planned_and_not_taken(
    nano: Path, run: Run, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """A budget is a limit: a small model takes what it needs, a large one is refused."""
    before = begin_peak()
    assert run("plan", nano, "--budget", "10TiB", "--rows", 10**6, "--kv", "float32").code == 0
    large = run("plan", nano, "--budget", "10TiB", "--rows", 10**9, "--kv", "float32", "--json")
    assert large.code == 3 and large.document["predicted_peak_bytes"] > 10 << 40
    ran = run("generate", nano, "Once", "--budget", "10TiB", "--max-tokens", 2)
    assert ran.code == 0
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 1 << 20)
    ran = run("generate", nano, "Once", "--budget", "10TiB")
    print(ran.err)
    assert ran.code == 3 and "beyond what this machine has" in " ".join(ran.err.split())
    assert hardware.peak_resident_bytes() - before < TAKEN_BYTES


def begin_peak() -> int:
    """Resident bytes now, from which the peak is counted anew; Linux alone can do that."""
    if platform.system() != "Linux":
        pytest.skip("the peak of a part of a process is Linux's to tell")
    Path("/proc/self/clear_refs").write_text("5")
    return hardware.resident_bytes()


OTHERS = """
import json, subprocess, sys
import torch
import edgelm
from edgelm.reports.benchmark import random_model
from edgelm.machine.hardware import available_memory_bytes

HOG = '''
import sys
taken = b"1" * int(sys.argv[1])
print(len(taken), flush=True)
sys.stdin.read()
'''
config = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 4,
    "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 8,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
}
model, others = random_model(config, "none"), []

def take_all_but(left):
    # Another process takes the group's memory and keeps it.
    command = [sys.executable, "-c", HOG, str(available_memory_bytes() - (left << 20))]
    hog = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert hog.stdout.readline(), "the other process was killed"
    others.append(hog)

def told(**settings):
    with edgelm.load(model, threads=1, **settings) as lm:
        ids = lm.forward(torch.tensor([[5, 6, 7]])).logits[0].argmax(-1).tolist()
        return [lm.plan.scheme, lm.plan.kv, lm.plan.context, lm.plan.budget_bytes, ids]

found = {"alone": told()}
try:  # between the plan and the second matrix
    told(progress=lambda *_: others or take_all_but(30))
except edgelm.DoesNotFitError as error:
    found["refused"] = [error.exit_code, str(error)]
others.pop().communicate()
take_all_but(150)
found["planned again"] = told()
others.pop().communicate()
found["after"] = told()
print(json.dumps(found))
"""


def test_another_process_takes_the_memory() -> None:
    """In a memory cgroup, where the kernel would kill: refused, planned anew, served afterwards."""
    with memory_cgroup(700 * MIB) as group:
        found = json.loads(run_inside(group, OTHERS))
    for name, own in found.items():
        print(name, own)
    code, message = found["refused"]
    assert code == 3 and "other processes took memory after the plan was made" in message
    alone, again, after = found["alone"], found["planned again"], found["after"]
    assert again[3] < alone[3] - 100 * MIB and again[:3] != alone[:3]
    assert len(again[4]) == 3 and after[:3] == alone[:3] and after[4] == alone[4]
