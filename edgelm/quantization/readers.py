"""Programs that read what ``quantize`` writes, and the recipe for each.

tests/test_packed_peers.py reads such folders with transformers, tests/vllm_peer.py with vLLM, and
benches/four_bits.py such files with llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.errors import UsageError
from edgelm.planning.setting_table import QuantChoice

if TYPE_CHECKING:
    from edgelm.models.model_files import ModelFiles
    from edgelm.quantization.conversion import Conversion


@dataclass(frozen=True)
class Reader:
    """A program. ``recipe``: the one of least divergence in about 4 bits that it reads; ``why`` it
    is not int4, in words."""

    recipe: QuantChoice
    why: str
    gguf: bool = False


_EIGHT: Mapping[str, Any] = dict.fromkeys(
    (*(f"layers.*.attn.{name}" for name in ("k", "v", "o", "qkv")), "head"), "int8"
)
READERS: dict[str, Reader] = {
    "transformers": Reader(
        {"default": ["int4-g32", "int8"], "overrides": {**_EIGHT, "embed": "none"}},
        "it has no scales of one byte, and reads mixed schemes of linear layers only",
    ),
    "vllm": Reader(
        {
            "default": ["int4-g32"],
            "overrides": dict.fromkeys(("embed", "head", "layers.*.attn.qkv"), "none"),
        },
        "it reads no packed embeddings nor packed rows of q, k and v in turns, and its CPU kernels "
        "have 4 bits only",
    ),
    "llama.cpp": Reader("int4", "its types have groups of their own sizes", gguf=True),
}


def recipe_for(reader: str, quant: QuantChoice, bpw: float | None, out: Path) -> QuantChoice:
    """The recipe for a program.

    Raises UsageError for another choice of bits beside it, or a name of OUT that it does not read.
    """
    for name, given, usual in (("quant", quant, "auto"), ("bpw", bpw, None)):
        if given != usual:
            raise UsageError(
                f"{name} is {given!r}, and the recipe for {reader} is asked for too; give one."
            )
    wanted, is_gguf = READERS[reader].gguf, out.suffix.lower() == ".gguf"
    if wanted != is_gguf:
        form = "a file: give a name that ends in .gguf" if wanted else "a folder: leave out .gguf"
        raise UsageError(f"{out}: {reader} reads {form}.")
    return READERS[reader].recipe


def cost(reader: str, files: ModelFiles, method: str, written: Conversion, bits: float) -> str:
    """What reading elsewhere costs, in a sentence: bits and expected divergence beside int4's."""
    from edgelm.quantization.bit_budget import BitBudget
    from edgelm.quantization.conversion import plan_conversion

    budget, own = BitBudget(files, method), plan_conversion(files, "int4", method)
    return (
        f"for {reader}: {bits:.2f} bits per weight and an expected divergence of "
        f"{budget.expected_kld(written.recipe):.4f}, where int4 has "
        f"{own.nbytes * 8 / own.parameters:.2f} and {budget.expected_kld(own.recipe):.4f}: "
        f"{READERS[reader].why}"
    )
