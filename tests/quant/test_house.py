"""The direction of the arrows: `quant` knows nothing of language models."""

from __future__ import annotations

import ast
from pathlib import Path

import quant

FOLDER = Path(quant.__file__).parent


def imported_packages(source: str) -> set[str]:
    """Top-level names of all absolute imports in `source`, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def test_quant_never_imports_edgelm() -> None:
    files = sorted(FOLDER.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        packages = imported_packages(file.read_text(encoding="utf-8"))
        assert "edgelm" not in packages, f"{file.relative_to(FOLDER)} imports edgelm"


def test_the_reader_of_imports_sees_them() -> None:
    source = "import edgelm.config\ndef f():\n    from edgelm import load\nfrom . import scheme"
    assert imported_packages(source) == {"edgelm"}


def test_public_names_exist() -> None:
    missing = [name for name in quant.__all__ if not hasattr(quant, name)]
    assert not missing
