"""Rows about the rules of the house."""

from __future__ import annotations

from mutations.row import Mutation

HOUSE = "tests/test_house.py"
TABLES = "tests/test_tables.py"

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
    Mutation(
        "documents: the README stays short",
        "README.md",
        "# EdgeLM\n\n",
        "# EdgeLM\n\n" + "More. " * 2000 + "\n\n",
        (f"{HOUSE}::test_readme_is_short_and_in_its_order",),
    ),
    Mutation(
        "documents: links lead to files",
        "README.md",
        "(CHANGELOG.md)",
        "(CHANGES.md)",
        (f"{HOUSE}::test_links_between_files_lead_somewhere",),
    ),
    Mutation(
        "documents: commands and options exist",
        "README.md",
        "`edgelm plan MODEL --budget 6GiB`",
        "`edgelm plan MODEL --memory 6GiB`",
        (f"{HOUSE}::test_shown_commands_exist",),
    ),
    Mutation(
        "tables: stand-ins are called nano",
        "benches/table_rows.py",
        'return f"nano {NANO[model]} (',
        'return f"{NANO[model]} (',
        (f"{TABLES}::test_stand_ins_are_called_nano_with_their_size",),
    ),
    Mutation(
        "tables: a divergence names its stand-in",
        "benches/table_columns.py",
        """f"{row['kld']:.4f}, {row['stand_in']}\"""",
        """f"{row['kld']:.4f}\"""",
        (f"{TABLES}::test_divergence_of_a_size_names_its_stand_in",),
    ),
    Mutation(
        "tables: weights quantized twice are marked",
        "benches/table_rows.py",
        'return "its own Q4_1" if scheme in own else',
        'return "its own Q4_1" if scheme else',
        (f"{TABLES}::test_weights_that_were_quantized_twice_are_marked",),
    ),
    Mutation(
        "tables: a typed number is noticed",
        "benches/tables.py",
        "differing += 1",
        "differing += 0",
        (f"{TABLES}::test_a_typed_number_is_noticed_and_written_over",),
    ),
    Mutation(
        "tables: measured peaks stay",
        "benches/plans.py",
        "if key in before}",
        "if key not in before}",
        (f"{TABLES}::test_a_measured_peak_stays_until_it_is_measured_again",),
    ),
    Mutation(
        "house: imports point down the ladder",
        "edgelm/budget/units.py",
        "import re\n",
        "import re\n\nimport edgelm.engine.steps\n",
        (f"{HOUSE}::test_imports_of_edgelm_point_down_the_ladder",),
    ),
    Mutation(
        "house: no modules import each other, inside functions too",
        "edgelm/budget/units.py",
        "def human(nbytes: float) -> str:\n",
        "def _other() -> None:\n    from edgelm.budget import ledger\n\n\n"
        "def human(nbytes: float) -> str:\n",
        (f"{HOUSE}::test_no_modules_import_each_other",),
    ),
    Mutation(
        "house: packages name their modules",
        "edgelm/planning/__init__.py",
        "    planner: ",
        "    maker: ",
        (f"{HOUSE}::test_packages_say_what_their_modules_are_for",),
    ),
)
