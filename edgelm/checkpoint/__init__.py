"""Model files: one reader per format, for weight names, headers and rows on demand.

Whatever the format, a ``Checkpoint`` uses Hugging Face's weight names and config keys, so that the
rest of the package does not depend on the file a tensor comes from.

Modules:
    protocol, opening: what every reader gives, and the reader for a file at hand.
    folders: detection of a folder's format.
    shards: weights in several files with an index.
    stored, rows, stamps: tensors at offsets in files, plain reads into private memory, and what
        tells that a file was changed.
    safetensors_files, torch_files, flax_files: folders of float weights.
    quantized_folders: folders quantized by other tools, read by ``awq``, ``gptq``,
        ``compressed_tensors``, ``bitsandbytes_files`` and ``torchao_files`` (with
        ``torchao_layouts``), with the common parts in ``packed_matrix`` and ``act_order``.
    packed, manifest: folders written by ``edgelm quantize``, and their edgelm.json.
    certificate: what quantizing did to a model's predictions.
    canonical_layout, packed_layout, bitsandbytes_layout: the stored forms of a packed matrix.
    gguf_files: GGUF files, with ``gguf_names``, ``gguf_parts``, ``gguf_header``,
        ``gguf_metadata``,
        ``gguf_families`` (names), ``gguf_blocks`` and ``gguf_low_bits`` (types).
    gguf_kinds: the GGUF types that hold schemes.
    safetensors_writer, gguf_writer, journal: writing files, verified and resumable.
    random_weights, shapes, fresh_head: weights without a file, published configs, and new heads.

Above ``text`` and below ``hub`` in the ladder of tests/test_house.py: imports point down only.
"""
