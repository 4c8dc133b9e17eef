"""Quantization: writes models as folders of packed weights or as .gguf files.

Modules:
    quantize: ``quantize``, the public function.
    conversion: the plan of all weights.
    converted_rows: conversion of rows, a block at a time.
    calibration: layer inputs for GPTQ.
    packed_folder, gguf_export: the writers of the two formats.
    folder_layout: how a folder stores its matrices, and what its config.json says of that.
    companions, folder_readme, gguf_vocabulary: tokenizer and other files that accompany the
        weights.

Above ``evaluation`` and below ``cli`` in the ladder of tests/test_house.py:
imports point down only.
"""
