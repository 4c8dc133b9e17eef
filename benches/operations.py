"""A step's native operations against torch's, one at a time: how many times faster they are.

    python benches/operations.py [--threads 1] [--rounds 9]

Each round runs both once, one after the other, and takes the processor time of the process, so that
other programs count little; a line has the medians. Attention is compared with
``scaled_dot_product_attention`` in float32, whatever the native cache stores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from provenance import announce
from torch import Tensor

from edgelm.ops import reference
from quant.native import ops

Pair = tuple[str, Callable[[], object], Callable[[], object]]
# Heads, key/value heads, head size: Llama-3.2-1B, Gemma-2-2B, Llama-2-7B, SmolLM2-135M.
HEADS = ((32, 8, 64), (8, 4, 256), (32, 32, 128), (9, 3, 64))
STORAGES = (torch.float32, torch.bfloat16, torch.int8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, ours, theirs in pairs():
        seconds: dict[str, list[float]] = {"native": [], "torch": []}
        for _ in range(options.rounds):
            seconds["native"].append(timed(ours))
            seconds["torch"].append(timed(theirs))
        native_s, torch_s = (statistics.median(seconds[key]) for key in ("native", "torch"))
        row = {"operation": name, "us": round(native_s * 1e6), "torch_us": round(torch_s * 1e6)}
        print(json.dumps(row | {"times_torch": round(torch_s / native_s, 2)}), flush=True)
    return 0


def timed(work: Callable[[], object]) -> float:
    """Processor seconds of one call: the mean over some milliseconds."""
    start, count = time.process_time(), 0
    while count == 0 or time.process_time() - start < 0.004:
        work()
        count += 1
    return (time.process_time() - start) / count


def pairs() -> Iterator[Pair]:
    for tokens in (1, 512):
        yield from row_pairs(tokens)
    for heads in HEADS:
        for queries, keys in ((512, 512), (512, 2048), (1, 128), (1, 4096)):
            for storage in STORAGES:
                yield attention_pair(heads, queries, keys, storage)


def row_pairs(tokens: int) -> Iterator[Pair]:
    """The other operations at Llama-3.2-1B's widths."""
    x, weight, out = torch.randn(tokens, 2048), torch.ones(2048), torch.empty(tokens, 2048)
    gate_up, activated = torch.randn(tokens, 16384), torch.empty(tokens, 8192)
    scratch = torch.empty(2 * tokens)
    yield (
        f"rms_norm {tokens}x2048",
        ops.rms_norm(x, weight, 1e-5, out),
        lambda: reference.rms_norm(x, weight, 1e-5, out, scratch),
    )
    for name in ("silu", "gelu_pytorch_tanh"):
        yield (
            f"gated {name} {tokens}x8192",
            ops.gated_activation(gate_up, name, activated),
            lambda name=name: reference.gated_activation(gate_up, name, activated),
        )
    logits, chosen = torch.randn(tokens, 128256 // tokens), torch.empty(tokens, dtype=torch.int64)
    yield f"argmax {tuple(logits.shape)}", ops.argmax(logits, chosen), lambda: logits.argmax(-1)


def attention_pair(
    heads: tuple[int, int, int], queries: int, keys: int, storage: torch.dtype
) -> Pair:
    query_heads, groups, size = heads
    k, v = torch.randn(2, keys, groups, size)
    q, out = torch.randn(queries, query_heads, size), torch.empty(queries, query_heads, size)
    positions, rows = torch.arange(keys), torch.zeros(keys, dtype=torch.int64)
    cache = empty_cache((1, groups, keys, size), storage)
    ops.store(cache, k, v, rows, positions)()
    nbytes = ops.attention_bytes(queries, query_heads, (keys, groups, size))
    ours = ops.attend(
        q, cache, rows[:queries], positions[-queries:].contiguous(), out,
        torch.empty(nbytes, dtype=torch.uint8), scale=size**-0.5,
    )  # fmt: skip
    by_head = [t.transpose(0, 1).unsqueeze(0).contiguous() for t in (q, k, v)]
    causal = queries == keys
    mask = None if causal or queries == 1 else torch.ones(queries, keys).tril(keys - queries) > 0
    kind = str(storage).removeprefix("torch.")
    return (
        f"attend {query_heads}/{groups}x{size} {queries} of {keys} {kind}",
        ours,
        lambda: F.scaled_dot_product_attention(
            *by_head, attn_mask=mask, is_causal=causal, enable_gqa=True
        ),
    )


def empty_cache(shape: tuple[int, ...], storage: torch.dtype) -> ops.LayerCache:
    memory = [torch.zeros(shape, dtype=storage) for _ in range(2)]
    scales: list[Tensor] = []
    if storage == torch.int8:
        scales = [torch.zeros(*shape[:-1], 1, dtype=torch.bfloat16) for _ in range(2)]
    return ops.LayerCache(*memory, *scales)


if __name__ == "__main__":
    announce()
    raise SystemExit(main())
