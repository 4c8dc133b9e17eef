"""Which test guards which feature: patches that must make a named test fail.

``run_mutations.py`` applies each row alone to a copy of the tree and runs its tests. A row whose
tests still pass is a feature nobody guards. One file a theme.
"""

from __future__ import annotations

from mutations import (
    accelerators,
    admission,
    certificates,
    comparison,
    evaluation,
    execution,
    families,
    files,
    folders,
    generation,
    heads,
    house,
    inputs,
    lifecycle,
    llama,
    memory,
    native,
    offload,
    options,
    planning,
    quantization,
    second_start,
    server,
    speculation,
    sweeps,
    terminal,
    text,
    triton,
    writing,
)
from mutations.row import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *accelerators.MUTATIONS,
    *admission.MUTATIONS,
    *certificates.MUTATIONS,
    *comparison.MUTATIONS,
    *evaluation.MUTATIONS,
    *execution.MUTATIONS,
    *families.MUTATIONS,
    *files.MUTATIONS,
    *folders.MUTATIONS,
    *generation.MUTATIONS,
    *heads.MUTATIONS,
    *house.MUTATIONS,
    *inputs.MUTATIONS,
    *lifecycle.MUTATIONS,
    *llama.MUTATIONS,
    *memory.MUTATIONS,
    *native.MUTATIONS,
    *offload.MUTATIONS,
    *options.MUTATIONS,
    *planning.MUTATIONS,
    *quantization.MUTATIONS,
    *second_start.MUTATIONS,
    *server.MUTATIONS,
    *speculation.MUTATIONS,
    *sweeps.MUTATIONS,
    *terminal.MUTATIONS,
    *text.MUTATIONS,
    *triton.MUTATIONS,
    *writing.MUTATIONS,
)
