"""The notebooks: executed, without errors, small, about public names, and of no machine."""

from __future__ import annotations

import ast
import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import edgelm

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BOOK_BYTES, PICTURE_BYTES = 400_000, 60_000
LIBRARIES = {"edgelm", "matplotlib", "numpy", "torch"}
BESIDE = {("edgelm.reports.benchmark", "random_model")}  # a shape without files, as --shape takes
PATHS = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users|var)\b|\b[A-Z]:\\")


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem)
def book(request: pytest.FixtureRequest) -> Path:
    return request.param


def code_cells(book: Path) -> list[dict[str, Any]]:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(book: Path) -> list[dict[str, Any]]:
    return [output for cell in code_cells(book) for output in cell["outputs"]]


def test_the_four_tutorials_are_there() -> None:
    assert [book.stem for book in BOOKS] == [
        *("heads", "memory_budgets", "quantize_and_evaluate", "quickstart"),
    ]


def test_executed_in_order_without_errors(book: Path) -> None:
    counts = [cell["execution_count"] for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1))
    assert outputs(book)
    assert not [output for output in outputs(book) if output["output_type"] == "error"]


def test_begins_with_what_it_shows_needs_and_takes(book: Path) -> None:
    first = json.loads(book.read_text(encoding="utf-8"))["cells"][0]
    said = "".join(first["source"])
    assert first["cell_type"] == "markdown"
    assert all(word in said for word in ("Shows ", "Needs ", "Takes ", " minute"))


def test_names_no_machine_path(book: Path) -> None:
    texts = []
    for output in outputs(book):
        shown = output.get("data", {}) | {"text": output.get("text", "")}
        texts += ["".join(value) for kind, value in shown.items() if kind != "image/png"]
    assert not PATHS.findall("\n".join(texts))


def test_is_small(book: Path) -> None:
    assert book.stat().st_size < BOOK_BYTES
    pictures = [o["data"]["image/png"] for o in outputs(book) if "image/png" in o.get("data", {})]
    assert pictures or book.stem == "quickstart"
    assert all(len(base64.b64decode(picture)) < PICTURE_BYTES for picture in pictures)


def test_uses_public_names_alone(book: Path) -> None:
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells(book)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            assert not [name for name in modules if name.startswith("edgelm.")]
        elif isinstance(node, ast.ImportFrom):
            modules = [str(node.module)]
            if modules[0].startswith("edgelm."):
                assert {(modules[0], alias.name) for alias in node.names} <= BESIDE
        else:
            modules = []
        for name in modules:
            assert name.split(".")[0] in LIBRARIES | sys.stdlib_module_names
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_") or node.attr == "__name__"
            if isinstance(node.value, ast.Name) and node.value.id == "edgelm":
                assert node.attr in edgelm.__all__
