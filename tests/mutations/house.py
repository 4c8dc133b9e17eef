"""Rows about the rules of the house."""

from __future__ import annotations

from mutations.row import Mutation

HOUSE = "tests/test_house.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "house: quant never imports edgelm",
        "quant/errors.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport edgelm\n",
        (f"{HOUSE}::test_quant_never_imports_edgelm",),
    ),
    Mutation(
        "house: heavy libraries load when used",
        "edgelm/errors.py",
        "from typing import Any\n",
        "from typing import Any\n\nimport safetensors\n",
        (f"{HOUSE}::test_import_edgelm_is_light",),
    ),
)
