"""Rows about the skeleton: Llama, rope, layers."""

from __future__ import annotations

from mutations.row import Mutation

LLAMA = "tests/test_llama_parity.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "llama: attention is causal",
        "edgelm/ops/reference.py",
        "hidden = keys > queries[:, None]",
        "hidden = keys > queries[:, None] + 1",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: scores are scaled",
        "edgelm/ops/reference.py",
        "        scores.mul_(scoring.scale)\n",
        "        pass\n",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the activation is SiLU",
        "edgelm/ops/reference.py",
        "torch.sigmoid(x, out=out).mul_(x)",
        "torch.sigmoid(x, out=out)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the norm's eps",
        "edgelm/ops/reference.py",
        ".add_(eps).rsqrt_()\n    return out.copy_(x)",
        ".rsqrt_()\n    return out.copy_(x)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the norm's weight",
        "edgelm/ops/reference.py",
        "return out.copy_(x).mul_(scale).mul_(weight)",
        "return out.copy_(x).mul_(scale)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: second half of the rotation",
        "edgelm/ops/reference.py",
        "out_second.addcmul_(first, sin)",
        "out_second.addcmul_(first, sin, value=-1)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: q, k and v may have biases",
        "edgelm/models/llama.py",
        'attention_bias=reader.flag("attention_bias"),',
        "attention_bias=False,",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: o may have a bias",
        "edgelm/models/llama.py",
        "out_bias=config.attention_bias",
        "out_bias=False",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: the MLP may have biases",
        "edgelm/models/llama.py",
        'mlp_bias=reader.flag("mlp_bias"),',
        "mlp_bias=False,",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "llama: pairs are halves, not neighbours",
        "edgelm/models/llama.py",
        "Rope(config.rope)",
        "Rope(config.rope, interleaved=True)",
        (f"{LLAMA}::test_variants",),
    ),
    Mutation(
        "rope: linear",
        "edgelm/ops/position.py",
        'return _inverse(rope, rope.theta) / _number(rope, "factor"), 1.0',
        "return _inverse(rope, rope.theta), 1.0",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: dynamic grows beyond the trained length",
        "edgelm/ops/position.py",
        "max(context, trained) / trained",
        "max(trained, trained) / trained",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: yarn keeps fast pairs",
        "edgelm/ops/position.py",
        "plain / factor * (1 - keep) + plain * keep",
        "plain / factor",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: yarn's mscale",
        "edgelm/ops/position.py",
        'if rope.scaling.get("mscale") and rope.scaling.get("mscale_all_dim"):',
        "if False:",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: longrope changes its list with the length",
        "edgelm/ops/position.py",
        'divisors["long_factor" if context > original else "short_factor"]',
        'divisors["short_factor"]',
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: longrope's magnitude",
        "edgelm/ops/position.py",
        "math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0",
        "1.0",
        (f"{LLAMA}::test_ropes",),
    ),
    Mutation(
        "rope: llama3's ramp",
        "edgelm/ops/position.py",
        "return (1 - ramp) * plain / factor + ramp * plain, 1.0",
        "return plain / factor, 1.0",
        (f"{LLAMA}::test_ropes",),
    ),
)
