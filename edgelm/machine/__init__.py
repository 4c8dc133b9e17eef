"""Machine: memory, processor, disk and accelerators of this computer.

Modules:
    hardware: available memory, cores, instruction sets and read bandwidth.
    cgroups: limits of containers.
    disk: read speed of the cache folder's disk.
    accelerators: CUDA, MPS and XPU devices.
    transfer: copies from the host to an accelerator.
    measurements: files that keep measurements for later runs.
    private_files: files and folders that only their owner may read.

Above ``config`` and below ``text`` in the ladder of tests/test_house.py: imports point down only.
"""
