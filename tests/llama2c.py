"""karpathy/llama2.c's own file format, read into a Hugging Face folder: for tests alone.

The model file is seven int32 (dim, hidden, layers, heads, key/value heads, vocabulary, context)
and float32 tensors; its rotary pairs are interleaved, so rows of q and k are put into halves.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as proto


def convert(model: Path, tokenizer: Path, folder: Path) -> Path:
    """Write config.json, model.safetensors and tokenizer.model of a llama2.c model."""
    raw = model.read_bytes()
    dim, hidden, layers, heads, groups, vocab, context = struct.unpack_from("7i", raw)
    numbers = torch.from_numpy(np.frombuffer(raw, dtype=np.float32, offset=28).copy())
    size = dim // heads
    taken = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal taken
        count = int(np.prod(shape))
        taken += count
        return numbers[taken - count : taken].view(*shape)

    weights = {"model.embed_tokens.weight": take(vocab, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": _halves(take(layers, heads * size, dim), size),
        "self_attn.k_proj": _halves(take(layers, groups * size, dim), size),
        "self_attn.v_proj": take(layers, groups * size, dim),
        "self_attn.o_proj": take(layers, dim, heads * size),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for name, tensors in stacked.items():
        for layer in range(layers):
            weights[f"model.layers.{layer}.{name}.weight"] = tensors[layer].contiguous()
    weights["model.norm.weight"] = take(dim)
    own = {name: tensor.clone() for name, tensor in weights.items()}
    save_file(own, folder / "model.safetensors")
    config = {
        "model_type": "llama", "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "vocab_size": vocab, "max_position_embeddings": context, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(_sentencepiece(tokenizer.read_bytes(), vocab))
    return folder


def _halves(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Rows 2i and 2i + 1 of each head -> rows i and i + size / 2."""
    layers, count, dim = rows.shape
    return rows.view(layers, -1, size // 2, 2, dim).transpose(2, 3).reshape(layers, count, dim)


def _sentencepiece(raw: bytes, vocab: int) -> bytes:
    """tok512.bin (int32 longest, then float score, int32 length and bytes of each piece)."""
    model, at = proto.ModelProto(), 4
    kinds = {0: 2, 1: 3, 2: 3}  # unknown, then two control pieces
    for index in range(vocab):
        score, length = struct.unpack_from("fi", raw, at)
        text = raw[at + 8 : at + 8 + length].decode()
        at += 8 + length
        kind = kinds.get(index, 6 if 3 <= index < 259 else 1)
        text = f"<0x{index - 3:02X}>" if kind == 6 else text.strip("\n") or text
        text = {0: "<unk>", 1: "<s>", 2: "</s>"}.get(index, text.replace(" ", "\u2581"))
        model.pieces.add(piece=text, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, vocab
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = True, False
    normalizer.escape_whitespaces = True
    return model.SerializeToString()
