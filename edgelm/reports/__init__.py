"""Reports: data behind the commands that describe a model or the machine.

Modules:
    inspection: the content of a model's files, for ``edgelm inspect``.
    benchmark: speed and memory, for ``edgelm bench``.
    diagnosis: the machine and its kernels, for ``edgelm doctor``.
    masks: attention masks, for ``edgelm mask``.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text,
checkpoint, hub, budget, ops, models, layerstore, engine, generation, tasks, planning, call_lock,
asynchronous, model and loading.
"""
