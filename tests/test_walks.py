"""benches/walks.py: a made-up house whose walks can be counted by hand, and this checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from walking.counting import Walk, walk
from walking.imports import Graph, import_graph, modules, room

ROOT = Path(__file__).resolve().parent.parent
HOUSE = {
    "edgelm/__init__.py": "from edgelm.top import start\n",
    "edgelm/top.py": """
from edgelm import store
from edgelm.units import human

def start():
    kept = store.keep(lambda: human(1))
    return human(kept)
""",
    "edgelm/units.py": """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from edgelm.top import start

def human(number):
    return number

AT_IMPORT = human(0)
""",
    "edgelm/store/__init__.py": """
from .disk import Disk

def keep(make):
    return sum([Disk().write(make()) for _ in range(3)])
""",
    "edgelm/store/disk.py": """
import edgelm.units

class Disk:
    def write(self, number):
        from edgelm import store
        return edgelm.units.human(number) + len(store.__name__)
""",
    "quant/__init__.py": "",
}
PROGRAM = """
import json, sys
from pathlib import Path
from walking.tracing import CheckoutFinder, Recorder
folder = Path(sys.argv[1])
sys.meta_path.insert(0, CheckoutFinder(folder))
import edgelm
recorder = Recorder(folder)
with recorder.recording() as pairs:
    list(map(lambda _: edgelm.start(), range(2)))
print(json.dumps(list(pairs)))
"""
START, MAKE = "edgelm.top:start", "edgelm.top:start.<locals>.<lambda>"
KEEP, WRITE, HUMAN = "edgelm.store:keep", "edgelm.store.disk:Disk.write", "edgelm.units:human"
PAIRS = [
    ("", START),
    (START, KEEP),
    (KEEP, MAKE),
    (MAKE, HUMAN),
    (KEEP, WRITE),
    (WRITE, HUMAN),
    (START, HUMAN),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in HOUSE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_imports_under_type_checking_are_no_arrows(checkout: Path) -> None:
    """A relative import, a module from its package and one inside a function are."""
    graph = import_graph(modules(checkout))
    assert graph.arrows == {
        "edgelm": {"edgelm.top"},
        "edgelm.top": {"edgelm.store", "edgelm.units"},
        "edgelm.units": frozenset(),
        "edgelm.store": {"edgelm.store.disk"},
        "edgelm.store.disk": {"edgelm.units", "edgelm.store"},
        "quant": frozenset(),
    }
    assert graph.circles == [{"edgelm.store", "edgelm.store.disk"}]
    assert graph.floors == 4  # units, the circle, top, edgelm
    at_import = import_graph(modules(checkout), in_functions=False)
    assert not at_import.circles
    assert at_import.floors == 5


def test_rooms_are_the_names_at_the_top(checkout: Path) -> None:
    graph = import_graph(modules(checkout)).joined(room)
    assert graph.arrows["edgelm.store"] == {"edgelm.units"}
    assert sorted(graph.arrows) == ["edgelm", "edgelm.store", "edgelm.top", "edgelm.units", "quant"]
    assert not graph.circles


def test_a_trace_holds_each_call_once(checkout: Path) -> None:
    """What torch or ``map`` stands between is passed over, and so is what an import calls."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkout)],
        capture_output=True, text=True, check=True, cwd=ROOT / "benches",
    )  # fmt: skip
    assert [tuple(pair) for pair in json.loads(done.stdout)] == PAIRS


def test_a_walk_counted_by_hand(checkout: Path) -> None:
    """Read in this order: start in top, keep in store, the lambda in top, human, write in disk."""
    graph = import_graph(modules(checkout))
    in_files = walk(PAIRS, graph, str)
    assert in_files == Walk(
        functions=5, places=4, stays=5, returns=1,
        climbs=2,  # from keep to the lambda in top, and from human to write
        calls=6, upward=((KEEP, MAKE), (KEEP, WRITE)), handed=0,
    )  # fmt: skip
    in_rooms = walk(PAIRS, graph.joined(room), room)
    assert in_rooms == Walk(
        functions=5, places=3, stays=5, returns=2, climbs=2,
        calls=5, upward=((KEEP, MAKE),), handed=0,
    )  # fmt: skip


def test_calls_that_no_import_explains_are_handed() -> None:
    """What nobody leads to is left out."""
    graph = Graph({name: frozenset() for name in ("a", "b", "c")})
    found = walk([("", "a:f"), ("a:f", "b:g"), ("c:x", "b:g")], graph, str)
    assert found == Walk(2, 2, 2, 0, 0, 1, (), 1)


def test_this_checkout_can_be_walked() -> None:
    """The layers of a step are walked once, and later tokens go a shorter way than the first."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benches" / "walks.py"), "--json"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    (told,) = json.loads(done.stdout)
    walks = {title: kinds["files"] for title, kinds in told["walks"].items()}
    assert list(walks) == ["load", "first token", "second token", "later token"]
    assert all(own["stays"] >= own["places"] > 5 for own in walks.values())
    assert walks["later token"]["functions"] < walks["first token"]["functions"]
    assert told["sources"]["files"]["arrows"] > told["sources"]["rooms"]["arrows"]
    assert told["sources"]["files"]["circles_at_import"] == []
