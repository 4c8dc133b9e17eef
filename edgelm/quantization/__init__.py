"""Quantization: writes models as folders of packed weights or as .gguf files.

Modules:
    quantize: ``quantize``, the public function.
    conversion: the plan of all weights.
    converted_rows: conversion of rows, a block at a time.
    calibration: layer inputs for GPTQ.
    packed_folder, gguf_export: the writers of the two formats.
    companions, gguf_vocabulary: tokenizer and other files that accompany the weights.

May import ``quant`` and, in this package, errors, version, progress, config, machine, text,
checkpoint, hub, budget, ops, models, layerstore, engine, generation, tasks, planning, call_lock,
asynchronous, model, loading, reports and evaluation.
"""
