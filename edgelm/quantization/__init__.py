"""Quantization: writes models as folders of packed weights or as .gguf files.

Modules:
    quantize: ``quantize``, the public function.
    conversion: the plan of all weights.
    converted_rows: conversion of rows, a block at a time.
    calibration: the layers' inputs over a text, for GPTQ. calibration_text: that text.
    generated_text: one that the model writes.
    packed_folder, gguf_export: the writers of the two formats.
    certification: what was written is measured before it gets its name.
    bit_budget: recipes by bits per weight. readers: recipes for other programs.
    folder_layout: how a folder stores its matrices, and what its config.json says of that.
    companions, folder_readme: tokenizer and other files that accompany the weights.
    gguf_keys, gguf_vocabulary: what a GGUF file says of the model and of its vocabulary.

Above ``evaluation`` and below ``cli`` in the ladder of tests/test_house.py:
imports point down only.
"""
