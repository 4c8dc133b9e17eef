"""Names that users write: of schemes, recipes, methods and backends.

Nothing here imports torch, which takes seconds: help and wrong usage must not wait for it.
"""

from __future__ import annotations

import re

RECIPE_NAMES = ("none", "int4", "int5", "int6", "nf4")
METHOD_NAMES = ("rtn", "mse", "hqq")
CALIBRATED_NAMES = ("gptq",)
DEFAULT_METHOD = "mse"  # benches/LOG.md has what it gains on small models and on a real one
BACKENDS = ("native", "triton", "torch", "reference", "bitsandbytes", "torchao")
# GGUF's names of types that are one scheme, value for value.
GGUF_NAMES = {
    "q4_0": "int4-g32",
    "q4_1": "int4-g32-zfloat",
    "q5_0": "int5-g32",
    "q5_1": "int5-g32-zfloat",
    "q8_0": "int8-g32",
    "q4_k": "int4-g32-zfloat-coded",
    "q5_k": "int5-g32-zfloat-coded",
    "q6_k": "int6-g16-coded",
    "iq4_nl": "iq4-g32",
    "iq4_xs": "iq4-g32-coded",
}
SCHEME_TEXTS = (
    "int4|int5|int6|int8-g16|g32|g64|g128|row, int8, each also with -zint or -zfloat; nf4, fp4, "
    "nf4-g32|g128, iq4-g32; in groups also -coded for scales of one byte; another type of scales "
    f"than usual by -sfloat32, -sbfloat16 or -sfloat16; GGUF's {', '.join(GGUF_NAMES)}"
)

# What llama.cpp calls files whose matrices have several types, and other programs' names.
_MIXTURES = {"q4_k": "int4", "q5_k": "int5", "iq4": "int4", "q2_k": "int4", "q3_k": "int4"}
_MIXTURES |= {"iq1": "int4", "iq2": "int4", "iq3": "int4", "q6_k": "int6", "q8_k": "int8"}
_FOREIGN = {
    **dict.fromkeys(("f16", "fp16", "bf16", "f32", "fp32", "half", "no", "off", "16bit"), "none"),
    **dict.fromkeys(("4", "4bit", "4-bit", "w4a16", "q4", "q4f16_1", "awq", "gptq"), "int4"),
    **dict.fromkeys(("2", "3", "2bit", "3bit", "q2", "q3", "int2", "int3", "mxfp4"), "int4"),
    **dict.fromkeys(("5", "5bit", "5-bit", "q5"), "int5"),
    **dict.fromkeys(("6", "6bit", "6-bit", "q6"), "int6"),
    **dict.fromkeys(("8", "8bit", "8-bit", "w8a8", "w8a16", "q8", "fp8"), "int8"),
}


def meant_by(name: str) -> str | None:
    """The recipe or scheme that another program's name means here; None for any other text."""
    text = name.strip().lower()
    if text in RECIPE_NAMES or text in GGUF_NAMES:  # only written otherwise
        return text if text != name else None
    kind = re.fullmatch(r"(?:ud-)?(i?q[1-8](?:_k)?)_(?:xxs|xs|s|m|l|xl|nl)(?:_[slm])?", text)
    return (_FOREIGN | _MIXTURES).get(text) or (kind and _MIXTURES.get(kind[1])) or None
