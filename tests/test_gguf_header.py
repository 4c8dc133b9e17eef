"""GGUF headers that lie: one error each, at once. By hand, since gguf's writer is honest."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.checkpoint.gguf_header import MAX_ARRAY_ENTRIES, read_header
from edgelm.checkpoint.opening import open_checkpoint
from edgelm.errors import ModelFileError, UnsupportedModelError

SIZES = {4: "I", 6: "f", 7: "B", 10: "Q"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key_value(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def tensor_info(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    layout = f"<I{len(dims)}QIQ"
    return text(name) + struct.pack(layout, len(dims), *dims, kind, offset)


def header(
    keys: dict[str, str] | None = None,
    tensors: list[tuple[str, tuple[int, ...], int, int]] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    extra_keys: list[bytes] | None = None,
) -> bytes:
    """A header padded to 32 bytes; `counts` overrides the numbers of tensors and keys."""
    pairs = [key_value(key, 8, text(value)) for key, value in (keys or {}).items()]
    pairs += extra_keys or []
    infos = [tensor_info(*tensor) for tensor in tensors or []]
    tensor_count = len(infos) if counts[0] is None else counts[0]
    key_count = len(pairs) if counts[1] is None else counts[1]
    raw = magic + struct.pack("<IQQ", version, tensor_count, key_count)
    raw += b"".join(pairs) + b"".join(infos)
    return raw + bytes(-len(raw) % 32)


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return key_value("a", 9, struct.pack("<IQ", kind, count) + raw)


HUGE = 1 << 60
W = ("w", (4, 4), 0, 0)
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "short": b"GGUF\3\0\0\0",
    "magic": header(magic=b"GGML"),
    "zeros": bytes(4096),
    "tensor-count": header(counts=(HUGE, None)),
    "tensor-count-max": header(counts=(2**64 - 1, None)),
    "key-count": header(counts=(None, HUGE)),
    "one-key-too-many": header({"a": "b"}, counts=(None, 2)),
    "key-length": header(extra_keys=[struct.pack("<Q", HUGE)]),
    "key-length-max": header(extra_keys=[struct.pack("<Q", 2**64 - 1)]),
    "key-encoding": header(extra_keys=[key_value("a", 8, text("x")).replace(b"a", b"\xff", 1)]),
    "key-twice": header(extra_keys=[key_value("a", 8, text("x"))] * 2),
    "value-type": header(extra_keys=[key_value("a", 13, bytes(8))]),
    "value-length": header(extra_keys=[key_value("a", 8, struct.pack("<Q", HUGE))]),
    "value-encoding": header(extra_keys=[key_value("a", 8, text(b"\xc3"))]),
    "value-bool": header(extra_keys=[key_value("a", 7, b"\2")]),
    "array-of-arrays": header(extra_keys=[array(9, 1, struct.pack("<IQ", 4, 0))]),
    "array-type": header(extra_keys=[array(99, 1, bytes(8))]),
    "array-count": header(extra_keys=[array(4, HUGE)]),
    "array-count-max": header(extra_keys=[array(0, 2**64 - 1)]),
    "array-of-strings-count": header(extra_keys=[array(8, HUGE)]),
    "array-of-strings-length": header(extra_keys=[array(8, 2, text("x") + b"\xff" * 8)]),
    "array-of-strings-encoding": header(extra_keys=[array(8, 1, text(b"\xff"))]),
    "array-of-strings-cut": header(extra_keys=[array(8, 6, text("x" * 40))]),
    "array-of-bools": header(extra_keys=[array(7, 2, b"\1\7")]),
    "array-entries": header(extra_keys=[array(0, MAX_ARRAY_ENTRIES + 1)])
    + bytes(MAX_ARRAY_ENTRIES + 1),
    "alignment-zero": header(extra_keys=[key_value("general.alignment", 4, bytes(4))]),
    "alignment-odd": header(extra_keys=[key_value("general.alignment", 4, struct.pack("<I", 48))]),
    "alignment-text": header({"general.alignment": "32"}),
    "alignment-huge": header(
        None, [W], extra_keys=[key_value("general.alignment", 10, struct.pack("<Q", 1 << 63))]
    )
    + bytes(64),
    "tensor-twice": header(None, [W, W]) + bytes(64),
    "tensor-name-length": header(counts=(1, None)) + struct.pack("<Q", HUGE) + bytes(64),
    "dimensions-none": header(None, [("w", (), 0, 0)]) + bytes(64),
    "dimensions-five": header(None, [("w", (1,) * 5, 0, 0)]) + bytes(64),
    "dimensions-huge": header(counts=(1, None))[:24]
    + text("w")
    + struct.pack("<I", 2**32 - 1)
    + bytes(64),
    "size-zero": header(None, [("w", (4, 0), 0, 0)]) + bytes(64),
    "size-huge": header(None, [("w", (HUGE, HUGE), 0, 0)]) + bytes(64),
    "size-wraps": header(None, [("w", (1 << 32, 1 << 32), 0, 0)]) + bytes(64),
    "half-block": header(None, [("w", (48, 2), 2, 0)]) + bytes(64),
    **{
        f"half-block-{kind}": header(None, [("w", (320, 2), kind, 0)]) + bytes(1024)
        for kind in (12, 13, 14, 23)
    },
    "offset-huge": header(None, [("w", (4, 4), 0, HUGE)]) + bytes(64),
    "offset-max": header(None, [("w", (4, 4), 0, 2**64 - 32)]) + bytes(64),
    "offset-unaligned": header(None, [("w", (4, 4), 0, 4)]) + bytes(128),
    "overlap": header(None, [W, ("v", (4, 4), 0, 32)]) + bytes(128),
    "same-place": header(None, [W, ("v", (4, 4), 0, 0)]) + bytes(128),
    "weights-cut": header(None, [W]) + bytes(63),
}
FOREIGN: dict[str, bytes] = {
    "version-1": header(version=1),
    "version-4": header(version=4),
    "big-endian": header(version=3 << 24),
    "tensor-type": header(None, [("w", (4, 4), 4_000_000_000, 0)]) + bytes(64),
    "type-q4_k": header(None, [("w", (256, 4), 12, 0)]) + bytes(4096),
}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        *(pytest.param(raw, ModelFileError, id=name) for name, raw in DAMAGED.items()),
        *(pytest.param(raw, UnsupportedModelError, id=name) for name, raw in FOREIGN.items()),
    ],
)
def test_lying_headers_cost_nothing(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    """Each lie ends in one error of its class, at once and without memory in the lie's size."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(error, match=r"m\.gguf") as caught:
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak} bytes: {caught.value}")
    assert peak < 1 << 20


