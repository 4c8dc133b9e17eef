"""Rows about what a terminal shows, what the command line does with its streams, and the cache."""

from __future__ import annotations

from mutations.row import Mutation

_BARS = "tests/test_progress.py::"
_STREAMS = "tests/test_standard_streams.py::"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "progress: the loading bar counts what is packed",
        "edgelm/engine/loader.py",
        "            tensors = self._prepared(product)\n            self._tell(product)\n",
        "            tensors = self._prepared(product)\n",
        (f"{_BARS}test_loading_counts_every_byte",),
    ),
    Mutation(
        "progress: the loading bar ends at all",
        "edgelm/engine/loader.py",
        'self.progress("norms", self.plan.weight_bytes, self.plan.weight_bytes)',
        "pass",
        (f"{_BARS}test_loading_counts_every_byte",),
    ),
    Mutation(
        "progress: nothing where nobody watches",
        "edgelm/cli/console.py",
        "        yield lambda title: None\n        return\n",
        "        pass\n",
        (f"{_BARS}test_how_much_is_said",),
    ),
    Mutation(
        "progress: bars while fetching",
        "edgelm/hub/references.py",
        "_progress_bars(logger.isEnabledFor(logging.INFO))",
        "_progress_bars(False)",
        ("tests/test_hub_server.py::test_bars_while_fetching",),
    ),
    Mutation(
        "doctor: clearing the cache forgets the measured tiles",
        "edgelm/reports/diagnosis.py",
        "profiles = (hardware.PROFILE, kernel_choice.KEPT, TILES, ",
        "profiles = (hardware.PROFILE, kernel_choice.KEPT, ",
        ("tests/test_cli.py::test_clear_cache_deletes_its_own_files_only",),
    ),
    Mutation(
        "streams: a failing stdout is an error in one line",
        "edgelm/cli/streams.py",
        "    with redirect_stdout(cast(TextIO, _Output(sys.stdout))):\n",
        "    if True:\n",
        (f"{_STREAMS}test_a_stdout_that_fails_is_one_line",),
    ),
    Mutation(
        "streams: a missing stream is opened",
        "edgelm/cli/main.py",
        "    streams.open_missing()\n",
        "",
        (f"{_STREAMS}test_started_without_a_stream",),
    ),
    Mutation(
        "Ctrl-C: the slow imports end in one line",
        "edgelm/cli/main.py",
        "        signal.signal(signal.SIGINT, leave)\n",
        "        pass\n",
        (f"{_STREAMS}test_ctrl_c_while_importing",),
    ),
    Mutation(
        "lines: U+2028 and its like are text",
        "edgelm/text/lines.py",
        'path.open(encoding=UTF8, newline="\\n")',
        'io.StringIO("\\n".join(path.read_text(UTF8).splitlines()))',
        (
            "tests/test_cli.py::test_prompts_end_at_line_feeds_alone",
            "tests/test_evaluation.py::test_task_files_as_people_have_them",
        ),
    ),
    Mutation(
        "chat: a pipe writes no files",
        "edgelm/cli/chat.py",
        "if found and found[0].in_pipes:",
        "if found:",
        ("tests/test_cli.py::test_a_pipe_is_text",),
    ),
    Mutation(
        "chat: a stopped answer keeps what came",
        "edgelm/generation/dialogue.py",
        'if text or ended in ("stop", "length"):',
        'if ended in ("stop", "length"):',
        ("tests/test_dialogue.py::test_a_stopped_answer_keeps_what_came",),
    ),
    Mutation(
        "chat: the oldest turns make room",
        "edgelm/generation/dialogue.py",
        "            self._make_room()\n",
        "            pass\n",
        ("tests/test_dialogue.py::test_40_turns_where_the_oldest_are_dropped",),
    ),
    Mutation(
        "chat: a question without an answer is given back",
        "edgelm/cli/chat_terminal.py",
        "            self.offered = text  # no",
        "            pass  # no",
        ("tests/test_cli.py::test_a_mistake_on_a_terminal_ends_nothing",),
    ),
    Mutation(
        "chat: Ctrl-C at the prompt clears the line",
        "edgelm/cli/chat_terminal.py",
        "except KeyboardInterrupt:  # at the prompt it clears the line\n                continue",
        "except KeyboardInterrupt:\n                return",
        ("tests/test_chat_terminal.py::test_ctrl_c_clears_the_line",),
    ),
    Mutation(
        "chat: tags are text",
        "edgelm/cli/markdown_writer.py",
        '{"html": False}',
        '{"html": True}',
        ("tests/test_chat_terminal.py::test_markdown_is_shown_whole_whatever_the_pieces",),
    ),
    Mutation(
        "chat: what is no conversation is not overwritten",
        "edgelm/generation/conversation.py",
        "if os.path.lexists(path) and not _is_conversation(path):",
        "if False:",
        ("tests/test_conversation.py::test_what_is_no_conversation_is_not_overwritten",),
    ),
    Mutation(
        "demo: pip imports nothing of the user's folder",
        "edgelm/hub/demo.py",
        '[sys.executable, "-I", "-m"]',
        '[sys.executable, "-m"]',
        ("tests/test_hub.py::test_no_program_comes_out_of_the_users_folder",),
    ),
    Mutation(
        "hub: a mistyped path is not asked for",
        "edgelm/hub/references.py",
        "        _refuse_mistyped(reference)\n",
        "        pass\n",
        ("tests/test_hub.py::test_mistyped_paths_do_not_reach_the_hub",),
    ),
    Mutation(
        "help: the settings' names come without torch",
        "quant/names.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport torch\n",
        ("tests/test_help.py::test_help_imports_nothing_slow",),
    ),
    Mutation(
        "budget: a number without a unit is questioned",
        "edgelm/budget/units.py",
        "if match and not unit and isinstance(text, str)",
        "if False and isinstance(text, str)",
        ("tests/test_options.py::test_counts_and_sizes",),
    ),
    Mutation(
        "quant: other programs' names are told the scheme",
        "quant/recipe.py",
        "if meant := meant_by(given):",
        "if meant := False:",
        ("tests/quant/test_scheme.py::test_names_of_other_programs_are_told_the_scheme",),
    ),
    Mutation(
        "ps: a process that only has the number of the writer is none",
        "edgelm/budget/running.py",
        "late = abs(process.create_time() - held.started) > _SAME_START_S",
        "late = False",
        ("tests/test_running.py::test_dead_processes_and_those_with_their_numbers_are_forgotten",),
    ),
    Mutation(
        "rm: content that another name shares stays",
        "edgelm/hub/inventory.py",
        "if own.blob_path not in shared}",
        "}",
        ("tests/test_fetched_models.py::test_rm_of_a_file_keeps_what_others_share",),
    ),
)
