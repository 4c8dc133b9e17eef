"""Command line: one module per command. It parses, calls and prints, and computes nothing itself.

Modules:
    main: the ``edgelm`` command, exit codes, and errors without tracebacks.
    options: groups of options that commands share.
    opening: from arguments to model files and to a loaded model.
    console: answers on stdout, everything else on stderr.
    bench, chat, demo, doctor, eval, generate, inspect, mask, plan, quantize: the commands.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text,
checkpoint, hub, budget, ops, models, layerstore, engine, generation, tasks, planning, call_lock,
asynchronous, model, loading, reports, evaluation and quantization.
"""