@pytest.mark.parametrize("name", [name for name in DAMAGED if "half-block-" in name])
def test_rows_are_whole_blocks(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.gguf").write_bytes(DAMAGED[name])
    with pytest.raises(ModelFileError, match=r"'w' of type I?Q\d_\w+ .*\[2, 320\].* blocks of 256"):
        read_header(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", [name for name in DAMAGED if "count" in name])
def test_counts_are_doubted_before_the_first_entry(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.gguf").write_bytes(DAMAGED[name])
    with pytest.raises(ModelFileError, match=r"claims \d+ .*cannot hold them"):
        read_header(tmp_path / "m.gguf")


def test_honest_headers_are_read(tmp_path: Path) -> None:
    """What the lies above were made from opens: the tests fail for the lie, not for the frame."""
    path = tmp_path / "m.gguf"
    for version in (2, 3):
        path.write_bytes(header({"a": "b"}, [W, ("v", (8,), 0, 64)], version=version) + bytes(96))
        read = read_header(path)
        assert read.metadata == {"a": "b"}
        assert [read.tensors[name].shape for name in ("w", "v")] == [(4, 4), (8,)]
        assert read.tensors["v"].offset == path.stat().st_size - 32
    values = [array(kind, 2, struct.pack(f"<2{code}", 1, 0)) for kind, code in SIZES.items()]
    for value, expected in zip(values, ([1, 0], [1.0, 0.0], [True, False], [1, 0]), strict=True):
        path.write_bytes(header(extra_keys=[value]))
        found = read_header(path).metadata["a"]
        assert found == expected and type(found[0]) is type(expected[0])


def test_quantized_vector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = {"general.architecture": "llama"}
    path.write_bytes(header(keys, [("output_norm.weight", (32,), 8, 0)]) + bytes(34))
    with pytest.raises(UnsupportedModelError, match=r"only matrices"):
        open_checkpoint(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes_never_crash(data: st.DataObject) -> None:
    """Any three bytes of a header replaced: a sound read or an error of ours, nothing else."""
    good = header(
        {"general.architecture": "llama"},
        [("output_norm.weight", (8,), 0, 0), ("output.weight", (32, 2), 2, 32)],
        extra_keys=[array(8, 2, text("ab") + text("c"))],
    ) + bytes(96)
    content = bytearray(good)
    for _ in range(3):
        content[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(content)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.names():
                checkpoint.read(name)
            _ = checkpoint.config
        except (ModelFileError, UnsupportedModelError):
            pass
