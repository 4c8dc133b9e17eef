"""Rows about layers that are streamed from disk."""

from __future__ import annotations

from mutations.row import Mutation

TESTS = "tests/test_offload.py"
MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "offload: a layer waits for its weights",
        "edgelm/layerstore/layer_stream.py",
        "            slot.start(position, self._files[position])\n        slot.finish()",
        "            slot.start(position, self._files[position])",
        (f"{TESTS}::test_a_slow_disk_is_waited_for",),
    ),
    Mutation(
        "offload: a buffer is read into when its layer is done",
        "edgelm/layerstore/layer_stream.py",
        "        layer.register_forward_hook(lambda *_: self._hand_on(position))\n",
        "",
        (f"{TESTS}::test_buffers_are_read_ahead",),
    ),
    Mutation(
        "offload: a step that broke off is forgotten",
        "edgelm/layerstore/layer_stream.py",
        "if slot.position != position:",
        "if False:",
        (f"{TESTS}::test_a_step_that_broke_off_is_forgotten",),
    ),
    Mutation(
        "offload: the stream goes round",
        "edgelm/layerstore/layer_stream.py",
        "following = position % BUFFERS",
        "following = position",
        (f"{TESTS}::test_buffers_are_read_ahead",),
    ),
    Mutation(
        "offload: closing closes the files",
        "edgelm/model.py",
        "streams = [] if loader.stream is None else [loader.stream.close]",
        "streams = []",
        (f"{TESTS}::test_closing_ends_reads_and_closes_files",),
    ),
    Mutation(
        "offload: as few layers as needed",
        "edgelm/budget/placement.py",
        "count = 1 + bisect_left(",
        "count = 2 + bisect_left(",
        (f"{TESTS}::test_as_many_layers_as_fit_stay",),
    ),
    Mutation(
        "offload: streaming keeps chunks long",
        "edgelm/planning/solver.py",
        "lambda plan: -plan.chunk if _away_bytes(plan) else 0,",
        "lambda plan: 0,",
        (f"{TESTS}::test_what_is_streamed_ranks_behind_what_fits",),
    ),
    Mutation(
        "offload: buffers are planned",
        "edgelm/budget/placement.py",
        "BUFFERS * buffer_bytes(streamed)",
        "buffer_bytes(streamed)",
        (f"{TESTS}::test_the_plan_names_what_streaming_takes",),
    ),
    Mutation(
        "offload: a changed layer file is noticed",
        "edgelm/layerstore/layer_file.py",
        "if block_sum(block) != expected:",
        "if False:",
        (f"{TESTS}::test_a_damaged_file_is_noticed_and_written_anew",),
    ),
    Mutation(
        "offload: a file that changes in use is noticed",
        "edgelm/layerstore/layer_file.py",
        "changed = self._stamp_now() != self._stamp",
        "changed = False",
        (f"{TESTS}::test_a_file_changed_while_in_use_is_an_error",),
    ),
    Mutation(
        "offload: nothing half is left of a full disk",
        "edgelm/layerstore/layer_file.py",
        "beside.unlink(missing_ok=True)",
        "pass",
        (f"{TESTS}::test_a_full_disk_is_one_clear_error",),
    ),
    Mutation(
        "offload: files are written beside",
        "edgelm/layerstore/layer_file.py",
        'beside = path.with_name(f"{path.name}.partial")',
        "beside = path",
        (f"{TESTS}::test_a_kill_while_writing_leaves_nothing_half",),
    ),
    Mutation(
        "offload: a full disk is found out first",
        "edgelm/layerstore/layer_folder.py",
        "        if free < wanted:\n",
        "        if False:\n",
        (f"{TESTS}::test_a_full_disk_is_one_clear_error",),
    ),
    Mutation(
        "offload: files belong to a model's content",
        "edgelm/layerstore/layer_folder.py",
        "(file_stamps(names.checkpoint.files), names.checkpoint.config)",
        "names.checkpoint.config",
        (f"{TESTS}::test_another_model_in_the_same_place_has_its_own_files",),
    ),
    Mutation(
        "offload: files belong to a recipe and its kernels",
        "edgelm/layerstore/layer_folder.py",
        "machine, source, stored, method, matrices]",
        "machine, source, stored, method]",
        (f"{TESTS}::test_another_recipe_has_its_own_files",),
    ),
    Mutation(
        "offload: the cache of layers is bounded",
        "edgelm/layerstore/layer_folder.py",
        "total > LIMIT_BYTES or helps",
        "helps",
        (f"{TESTS}::test_old_models_make_room",),
    ),
    Mutation(
        "offload: cleared with the cache",
        "edgelm/reports/diagnosis.py",
        "    clear_layers(cache)\n",
        "",
        (f"{TESTS}::test_deleted_files_do_not_stop_a_running_model",),
    ),
    Mutation(
        "offload: reports are kept with the files",
        "edgelm/engine/loader.py",
        "            self.report.modules += modules\n",
        "",
        (f"{TESTS}::test_other_schemes",),
    ),
    Mutation(
        "offload: the speed is the disk's",
        "edgelm/machine/disk.py",
        "        seconds.append(streamed_bytes / disk / 1e9)\n",
        "        seconds.append(0.0)\n",
        (f"{TESTS}::test_the_plan_names_what_streaming_takes",),
    ),
    Mutation(
        "offload: the speed is said beforehand",
        "edgelm/loading.py",
        "        _warn_of_streaming(self.plan)\n",
        "",
        (f"{TESTS}::test_the_speed_is_said_beforehand",),
    ),
)
