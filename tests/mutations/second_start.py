"""Rows about the weights that one start lays out and the next one maps."""

from __future__ import annotations

from mutations.row import Mutation

TESTS = "tests/test_second_start.py"
FAMILY = f"{TESTS}::test_the_second_start_gives_the_same_bits[llama]"
MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "second start: weights are kept",
        "edgelm/model.py",
        "loader.load(keep=True)",
        "loader.load()",
        (FAMILY,),
    ),
    Mutation(
        "second start: what is there is not packed again",
        "edgelm/layerstore/layer_folder.py",
        "found |= {} if file is None else {group: file}",
        "pass",
        (FAMILY,),
    ),
    Mutation(
        "second start: weights are mapped, not read",
        "edgelm/layerstore/layer_file.py",
        "return torch.frombuffer(pages, dtype=torch.uint8)",
        "return torch.frombuffer(bytearray(pages), dtype=torch.uint8)",
        (f"{TESTS}::test_files_are_mapped_while_the_model_is_open",),
    ),
    Mutation(
        "second start: mapped weights are the ledger's",
        "edgelm/engine/loader.py",
        "        if not is_streamed(product, self.plan.placement):\n",
        "        if name.startswith('head'):\n",
        (f"{TESTS}::test_files_are_mapped_while_the_model_is_open",),
    ),
    Mutation(
        "second start: a table that was changed is noticed",
        "edgelm/layerstore/layer_file.py",
        "if crc32(text) != checksum:",
        "if False:",
        (f"{TESTS}::test_a_damaged_file_is_noticed_and_made_again",),
    ),
    Mutation(
        "second start: a file of another size is noticed",
        "edgelm/layerstore/layer_file.py",
        ' or told["image_bytes"] != size - _TAIL.size - length',
        "",
        (f"{TESTS}::test_a_damaged_file_is_noticed_and_made_again",),
    ),
    Mutation(
        "second start: files belong to a library",
        "edgelm/layerstore/layer_folder.py",
        "torch.__version__, native.ABI)",
        "torch.__version__)",
        (f"{TESTS}::test_method_recipe_and_library_have_their_own_files",),
    ),
    Mutation(
        "second start: files belong to a method",
        "edgelm/layerstore/layer_folder.py",
        "stored, method, matrices]",
        "stored, matrices]",
        (f"{TESTS}::test_method_recipe_and_library_have_their_own_files",),
    ),
    Mutation(
        "second start: a tenth of the disk stays free",
        "edgelm/layerstore/layer_folder.py",
        "self._make_room(groups, spare)",
        "self._make_room(groups)",
        (f"{TESTS}::test_a_full_disk_costs_the_second_start_only",),
    ),
    Mutation(
        "second start: a disk that refuses is no error",
        "edgelm/layerstore/layer_folder.py",
        "        except OSError as error:  # includes a lock held by another process",
        "        except KeyError as error:",
        (f"{TESTS}::test_a_full_disk_costs_the_second_start_only",),
    ),
    Mutation(
        "second start: another writer is not waited for",
        "edgelm/layerstore/layer_folder.py",
        'with FileLock(self.folder / "lock", timeout=0):',
        'with FileLock(self.folder / "lock", timeout=15):',
        (f"{TESTS}::test_another_writer_is_not_waited_for",),
    ),
    Mutation(
        "second start: mapping counts as use",
        "edgelm/layerstore/layer_folder.py",
        "        with suppress(OSError):\n            os.utime(self.folder)\n",
        "",
        (f"{TESTS}::test_old_models_make_room",),
    ),
    Mutation(
        "second start: files do not go for nothing",
        "edgelm/layerstore/layer_folder.py",
        "helps = free < wanted <= free + left",
        "helps = free < wanted",
        (f"{TESTS}::test_nothing_goes_where_that_makes_no_room",),
    ),
    Mutation(
        "second start: floats alone are not kept",
        "edgelm/layerstore/layer_folder.py",
        "sum(p.nbytes for p in products if p.names not in floats)",
        "sum(p.nbytes for p in products)",
        (f"{TESTS}::test_what_does_not_pay_is_not_kept",),
    ),
    Mutation(
        "second start: little is not kept",
        "edgelm/layerstore/layer_folder.py",
        "quantized_bytes <= PAYS_BYTES or",
        "quantized_bytes == 0 or",
        (f"{TESTS}::test_what_does_not_pay_is_not_kept",),
    ),
    Mutation(
        "second start: weights of no file are not kept",
        "edgelm/layerstore/layer_folder.py",
        " or not file_stamps(names.checkpoint.path)",
        "",
        (f"{TESTS}::test_what_does_not_pay_is_not_kept",),
    ),
    Mutation(
        "second start: a head of floats is not kept",
        "edgelm/layerstore/layer_folder.py",
        ' if group != "head" or ("head",) not in floats]',
        "]",
        (f"{TESTS}::test_a_fresh_head_is_not_kept",),
    ),
    Mutation(
        "second start: the plan knows what is laid out",
        "edgelm/planning/planner.py",
        "runtime + buffers, ready, leaves)",
        "runtime + buffers, (), leaves)",
        (f"{TESTS}::test_the_plan_knows_what_is_laid_out",),
    ),
    Mutation(
        "second start: the loading bar counts what is mapped",
        "edgelm/engine/loader.py",
        "            self._tell(*store.groups[group])\n            file.close()\n",
        "            file.close()\n",
        (f"{TESTS}::test_every_start_counts_every_byte",),
    ),
)
