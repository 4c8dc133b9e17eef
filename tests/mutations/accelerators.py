"""Rows about devices beside the CPU."""

from __future__ import annotations

from mutations.row import Mutation

TESTS = "tests/test_accelerators.py"
SPLIT = "tests/test_split.py"
TRITON = "tests/test_triton_ops.py"
CHOICE = "tests/test_kernel_choice.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "accelerators: cards that are too old are refused",
        "edgelm/machine/accelerators.py",
        "capability < OLDEST_CAPABILITY:",
        "False:",
        (f"{TESTS}::test_a_device_that_does_not_serve_is_refused_in_a_sentence",),
    ),
    Mutation(
        "accelerators: an old driver is told apart",
        "edgelm/machine/accelerators.py",
        'if "too old" in told or "insufficient" in told:',
        "if False:",
        (f"{TESTS}::test_a_device_that_does_not_serve_is_refused_in_a_sentence",),
    ),
    Mutation(
        "accelerators: float16 never for a model that outgrows it",
        "edgelm/planning/settings.py",
        "    return torch.float32 if config.not_in_float16 else torch.float16\n",
        "    return torch.float16\n",
        (f"{TESTS}::test_types_of_activations",),
    ),
    Mutation(
        "accelerators: a step's places are made on the device",
        "edgelm/engine/engine.py",
        "self._positions = torch.arange(plan.context, device=self.device)",
        "self._positions = torch.arange(plan.context)",
        (f"{TESTS}::test_nothing_of_a_step_is_made_on_another_device",),
    ),
    Mutation(
        "accelerators: slopes lie with the scores",
        "edgelm/engine/loader.py",
        "module.move(self._send.device)",
        "pass",
        (f"{TESTS}::test_slopes_go_to_the_device",),
    ),
    Mutation(
        "accelerators: a device has a budget of its own",
        "edgelm/budget/plan.py",
        "            and self.predicted_device_peak_bytes <= self.device_budget_bytes\n",
        "",
        (f"{TESTS}::test_what_the_card_cannot_hold",),
    ),
    Mutation(
        "accelerators: a buffer is used again only once it was sent",
        "edgelm/machine/transfer.py",
        "        if sent is not None:\n            sent.synchronize()\n",
        "",
        (f"{TESTS}::test_a_buffer_is_not_refilled_while_it_is_sent",),
    ),
    Mutation(
        "kernel choice: who disagrees with the reference is left out",
        "quant/backends/timing.py",
        "if not sqnr_db(expected, out) >= _AGREES_DB:",
        "if False:",
        (f"{CHOICE}::test_a_kernel_that_disagrees_is_not_ranked",),
    ),
    Mutation(
        "kernel choice: a card's ranking is its own",
        "edgelm/planning/kernel_choice.py",
        'return f"{card.name}, {_versions()}"',
        "return _versions()",
        (f"{CHOICE}::test_every_device_has_a_ranking_of_its_own",),
    ),
    Mutation(
        "triton: tiles are measured by a load",
        "edgelm/loading.py",
        "kernel_choice.tune(self.plan, cache_dir(), progress)",
        "pass",
        (f"{CHOICE}::test_a_card_s_tiles_are_measured_before_the_weights_are_loaded",),
    ),
    Mutation(
        "triton: what is rotated is cached with its scale",
        "edgelm/ops/kernels/places.py",
        "largest = tl.maximum(magnitude(turned), magnitude(other))",
        "largest = magnitude(turned)",
        (f"{TRITON}::test_rotated_tokens_and_their_values_are_cached",),
    ),
    Mutation(
        "triton: dimensions that are not rotated are cached",
        "edgelm/ops/kernels/places.py",
        "put(straight, largest, cached_keys, key_scales, slot, size, rest, alive)",
        "pass",
        (f"{TRITON}::test_rotated_tokens_and_their_values_are_cached",),
    ),
    Mutation(
        "triton: a ring's positions wrap",
        "edgelm/ops/kernels/decode.py",
        "back = (position - slot + slots) % slots",
        "back = position - slot",
        (f"{TRITON}::test_single_tokens_attend_as_the_reference",),
    ),
    Mutation(
        "triton: prompts see no later token",
        "edgelm/ops/kernels/prefill.py",
        "seen = alive[None, :] & (distance <= 0)",
        "seen = alive[None, :] & (distance <= 1)",
        (f"{TRITON}::test_prompts_attend_as_the_reference",),
    ),
    Mutation(
        "graphs: ids and positions are read anew",
        "edgelm/engine/cuda_graphs.py",
        "self._places[:, :count].copy_(self._host[:, :count], non_blocking=True)",
        "pass",
        (f"{TRITON}::test_captured_steps_say_what_steps_of_their_own_say[llama]",),
    ),
    Mutation(
        "out of memory: it is caught within an answer",
        "edgelm/generation/scheduler.py",
        "with memory_reported(engine.plan, engine.forget):",
        "if True:",
        (f"{TESTS}::test_running_out_of_memory_within_a_request[answered]",),
    ),
    Mutation(
        "out of memory: it is caught within other requests",
        "edgelm/model.py",
        "with memory_reported(self.plan, session.engine.forget):",
        "if True:",
        (f"{TESTS}::test_running_out_of_memory_within_a_request[computed]",),
    ),
    Mutation(
        "split: as few layers on the host as can be",
        "edgelm/planning/host_split.py",
        "count = min(1 + bisect_left(range(1, layers + 1), True, key=fits), layers)",
        "count = layers",
        (f"{SPLIT}::test_no_more_layers_than_needed_stay_on_the_host",),
    ),
    Mutation(
        "split: hidden states come back",
        "edgelm/engine/host_layers.py",
        "if index == self._count - 1 or",
        "if",
        (f"{SPLIT}::test_a_split_model_says_what_the_whole_one_says",),
    ),
    Mutation(
        "split: only what runs natively",
        "edgelm/planning/host_split.py",
        "        raise UsageError(\n            \"offload 'cpu' runs layers natively",
        "        raise RuntimeError(\n            \"offload 'cpu' runs layers natively",
        (f"{SPLIT}::test_what_cannot_be_split_is_refused",),
    ),
)
