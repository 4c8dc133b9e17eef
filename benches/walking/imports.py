"""Which module of a checkout imports which, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = ("edgelm", "quant")


@dataclass(frozen=True)
class Graph:
    """Arrows from an importer to what it imports; no node has an arrow to itself."""

    arrows: Mapping[str, frozenset[str]]

    @cached_property
    def reach(self) -> dict[str, frozenset[str]]:
        """All that a node imports, through others too; itself only where it stands in a circle."""
        return {node: self._reach(node) for node in self.arrows}

    def _reach(self, node: str) -> frozenset[str]:
        seen: set[str] = set()
        ahead = list(self.arrows[node])
        while ahead:
            own = ahead.pop()
            if own not in seen:
                seen.add(own)
                ahead.extend(self.arrows[own])
        return frozenset(seen)

    @cached_property
    def circles(self) -> list[frozenset[str]]:
        """Largest sets of nodes that all reach each other, largest first."""
        inside = [node for node in self.arrows if node in self.reach[node]]
        found = {
            frozenset(own for own in self.reach[node] if node in self.reach[own]) for node in inside
        }
        return sorted(found, key=lambda circle: (-len(circle), sorted(circle)))

    @property
    def floors(self) -> int:
        """Length of the longest chain of imports; a circle counts as one."""
        circle_of = {node: circle for circle in self.circles for node in circle}
        floors: dict[str, int] = {}
        for node in sorted(self.arrows, key=lambda node: len(self.reach[node] | {node})):
            circle = circle_of.get(node, frozenset([node]))
            below = set().union(*(self.arrows[own] for own in circle)) - circle
            floors[node] = 1 + max((floors[own] for own in below), default=0)
        return max(floors.values(), default=0)

    def joined(self, place: Callable[[str], str]) -> Graph:
        """The arrows between places, where ``place`` names the one that a node belongs to."""
        arrows: dict[str, set[str]] = {place(node): set() for node in self.arrows}
        for node, targets in self.arrows.items():
            arrows[place(node)] |= {place(target) for target in targets} - {place(node)}
        return Graph({node: frozenset(targets) for node, targets in arrows.items()})


def modules(folder: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the two packages in a checkout."""
    files = sorted(path for package in PACKAGES for path in (folder / package).rglob("*.py"))
    return {module_name(path.relative_to(folder)): path for path in files}


def module_name(path: Path) -> str:
    """Dotted name of a file below the checkout; a package's is that of its ``__init__.py``."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a module: the name that stands at the top of its package."""
    return ".".join(module.split(".")[:2])


def import_graph(files: Mapping[str, Path], *, in_functions: bool = True) -> Graph:
    """The runtime imports between modules: none that stand under ``if TYPE_CHECKING``.

    Args:
        in_functions: count imports inside functions too, which run when the function is called.
    """
    arrows = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_bytes())
        targets = {
            target
            for statement in _statements(tree.body, in_functions)
            for target in _targets(statement, package, files)
        }
        arrows[name] = frozenset(targets - {name})
    return Graph(arrows)


def _statements(body: Iterable[ast.AST], in_functions: bool) -> Iterator[ast.AST]:
    """The statements that run, outer before inner."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _statements(node.orelse, in_functions)
            continue
        yield node
        if in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(ast.iter_child_nodes(node), in_functions)


def _targets(node: ast.AST, package: str, known: Iterable[str]) -> Iterator[str]:
    """Modules that one statement imports; a name from a package may be a module of it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")
            above = above[: len(above) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            if full in known or base in known:
                yield full if full in known else base
