"""How far one walks through the code to follow a model from its settings to its tokens.

    python benches/walks.py                    this checkout
    python benches/walks.py BEFORE AFTER       checkouts side by side
    python benches/walks.py --upward           and every call against the arrows of the imports
    python benches/walks.py --json             one document

Of each checkout: which modules import which, read from the sources, and the calls between files
while its own packages load a Llama of two layers (random weights, int4, an int8 cache, on the CPU)
and answer one prompt, traced in a process of its own. ``walking/counting.py`` defines what is
counted, once between files and once between rooms: a room is a name at the top of a package, a
module (``edgelm.errors``) or a sub-package with all that it holds (``edgelm.checkpoint``).

Imports under ``TYPE_CHECKING`` count nowhere; those inside functions count as arrows. A floor is a
step of the longest chain of imports. The native library must lie in the checkout, or the walk is
that through other kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from walking import tiny_model
from walking.counting import Pair, Walk, walk
from walking.imports import Graph, import_graph, modules, room

ROOT = Path(__file__).resolve().parent.parent
TRACING = ROOT / "benches" / "walking" / "tracing.py"
COUNTS = {
    "places": "{} entered",
    "stays": "stays in {}",
    "returns": "returns to {}",
    "climbs": "climbs between {}",
    "calls": "calls between {}",
    "upward": "upward calls between {}",
    "handed": "handed calls between {}",
}
Told = dict[str, Any]


def main() -> int:
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        model.mkdir()
        tiny_model.write(model)
        found = [surveyed(checkout, model) for checkout in options.checkouts]
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("\n".join(table(found)))
    if options.upward:
        for told in found:
            print("\n".join([f"\nupward calls in {told['checkout']}", *upward_lines(told)]))
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "checkouts", nargs="*", type=Path, default=[ROOT], metavar="CHECKOUT",
        help="folders that hold edgelm/ and quant/; by default this one",
    )  # fmt: skip
    parser.add_argument("--upward", action="store_true", help="name every upward call")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    options.checkouts = [checkout.resolve() for checkout in options.checkouts]
    for checkout in options.checkouts:
        if not (checkout / "edgelm").is_dir():
            parser.error(f"{checkout} holds no edgelm/; give the folder of a checkout")
    return options


def surveyed(checkout: Path, model: Path) -> Told:
    """Everything that is counted of one checkout."""
    files = modules(checkout)
    whole = import_graph(files)
    at_import = import_graph(files, in_functions=False)
    places = {"files": (whole, str), "rooms": (whole.joined(room), room)}
    told: Told = {"checkout": checkout.name, "native_library": has_native_library(checkout)}
    told["sources"] = sources(files) | {
        name: arrows(graph, at_import.joined(place)) for name, (graph, place) in places.items()
    }
    told["walks"] = {
        title: {name: counts(walk(pairs, *own)) for name, own in places.items()}
        for title, pairs in traced(checkout, model).items()
    }
    return told


def has_native_library(checkout: Path) -> bool:
    found = checkout.glob("quant/native/**/*edgelm_native.*")
    return any(path.suffix in (".so", ".dylib", ".dll") for path in found)


def sources(files: dict[str, Path]) -> Told:
    """How many modules, packages, and names at the top of edgelm there are."""
    packages = {name for name, path in files.items() if path.name == "__init__.py"}
    top = {name for name in files if name.count(".") == 1 and name.startswith("edgelm.")}
    return {
        "modules": len(files),
        "packages": len(packages),
        "modules_at_the_top": len(top - packages - {"edgelm.__main__"}),
        "packages_at_the_top": len(top & packages),
    }


def arrows(whole: Graph, at_import: Graph) -> Told:
    """The imports between places of one kind."""
    return {
        "places": len(whole.arrows),
        "arrows": sum(map(len, whole.arrows.values())),
        "floors": whole.floors,
        "circles": [sorted(circle) for circle in whole.circles],
        "circles_at_import": [sorted(circle) for circle in at_import.circles],
    }


def traced(checkout: Path, model: Path) -> dict[str, list[Pair]]:
    """The pairs of each walk, from a process with an empty cache folder and one thread."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {"EDGELM_CACHE": cache, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-P", str(TRACING), str(checkout), str(model)],
            stdout=subprocess.PIPE, check=True, text=True, env=os.environ | settings,
        )  # fmt: skip
    return {
        title: [(caller, callee) for caller, callee in pairs]
        for title, pairs in json.loads(done.stdout).items()
    }


def counts(own: Walk) -> Told:
    """A walk's numbers; the upward calls also one by one."""
    return vars(own) | {"upward": len(own.upward), "upward_calls": own.upward}


def lines(told: Told) -> dict[str, str]:
    """What the table says of one checkout, by the title of the line."""
    found = {"native library": "built" if told["native_library"] else "missing"}
    for name, value in told["sources"].items():
        if isinstance(value, dict):
            found |= {f"{name}: {key}": shown(number) for key, number in value.items()}
        else:
            found[name] = str(value)
    for title, kinds in told["walks"].items():
        found[f"{title}: functions read"] = str(kinds["files"]["functions"])
        for kind, own in kinds.items():
            found |= {
                f"{title}: {text.format(kind)}": str(own[key]) for key, text in COUNTS.items()
            }
    return {title.replace("_", " "): text for title, text in found.items()}


def shown(value: int | list[list[str]]) -> str:
    """A number, or how many circles there are and of how many places."""
    if isinstance(value, int):
        return str(value)
    sizes = ", ".join(str(len(circle)) for circle in value)
    return f"{len(value)} (of {sizes})" if value else "0"


def table(found: list[Told]) -> Iterator[str]:
    """The checkouts side by side."""
    columns = [lines(told) for told in found]
    titles = list(dict.fromkeys(title for column in columns for title in column))
    rows = [["", *(told["checkout"] for told in found)]]
    rows += [[title, *(column.get(title, "-") for column in columns)] for title in titles]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for title, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([title.ljust(widths[0]), *padded])


def upward_lines(told: Told) -> Iterator[str]:
    """Every upward call between rooms, then those between files of one room."""
    for title, kinds in told["walks"].items():
        between = kinds["rooms"]["upward_calls"]
        within = [pair for pair in kinds["files"]["upward_calls"] if pair not in between]
        for kind, pairs in (("rooms", between), ("files", within)):
            for caller, callee in pairs:
                yield f"{title}, {kind}: {caller} -> {callee}"


if __name__ == "__main__":
    sys.exit(main())
