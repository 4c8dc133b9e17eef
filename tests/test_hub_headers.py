"""Plans of models on the Hub: ranged reads of headers, the same plan, and no weight fetched.

The stand-in Hub of ``test_hub_server`` counts what it sends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import packed_folders
import pytest
from conftest import TINY_LLAMA, tiny_llama_weights
from safetensors.torch import save, save_file
from test_hub_server import Hub, server  # noqa: F401  (a fixture)

import edgelm

PROGRAM = """
import json, sys
import edgelm
from edgelm.errors import EdgeLMError
try:
    plan = edgelm.plan(sys.argv[1], **json.loads(sys.argv[2]))
    print(json.dumps(plan.to_dict()))
except EdgeLMError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""
SETTINGS = {"context": 64, "budget": "8GiB"}


def planned(server: Hub, home: Path, reference: str, **settings: Any) -> dict[str, Any]:  # noqa: F811
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(edgelm.__file__).parent.parent),
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, reference, json.dumps(SETTINGS | settings)]
    done = subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=120,
        cwd=Path(edgelm.__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert not list(home.rglob("*.safetensors")), "weights were put into the Hub's cache"
    return found


def same(there: dict[str, Any], here: edgelm.Plan) -> None:
    """All of a plan but what the process itself takes."""
    told = here.to_dict()
    for key in ("scheme", "kv", "bits_per_weight", "weight_bytes", "expected_kld"):
        assert there[key] == told[key], key
    assert [p["names"] for p in there["products"]] == [list(p["names"]) for p in told["products"]]
    assert [p["stored"] for p in there["products"]] == [p["stored"] for p in told["products"]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weight_bytes(files: dict[str, bytes]) -> int:
    return sum(len(content) for name, content in files.items() if "safetensors" in name)


def test_a_folder_of_floats(server: Hub, assets: Path, tmp_path: Path) -> None:  # noqa: F811
    """Megabytes of weights, and some kilobytes that are sent."""
    folder = assets / "nano" / "llama"
    server.files = files_of(folder)
    there = planned(server, tmp_path, "owner/model")
    print(f"sent {server.sent} bytes of {weight_bytes(server.files)}")
    assert server.sent < 100_000 < weight_bytes(server.files) / 50
    same(there, edgelm.plan(folder, **SETTINGS))
    server.asked.clear()
    assert planned(server, tmp_path, "owner/model@v1")["scheme"] == there["scheme"]
    assert all("/" + "a" * 40 + "/" in path for _, path, _ in server.asked if "/resolve/" in path)


def test_shards_and_long_headers(server: Hub, tmp_path: Path) -> None:  # noqa: F811
    """The second shard's header is longer than what is read at first."""
    weights = tiny_llama_weights(TINY_LLAMA)
    names = sorted(weights)
    halves = {"model-1.safetensors": names[:4], "model-2.safetensors": names[4:]}
    folder = tmp_path / "model"
    folder.mkdir()
    for file, own in halves.items():
        notes = {
            f"note {i}": "x" * 100 for i in range(1000 if file == "model-2.safetensors" else 0)
        }
        save_file({name: weights[name] for name in own}, folder / file, notes)
    index = {"weight_map": {name: file for file, own in halves.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    server.files = files_of(folder)
    same(planned(server, tmp_path / "home", "owner/model"), edgelm.plan(folder, **SETTINGS))


@pytest.mark.parametrize("kind", ["gptq", "compressed", "bnb-nf4"])
def test_packed_folders(server: Hub, tmp_path: Path, kind: str) -> None:  # noqa: F811
    """What says how weights are packed stands in small tensors, which are fetched."""
    for library in ("compressed_tensors", "bitsandbytes"):
        pytest.importorskip(library)
    variant = next(v for v in packed_folders.VARIANTS if v.name.startswith(kind))
    folder = variant.write(tmp_path)[0]
    server.files = files_of(folder)
    there = planned(server, tmp_path / "home", "owner/model")
    same(there, edgelm.plan(folder, **SETTINGS))
    assert any(product["stored"] for product in there["products"])


def test_a_gguf_file(server: Hub, demo: Path, tmp_path: Path) -> None:  # noqa: F811
    """The vocabulary is part of the header; what is sent is at most twice as long."""
    from edgelm.checkpoint.gguf_header import read_header

    server.files = {"Some.Q4_1.gguf": demo.read_bytes()}
    there = planned(server, tmp_path, "owner/model/Some.Q4_1.gguf")
    header = min(tensor.offset for tensor in read_header(demo).tensors.values())
    print(f"sent {server.sent} bytes; the header has {header} of {demo.stat().st_size}")
    assert server.sent <= 2 * header < demo.stat().st_size / 10
    same(there, edgelm.plan(demo, **SETTINGS))
    assert "FILE.gguf" in planned(server, tmp_path, "owner/model")["error"]
    missing = planned(server, tmp_path, "owner/model/Other.gguf")["error"]
    assert missing.startswith("ModelFileError: owner/model has no file Other.gguf")


@pytest.mark.parametrize("case", range(2))
def test_headers_that_lie(server: Hub, tmp_path: Path, case: int) -> None:  # noqa: F811
    good = save(tiny_llama_weights(TINY_LLAMA))
    longer_than_the_file = (1 << 26).to_bytes(8, "little") + good[8:]
    no_json = good[:8] + b"[" * 200 + good[208:]
    server.files = {
        "model.safetensors": (longer_than_the_file, no_json)[case],
        "config.json": json.dumps(TINY_LLAMA).encode(),
    }
    refused(server, tmp_path, "owner/model", "damaged")


def test_gguf_headers_that_lie(server: Hub, tmp_path: Path) -> None:  # noqa: F811
    """Of what claims gigabytes no gigabyte is fetched."""
    start = b"GGUF" + (3).to_bytes(4, "little")
    one_key = start + bytes(8) + (1).to_bytes(8, "little")
    server.files = {"F.gguf": one_key + (1 << 32).to_bytes(8, "little") + bytes(1 << 20)}
    server.claimed = {"F.gguf": 1 << 34}
    refused(server, tmp_path, "owner/model/F.gguf", "claims")
    server.files = {"F.gguf": start + b"\xff" * (1 << 20)}
    refused(server, tmp_path, "owner/model/F.gguf", "claims")


def refused(server: Hub, home: Path, reference: str, words: str) -> None:  # noqa: F811
    said = planned(server, home, reference)["error"]
    print(f"sent {server.sent}: {said}")
    assert said.startswith("ModelFileError") and words in said
    assert server.sent < 2 << 20


@pytest.mark.parametrize("claimed", [1 << 44, 1 << 62])
def test_sizes_that_lie(server: Hub, tmp_path: Path, claimed: int) -> None:  # noqa: F811
    """A listing may say anything; no byte of it is taken."""
    content = save(tiny_llama_weights(TINY_LLAMA))
    server.files = {
        "model.safetensors": content,
        "config.json": json.dumps(TINY_LLAMA).encode(),
    }
    server.claimed = {"model.safetensors": claimed}
    said = planned(server, tmp_path, "owner/model")["error"]
    print(said)
    assert "Error: " in said and server.sent < 2 * len(content)


def test_a_server_without_ranges(server: Hub, assets: Path, tmp_path: Path) -> None:  # noqa: F811
    """It begins to send everything; the reader hangs up."""
    folder = assets / "nano" / "llama"
    server.files = files_of(folder)
    server.ignores_ranges = True
    same(planned(server, tmp_path, "owner/model"), edgelm.plan(folder, **SETTINGS))
    print(f"sent {server.sent} bytes")
    assert server.sent < weight_bytes(server.files)
