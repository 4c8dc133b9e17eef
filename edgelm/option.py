"""Options: declarations of keywords, and errors that suggest the right name for a wrong one.

A ``TypedDict`` whose fields carry an ``Option`` is the one table of a call's keywords: its
signature, its checks, its flags on the command line and their help follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from edgelm.errors import UsageError
from edgelm.values import path, shown


@dataclass(frozen=True)
class Option:
    """One keyword.

    Args:
        help: one or two sentences for ``--help``.
        allowed: the values in words, for help and errors.
        kind: reads a value, as the functions of ``edgelm.values`` do; without it any is taken.
        check: whether a value that was read is allowed; one that it cannot compare is not.
        optional: None stays None, for what is left out.
        per_prompt: a list of prompts may come with a list of values.
        flag: the type that the command line reads; None where it has no such flag.
        flags: names of the flag, if it is not called as the keyword.
    """

    help: str
    allowed: str = ""
    check: Callable[[Any], bool] | None = None
    kind: Callable[[Any], Any] | None = None
    optional: bool = False
    per_prompt: bool = False
    flag: Any = None
    flags: tuple[str, ...] = ()

    def require(self, name: str, value: Any) -> Any:
        """The value as read; UsageError for one that is not allowed."""
        if value is None and self.optional:
            return None
        try:
            found = value if self.kind is None else self.kind(value)
            ok = self.check is None or self.check(found)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: torch's
            ok = False
        if not ok:
            raise UsageError(f"{name} is {shown(value)}; allowed: {self.allowed}.")
        return found


PATH = Option("A file.", "the path of a file", kind=path)


@dataclass(frozen=True)
class Call:
    """A call that takes options: its name, its table and what its own signature adds."""

    name: str
    table: type
    own: Mapping[str, Option] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Every keyword."""
        return (*options_in(self.table), *self.own)

    def require(self, **given: Any) -> list[Any]:
        """Arguments of its own signature as read, in this order; UsageError for a wrong one."""
        return [self.own[name].require(name, value) for name, value in given.items()]


@cache
def options_in(table: type) -> dict[str, Option]:
    """The options of a ``TypedDict`` by name."""
    hints = get_type_hints(table, include_extras=True)
    return {
        name: next(note for note in hint.__metadata__ if isinstance(note, Option))
        for name, hint in hints.items()
    }


