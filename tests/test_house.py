"""The rules of the house that no linter knows: arrows, weight of imports, sizes, documents."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutations import MUTATIONS
from walking.imports import import_graph, modules, room

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "benches/RESULTS.md")
}
README = DOCUMENTS["README.md"]

FILE_LINES = 320  # aim: 250
ONE_NOUN: frozenset[str] = frozenset()  # files that may be longer: a split would part one noun
FUNCTION_LINES = 55  # aim: 35; without its docstring
IMPORTED_MODULES = 270  # by `import edgelm` beyond torch; 0.15 to 0.3 s of this laptop
README_BYTES = 10_000
# A name may import what stands in the rows above its own, inside functions too. Rows hold modules
# and packages of edgelm; "edgelm" is its __init__.
LADDER = (
    *(
        ("errors", "progress", "values", "version"),
        ("option", "plain_file", "call_lock"),
        ("config",),
        ("machine",),
        ("text",),
    ),
    *(("checkpoint",), ("hub",), ("budget",), ("ops",), ("models",), ("layerstore",), ("engine",)),
    *(("generation",), ("tasks",), ("planning",), ("asynchronous",), ("model",)),
    *(("loading",), ("reports",), ("evaluation",), ("quantization",), ("server",)),
    *(("edgelm",), ("cli",)),
    ("__main__",),
)


TOP_NAMES = 30  # that a newcomer learns: packages and modules at the top of edgelm
README_SECTIONS = [
    *("An 8B in 6 GiB", "Results", "Install", "Commands", "Python", "Choosing a scheme"),
    *("Families and formats", "Budgets", "Limits", "Read on"),
]
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # keepachangelog.com
CODE_FROM_BYTES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
MAY_UNPICKLE = {"edgelm/checkpoint/torch_files.py"}  # whose business is pickled checkpoints


def sources(*folders: str) -> list[tuple[str, ast.Module]]:
    """Path from the root and syntax tree of every module in the folders."""
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert files, f"no modules in {folders}"
    return [(str(path.relative_to(ROOT)), ast.parse(path.read_bytes())) for path in files]


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of all modules that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.smoke
def test_quant_never_imports_edgelm() -> None:
    arrows = [
        f"{path} imports {name}"
        for path, tree in sources("quant")
        for name in imports(tree)
        if name.split(".")[0] == "edgelm"
    ]
    assert not arrows


def rung(module: str) -> str:
    """The name at the top of edgelm that a module belongs to."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.smoke
def test_imports_of_edgelm_point_down_the_ladder() -> None:
    rungs = {name: number for number, row in enumerate(LADDER) for name in row}
    files = {name: path for name, path in modules(ROOT).items() if name.split(".")[0] == "edgelm"}
    assert {rung(name) for name in files} == set(rungs)
    assert len(rungs) <= TOP_NAMES
    upward = [
        f"{name} imports {target}"
        for name, targets in import_graph(files).arrows.items()
        for target in sorted(targets)
        if rung(name) != rung(target) and rungs[rung(name)] <= rungs[rung(target)]
    ]
    assert not upward


@pytest.mark.smoke
def test_no_modules_import_each_other() -> None:
    """Neither when they are imported nor when their functions run; nor do packages."""
    graph = import_graph(modules(ROOT))
    circles = [sorted(circle) for circle in (*graph.circles, *graph.joined(room).circles)]
    assert not circles


@pytest.mark.smoke
def test_packages_say_what_their_modules_are_for() -> None:
    silent = []
    for package in sorted(path.parent for path in ROOT.glob("*/*/__init__.py")):
        if package.parent.name not in ("edgelm", "quant"):
            continue
        contract = ast.get_docstring(ast.parse((package / "__init__.py").read_bytes())) or ""
        names = {path.stem for path in package.glob("*.py")} - {"__init__"}
        absent = [name for name in sorted(names) if not re.search(rf"\b{name}\b", contract)]
        silent += [f"{package.relative_to(ROOT)}: {name}" for name in absent]
    assert not silent


@pytest.mark.smoke
def test_no_module_unpickles() -> None:
    found = []
    for path, tree in sources("edgelm", "quant"):
        found += [f"{path}: {n}" for n in imports(tree) if n.split(".")[0] in CODE_FROM_BYTES]
        for call in calls(tree):
            text = ast.unparse(call)
            if text.startswith("torch.load(") or "allow_pickle=True" in text:
                found.append(f"{path}: {text}")
    assert not [line for line in found if line.split(":")[0] not in MAY_UNPICKLE]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    length = function.end_lineno - function.lineno + 1  # type: ignore[operator]
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        length -= docstring.end_lineno - docstring.lineno + 1  # type: ignore[operator]
    return length


