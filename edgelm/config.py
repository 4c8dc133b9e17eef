"""ModelConfig: the settings common to all families, and a strict reader of ``config.json``.

A key that a family needs has no default; a value that is not supported stops the load with the
key, the value and what is supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgelm.errors import ModelFileError, UnsupportedModelError

_MAX_COUNT = 1 << 31  # no model has a larger count
_MAX_LAYERS = 1 << 12  # objects are created per layer before headers can contradict the count
_MAX_NUMBER = 1e30
# transformers' ACT2FN: the same function, some with a constant of fewer digits.
_SAME_ACTIVATION = {
    "silu": ("swish",),
    "gelu_pytorch_tanh": ("gelu_new", "gelu_fast", "gelu_python_tanh", "gelu_accurate"),
}


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding settings of a checkpoint, with the names of transformers 5.

    ``theta`` is the base, ``rotary_size`` the number of rotated dimensions of a head,
    ``trained_context`` the config's length in tokens, and ``scaling`` holds the keys of the type
    (``factor``, ``low_freq_factor``, ...).
    """

    rope_type: str
    theta: float
    rotary_size: int
    trained_context: int
    scaling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context_limit(self) -> int:
        """Maximum context: ``dynamic`` extends the trained one by ``factor``."""
        factor = self.scaling.get("factor", 1) if self.rope_type == "dynamic" else 1
        return int(self.trained_context * factor)


@dataclass(frozen=True)
class ModelConfig:
    """Model settings. Sizes are in elements, ``max_context`` in tokens; absent token ids are None.

    ``windows`` has an entry per layer: number of tokens a query sees, itself included, or None for
    all. ``scale`` multiplies attention scores. ``*_softcap`` c bounds numbers by c * tanh(x / c).
    ``open_ended`` says that a context beyond ``max_context`` is allowed (ALiBi).
    ``not_in_float16`` is the reason why that dtype is refused.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    max_context: int
    norm_eps: float
    activation: str
    tied: bool
    scale: float
    windows: tuple[int | None, ...]
    rope: RopeParameters | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    qk_norm: bool = False
    keep_normed: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    open_ended: bool = False
    not_in_float16: str = ""
    bos_id: int | None = None
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()


class ConfigReader:
    """Reads keys of a ``config.json`` and checks their type and range.

    Raises:
        ModelFileError: a key is missing or has a value of the wrong type or range.
        UnsupportedModelError: a value is sound but not one of those supported.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def value(self, *keys: str, default: Any = None) -> Any:
        """The first of ``keys`` that is present and not null, else ``default``."""
        for key in keys:
            if self.data.get(key) is not None:
                return self.data[key]
        return default

    def integer(self, *keys: str, default: int | None = None) -> int:
        value = self._required(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_COUNT:
            raise ModelFileError(
                f"config.json: {self._present(keys)} is {value!r}; expected a count above 0."
            )
        return value

    def layers(self, *keys: str) -> int:
        """The number of layers."""
        count = self.integer(*keys)
        if count > _MAX_LAYERS:
            raise ModelFileError(
                f"config.json: {self._present(keys)} is {count}; expected at most {_MAX_LAYERS}."
            )
        return count

    def number(self, *keys: str, default: float | None = None) -> float:
        return _positive(self._present(keys), self._required(keys, default))

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.value(key, default=default)
        if not isinstance(value, bool):
            raise ModelFileError(f"config.json: {key} is {value!r}; expected true or false.")
        return value

    def choice(self, *keys: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self._required(keys, default)
        if value not in allowed:
            raise UnsupportedModelError(
                f"config.json: {self._present(keys)} is {value!r}; supported: {', '.join(allowed)}."
            )
        return str(value)

    def activation(self, key: str, name: str) -> str:
        """``name``, the family's, unless the config has another; some names mean the same."""
        allowed = (name, *_SAME_ACTIVATION.get(name, ()))
        self.choice(key, allowed=allowed, default=name)
        return name

    def token_ids(self, key: str) -> tuple[int, ...]:
        """An id, a list of ids or null, as a tuple."""
        value = self.value(key, default=[])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ModelFileError(f"config.json: {key} is {value!r}; expected token ids.")
        return tuple(ids)

    def token_id(self, key: str) -> int | None:
        ids = self.token_ids(key)
        return ids[0] if ids and ids[0] >= 0 else None

    def special_ids(self) -> dict[str, Any]:
        """bos_id, pad_id and eos_ids of a ModelConfig."""
        return {
            "bos_id": self.token_id("bos_token_id"),
            "pad_id": self.token_id("pad_token_id"),
            "eos_ids": self.token_ids("eos_token_id"),
        }

    def rope(
        self, head_size: int, max_context: int, default_theta: float,
        default_part: float | None = None,
    ) -> RopeParameters:  # fmt: skip
        """Rope in the form of transformers 5 (``rope_parameters``) or older (``rope_scaling``).

        ``rope_scaling`` beside the other is what a user added, and stands above it, as in
        transformers. ``default_part``: of a family that rotates a part of each head; in the others
        ``partial_rotary_factor`` does nothing.
        """
        key = "rope_scaling" if self.data.get("rope_scaling") else "rope_parameters"
        given = self.value(key, default={})
        if not isinstance(given, Mapping):
            raise ModelFileError(f"config.json: {key} is {given!r}; expected an object.")
        fields = {k: v for k, v in given.items() if v is not None}
        old_type = fields.pop("type", "default")
        rope_type = fields.pop("rope_type", old_type)
        theta = fields.pop("rope_theta", self.value("rope_theta", default=default_theta))
        part = fields.pop(
            "partial_rotary_factor", self.value("partial_rotary_factor", default=default_part)
        )
        if default_part is None:
            part = 1.0
        original = self.value("original_max_position_embeddings")
        if original is not None:
            fields["original_max_position_embeddings"] = original
        theta = _positive("rope_theta", theta)
        part = _positive("partial_rotary_factor", part)
        if "factor" in fields:
            fields["factor"] = _positive("the rope's factor", fields["factor"])
        rotary_size = int(head_size * part)
        if rotary_size % 2 or not 0 < rotary_size <= head_size:
            raise ModelFileError(
                f"config.json: partial_rotary_factor {part} of a head of {head_size} rotates "
                f"{rotary_size} dimensions; expected an even number up to {head_size}."
            )
        return RopeParameters(str(rope_type), theta, rotary_size, max_context, fields)

    def _present(self, keys: tuple[str, ...]) -> str:
        """The key that ``value`` reads, for messages."""
        return next((key for key in keys if self.data.get(key) is not None), keys[0])

    def _required(self, keys: tuple[str, ...], default: Any) -> Any:
        value = self.value(*keys, default=default)
        if value is None:
            raise ModelFileError(
                f"config.json has no {' or '.join(keys)}; the file is damaged or of another family."
            )
        return value


def _positive(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < _MAX_NUMBER:
        raise ModelFileError(f"config.json: {key} is {value!r}; expected a number above 0.")
    return float(value)


def head_layout(reader: ConfigReader, hidden_size: int) -> tuple[int, int, int]:
    """(heads, key/value heads, head size), checked against each other."""
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", default=heads)
    if reader.value("head_dim") is None and hidden_size % heads:
        raise ModelFileError(
            f"config.json: hidden_size {hidden_size} does not divide by "
            f"num_attention_heads {heads} and head_dim is absent."
        )
    if heads % kv_heads:
        raise ModelFileError(
            f"config.json: num_attention_heads {heads} does not divide by "
            f"num_key_value_heads {kv_heads}."
        )
    return heads, kv_heads, reader.integer("head_dim", default=hidden_size // heads)
