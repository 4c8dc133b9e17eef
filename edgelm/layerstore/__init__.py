"""Layer store: weights in the layout of their kernels, kept in files of the cache folder.

Modules:
    layer_file: one layer's file, read into a buffer or mapped.
    layer_folder: all files of one model, their creation and clean-up.
    layer_stream: layers read from disk while others compute.

Above ``models`` and below ``engine`` in the ladder of tests/test_house.py: imports point down only.
"""