@pytest.mark.smoke
def test_files_and_functions_fit_a_screen() -> None:
    too_long = []
    for path, tree in sources("edgelm", "quant", "benches"):
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES and path not in ONE_NOUN:
            too_long.append(f"{path}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = body_lines(node)
                if length > FUNCTION_LINES:
                    too_long.append(f"{path}:{node.name}: {length}, at most {FUNCTION_LINES}")
    assert not too_long


@pytest.mark.smoke
def test_files_are_nouns_with_a_contract() -> None:
    trees = sources("edgelm", "quant", "benches")
    assert not [path for path, _ in trees if Path(path).stem in {"utils", "helpers", "misc"}]
    assert not [path for path, tree in trees if tree.body and not ast.get_docstring(tree)]


@pytest.mark.smoke
def test_packages_are_typed() -> None:
    assert (ROOT / "edgelm" / "py.typed").is_file() and (ROOT / "quant" / "py.typed").is_file()


def test_every_module_imports() -> None:
    without = []
    for package in ("edgelm", "quant"):
        top = importlib.import_module(package)
        for module in pkgutil.walk_packages(top.__path__, f"{package}."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                assert error.name in ("triton", "lm_eval"), module.name  # extras
                without.append(module.name)
    assert {name.rpartition(".")[0] for name in without} <= {
        *("quant.triton", "edgelm.ops.kernels", "edgelm.evaluation"),
    }


@pytest.mark.smoke
def test_import_edgelm_is_light() -> None:
    """Beyond torch, only modules of our own and of Python: every library loads when it is used."""
    program = (
        "import sys, torch, json\n"
        "before = set(sys.modules)\n"
        "import edgelm; edgelm.load, edgelm.quantize, edgelm.LanguageModel\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    modules = json.loads(done.stdout)
    libraries = {name.split(".")[0] for name in modules} - sys.stdlib_module_names
    print(f"import edgelm: {len(modules)} modules beyond torch, of {sorted(libraries)}")
    assert libraries == {"edgelm", "quant", "numpy"}, "numpy: parts that torch had not loaded"
    assert len(modules) < IMPORTED_MODULES


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shown_commands() -> list[list[str]]:
    """Every ``edgelm …`` of the documents, in code blocks and between backticks, as words."""
    lines = [line for block in fenced("bash") for line in block.splitlines()]
    for document in DOCUMENTS.values():
        lines += re.findall(r"`(edgelm [^`]*)`", document)
    found = dict.fromkeys(line for line in lines if line.startswith("edgelm "))
    return [shlex.split(line)[1:] for line in found]


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_shown_commands_exist(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgelm.cli.main import main

    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main([words[0], "--help"]))
    text = capsys.readouterr().out
    assert not ended.value.code, text
    assert not [word for word in words if word.startswith("--") and word not in text]


def test_readme_python_uses_public_names() -> None:
    import edgelm

    assert all(getattr(edgelm, name) for name in edgelm.__all__)

    used = set()
    for block in fenced("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == "edgelm" else set()
    assert used
    assert not used - set(edgelm.__all__)


@pytest.mark.smoke
def test_readme_is_short_and_in_its_order() -> None:
    size = len(README.encode())
    print(f"README.md: {size} bytes")
    assert size <= README_BYTES
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == README_SECTIONS


@pytest.mark.smoke
def test_links_between_files_lead_somewhere() -> None:
    broken = []
    for name, document in DOCUMENTS.items():
        headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
        anchors = {heading.lower().replace(" ", "-") for heading in headings}
        for target in re.findall(r"\]\(([^)\s]+)\)", document):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            leads = (ROOT / name).parent.joinpath(path).exists() if path else anchor in anchors
            broken += [] if leads else [f"{name}: {target}"]
    assert not broken


@pytest.mark.smoke
def test_changelog_has_the_usual_headings() -> None:
    changes = DOCUMENTS["CHANGELOG.md"]
    assert "\n## [Unreleased]\n" in changes
    found = re.findall(r"^### (.*)$", changes, re.MULTILINE)
    assert found and not set(found) - CHANGES


@pytest.mark.smoke
def test_mutations_apply_and_name_their_tests() -> None:
    """A patch whose text has moved would otherwise be noticed only after the long run."""
    wrong = []
    for row in MUTATIONS:
        path = ROOT / row.file
        found = path.read_text(encoding="utf-8").count(row.old) if path.is_file() else 0
        if found != 1:
            wrong.append(f"{row.feature}: old text occurs {found} times in {row.file}")
        for node in row.tests:
            name = node.split("::")[-1].split("[")[0]
            test_file = ROOT / node.split("::")[0]
            if not test_file.is_file() or f"def {name}(" not in test_file.read_text("utf-8"):
                wrong.append(f"{row.feature}: there is no test {node}")
    assert not wrong


@pytest.mark.smoke
def test_measured_tables_come_from_results() -> None:
    tables = runpy.run_path(str(ROOT / "benches" / "tables.py"))
    assert tables["main"](["--check"]) == 0
