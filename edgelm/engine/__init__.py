"""Engine: a decoder with its weights loaded, and the execution of its steps.

Modules:
    engine: ``Engine``, which runs steps over static buffers.
    loader: reading, quantizing and laying out weights according to the plan.
    host_layers: the layers of a split model that run on the CPU.
    steps, tapes, cuda_graphs: small steps recorded once and replayed, on CPUs and CUDA devices.
    restore_points: saved states of a row's ring buffers.

Above ``layerstore`` and below ``generation`` in the ladder of tests/test_house.py:
imports point down only.
"""