def checked(given: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """The options with ``max_tokens`` under its other name.

    Raises:
        UsageError: a name that is not in the table, with the nearest one.
    """
    found = dict(given)
    for other, name in _ACCEPTED.items():
        if other in found and name in options_in(call.table):
            if name in found:
                raise UsageError(f"{other} and {name} are the same option; give one of them.")
            found[name] = found.pop(other)
    for name in found:
        if name not in options_in(call.table):
            raise UsageError(_explained(name, call))
    return found


def declare(call: Call) -> Call:
    """Make a call known, so that other calls say where its keywords belong."""
    _CALLS[call.name] = call
    return call


def _explained(name: str, call: Call) -> str:
    """Advice for a name that ``call`` does not take."""
    if name in _ADVICE:
        return f"{name}: {_ADVICE[name]}."
    places = {known: other for other in _CALLS.values() for known in other.names}
    places |= dict.fromkeys(call.names, call)
    if name in places:
        return f"{name} is an option of {places[name].name}, and not of this call; leave it out."
    meant = _MEANT.get(name) or _nearest(name, call.names) or _nearest(name, places)
    if meant is None:
        allowed = ", ".join(options_in(call.table))
        return f"{name} is not an option of {call.name}; allowed: {allowed}."
    where = "" if meant in call.names else f" That is an option of {places[meant].name}."
    return f"{name}: did you mean {meant}?{where}"


def _nearest(name: str, known: tuple[str, ...] | Mapping[str, Any]) -> str | None:
    """The known name that is spelled most alike, foreign ones counted in."""
    foreign = {other: meant for other, meant in (_MEANT | _ACCEPTED).items() if meant in known}
    found = get_close_matches(name, [*known, *foreign], n=1, cutoff=0.7)
    return foreign.get(found[0], found[0]) if found else None


_CALLS: dict[str, Call] = {}
_ACCEPTED = {"max_tokens": "max_new_tokens"}

# Names that transformers, llama-cpp-python, mlx-lm, vLLM, Ollama and the OpenAI API use.
_MEANT = {
    **dict.fromkeys(
        ("max_length", "max_gen_len", "max_completion_tokens", "max_output_tokens", "n_predict",
         "num_predict"),
        "max_new_tokens",
    ),
    **dict.fromkeys(("min_tokens", "min_length"), "min_new_tokens"),
    **dict.fromkeys(("temp", "sampling_temperature"), "temperature"),
    **dict.fromkeys(("repeat_penalty", "rep_pen"), "repetition_penalty"),
    **dict.fromkeys(("top_logprobs", "output_scores", "return_logprobs"), "logprobs"),
    **dict.fromkeys(("stop_sequences", "stop_sequence", "stop_strings", "stop_words"), "stop"),
    **dict.fromkeys(("stop_tokens", "stop_ids", "stop_token_id"), "stop_token_ids"),
    **dict.fromkeys(("chat_template_kwargs", "template_kwargs"), "template_variables"),
    **dict.fromkeys(("prefill", "continue_final"), "continue_final_message"),
    "functions": "tools",
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "banned_token_ids"), "banned_tokens"),
    **dict.fromkeys(("response_format", "json_schema", "guided_json"), "schema"),
    **dict.fromkeys(("guided_grammar", "lark"), "grammar"),
    **dict.fromkeys(("random_seed", "random_state"), "seed"),
    **dict.fromkeys(("num_return_sequences", "best_of", "num_samples"), "n"),
    **dict.fromkeys(("num_beams", "beam_width", "beam_size"), "beams"),
    **dict.fromkeys(("typical", "typ_p"), "typical_p"),
    "cache_prompt": "keep_prefix",
    "prompt_lookup_num_tokens": "speculate",
    **dict.fromkeys(
        ("n_ctx", "num_ctx", "ctx_size", "max_seq_len", "max_seq_length", "max_model_len",
         "max_kv_size", "max_context"),
        "context",
    ),
    **dict.fromkeys(("n_batch", "n_ubatch", "prefill_step_size"), "chunk"),
    **dict.fromkeys(("batch_size", "max_batch_size", "n_parallel", "max_num_seqs"), "rows"),
    **dict.fromkeys(("n_threads", "num_threads", "num_thread"), "threads"),
    **dict.fromkeys(
        ("cache_type_k", "cache_type_v", "type_k", "type_v", "kv_bits", "kv_cache_dtype",
         "cache_implementation", "cache_dtype"),
        "kv",
    ),
    **dict.fromkeys(("torch_dtype", "precision"), "dtype"),
    **dict.fromkeys(("device_map", "main_gpu"), "device"),
    **dict.fromkeys(
        ("quantization", "quantize", "quantization_config", "bits", "scheme", "recipe"), "quant"
    ),
    **dict.fromkeys(("max_memory", "memory", "memory_limit", "gpu_memory_utilization"), "budget"),
    **dict.fromkeys(("draft_model", "assistant_model", "speculative_model"), "draft"),
    **dict.fromkeys(("num_draft_tokens", "num_assistant_tokens"), "draft_depth"),
    **dict.fromkeys(("offload_folder", "cpu_offload_gb"), "offload"),
    **dict.fromkeys(("local_files_only",), "offline"),
}  # fmt: skip

# Names whose meaning is another value here, or nothing.
_ADVICE = {
    "do_sample": "set temperature above 0 to sample; 0 takes the likeliest token",
    "load_in_4bit": "write quant='int4' (or 'nf4')",
    "load_in_8bit": "write quant='int8'",
    "n_gpu_layers": "write device='cuda', and offload='cpu' for a model that is larger than the "
    "card",
    "eos_token_id": "the model's own end tokens always stop an answer; use stop='text' or "
    "stop_token_ids for more",
    "enable_thinking": "write template_variables={'enable_thinking': …}",
    "documents": "write template_variables={'documents': …}",
    "add_generation_prompt": "an answer always follows; use continue_final_message to go on with "
    "the last message",
    "pad_token_id": "padding is taken care of; leave it out",
    "attention_mask": "give a list of prompts; padding is taken care of",
    "stream": "call stream() instead of generate()",
    "streamer": "call stream() instead of generate()",
    "use_cache": "the cache is always used; leave it out",
    "messages": "call chat() with the messages as its first argument",
    "use_mmap": "the plan decides what is mapped; leave it out",
    "mmap": "the plan decides what is mapped; leave it out",
    "trust_remote_code": "code of a model is never run; leave it out",
    "low_cpu_mem_usage": "one tensor at a time is read anyway; leave it out",
    "attn_implementation": "kernels are chosen by backend; leave it out",
    "flash_attn": "kernels are chosen by backend; leave it out",
    "cache_dir": "set the environment variable EDGELM_CACHE (or HF_HOME)",
    "token": "set the environment variable HF_TOKEN",
    "verbose": "set the level of the logger 'edgelm'",
}
