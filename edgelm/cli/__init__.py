"""Command line: one module per command. It parses, calls and prints, and computes nothing itself.

Modules:
    main: the ``edgelm`` command, exit codes, and errors without tracebacks.
    streams: stdin, stdout and stderr that may be missing, closed or full.
    commands: the verbs, and what runs one of them.
    options, examples: groups of options that commands share, and the examples of their help.
    opening: from arguments to model files and to a loaded model.
    console: answers on stdout, everything else on stderr.
    chat_state, chat_commands, chat_terminal, markdown_writer: a chat, its commands, its prompt, and
        how its answers look.
    bench, chat, compare, demo, doctor, eval, generate, inspect, mask, models, plan, processes,
        quantize, serve, sweep, verify: the commands; ``models`` has pull, list and rm.
    mask_drawing: how masks are shown.

Above ``quantization`` in the ladder of tests/test_house.py: imports point down only.
"""
