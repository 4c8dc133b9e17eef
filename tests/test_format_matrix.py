"""Every file format x every family that has it: the logits of the same weights as safetensors.

A format is written from a tiny random model, beside it the numbers that the file stands for as
plain safetensors. Read as floats both give the same logits bit for bit; multiplied in the file's
own bits (quant="auto") only the order of sums differs, or what quantizing anew costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import packed_folders as packed
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_models import ARCHITECTURES, as_stored, write_gguf_model
from oracle import FAMILIES, family, load_exact, share_of_range
from safetensors.torch import load_file, save_file
from test_other_files import flax_folder, pickled

import edgelm
from edgelm.checkpoint.opening import open_checkpoint

for library in ("compressed_tensors", "bitsandbytes"):
    pytest.importorskip(library)

OWN_BITS_BOUND = 5e-6
"""Kept codes through the reference kernel, against the float32 numbers they stand for."""
ANEW_BOUND = 4e-2
"""Blocks that are quantized anew to 8 bits."""

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
HEADS = {"num_key_value_heads": 2, "head_dim": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": WIDE | HEADS | {"attention_bias": False, "mlp_bias": False},
    "gemma2": WIDE | HEADS | {"query_pre_attn_scalar": 32},  # GGUF has no key for another
    "helium": WIDE | HEADS,
    "persimmon": WIDE,
    "bloom": {"hidden_size": 256, "n_head": 8},
}
"""Rows of whole groups of 128 and blocks of 256; biases are those that GGUF files can have."""

Write = Callable[[Path, Path], tuple[Path, Path]]
"""(model folder, empty place) -> (the file or folder in the format, its numbers as safetensors)."""


@dataclass(frozen=True)
class Format:
    """own_bits: bound under quant="auto", None for floats; as_floats: bound under quant="none"."""

    name: str
    write: Write
    families: tuple[str, ...] = tuple(FAMILIES)
    own_bits: float | None = OWN_BITS_BOUND
    as_floats: float = 0.0


def shards(folder: Path, place: Path) -> tuple[Path, Path]:
    weights = load_file(folder / "model.safetensors")
    names = {name: f"model-{i % 3 + 1}-of-3.safetensors" for i, name in enumerate(weights)}
    for file in set(names.values()):
        save_file({n: weights[n] for n in names if names[n] == file}, place / file)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}), "utf-8")
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    return place, folder


def pickles(folder: Path, place: Path, number: int = 1) -> tuple[Path, Path]:
    return pickled(folder, place / "bin", number), folder


def flax(folder: Path, place: Path) -> tuple[Path, Path]:
    return flax_folder(folder, place / "flax"), folder


def in_blocks(kind: Type, folder: Path, place: Path) -> tuple[Path, Path]:
    path = write_gguf_model(folder, place / "m.gguf", kind)
    return path, as_stored(folder, kind, place / "plain")


def others(variant: packed.Variant, folder: Path, place: Path) -> tuple[Path, Path]:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return variant.write_model(config, load_file(folder / "model.safetensors"), place)


def ours(recipe: Any, folder: Path, place: Path) -> tuple[Path, Path]:
    edgelm.quantize(folder, place / "ours", quant=recipe)
    checkpoint = open_checkpoint(place / "ours")
    (place / "plain").mkdir()
    weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    save_file(weights, place / "plain" / "model.safetensors")
    (place / "plain" / "config.json").write_bytes((folder / "config.json").read_bytes())
    return place / "ours", place / "plain"


def gguf(kind: Type, own_bits: float | None) -> Format:
    write = partial(in_blocks, kind)
    return Format(f"gguf-{kind.name}", write, tuple(ARCHITECTURES), own_bits)


def of_others(variant: packed.Variant, as_floats: float = 0.0) -> Format:
    return Format(variant.name, partial(others, variant), as_floats=as_floats)


FLOAT_EMBED = {"embed": "none", "head": "none"}
OURS: dict[str, Any] = {
    "int4": "int4", "int4-g32-zint": "int4-g32-zint", "int8": "int8", "zfloat": "int4-g64-zfloat",
    "nf4": {"default": "nf4", "overrides": FLOAT_EMBED}, "fp4": "fp4",
}  # fmt: skip
FORMATS = [
    Format("safetensors-shards", shards, own_bits=None),
    Format("pickle", pickles, own_bits=None),
    Format("pickle-shards", partial(pickles, number=3), own_bits=None),
    Format("flax", flax, ("bloom",), own_bits=None),
    *(gguf(kind, None) for kind in (Type.F32, Type.F16, Type.BF16)),
    *(gguf(kind, OWN_BITS_BOUND) for kind in (Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0)),
    *(gguf(kind, OWN_BITS_BOUND) for kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_XS)),
    gguf(Type.MXFP4, ANEW_BOUND),
    *(Format(f"edgelm-{name}", partial(ours, recipe)) for name, recipe in OURS.items()),
    of_others(packed.compressed(4, 32, False)),
    of_others(packed.compressed(4, None, True)),
    of_others(packed.compressed(8, None, True, keeps=())),
    of_others(packed.gptq(4, 128, True)),
    of_others(packed.gptq(4, -1, False)),
    of_others(packed.gptq(8, 128, True)),
    of_others(packed.awq(64)),
    *(of_others(packed.four_bit(kind)) for kind in ("nf4", "fp4")),
    of_others(packed.four_bit("nf4", double=True)),
    # Its values are code x maximum x 1/127, where one scale here is the maximum over 127.
    of_others(packed.eight_bit(), as_floats=OWN_BITS_BOUND),
]
CASES = [(each, name) for each in FORMATS for name in each.families]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    # Rows of 256 weights add up to about one, so that attention is not a choice of one position.
    spread = {"initializer_range": 0.06}
    return {name: family(name, place / name, **SHAPES[name], **spread)[1] for name in FAMILIES}


def logits(load: Callable[..., edgelm.LanguageModel], path: Path, **settings: Any) -> torch.Tensor:
    """Two rows of 20 tokens, longer than Gemma's window, in chunks that do not divide them."""
    ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(1))
    with load(path, context=32, rows=2, chunk=8, allow_pickle=True, **settings) as lm:
        return lm.forward(ids).logits


@pytest.mark.parametrize(("form", "name"), CASES, ids=[f"{f.name}-{n}" for f, n in CASES])
def test_same_logits_as_safetensors(
    form: Format, name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    path, plain = form.write(models[name], tmp_path)
    expected = logits(load_exact, plain)
    share = share_of_range(logits(load_exact, path), expected)
    print(f"{form.name}, {name}, as floats: {share:.2e} of the range (bound {form.as_floats})")
    assert share <= form.as_floats
    if form.own_bits is not None:
        kept = logits(edgelm.load, path, dtype="float32", backend="reference")
        share = share_of_range(kept, expected)
        print(f"{form.name}, {name}, in its bits: {share:.2e} (bound {form.own_bits})")
        assert share <= form.own_bits
