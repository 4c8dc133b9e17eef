"""Layer store: weights in the layout of their kernels, kept in files of the cache folder.

Modules:
    layer_file: one layer's file, read into a buffer or mapped.
    layer_table, block_sums: what such a file holds, checked before use, and sums of its blocks.
    layer_folder: all files of one model, their creation and clean-up.
    kept_layers: a check of the files of all models.
    layer_stream: layers read from disk while others compute.

Above ``models`` and below ``engine`` in the ladder of tests/test_house.py: imports point down only.
"""
