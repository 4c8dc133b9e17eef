"""Which function calls which while a model is loaded and asked; a process of its own.

    python -P benches/walking/tracing.py CHECKOUT MODEL_FOLDER

Runs the packages of CHECKOUT, wherever others are installed, and prints one JSON document: for each
walk its pairs of (caller, callee) in the order in which they first came, as ``module:function``.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

PACKAGES = ("edgelm", "quant")
YOU = ""
"""The caller of what is called from outside the two packages."""
_AT_IMPORT = "at import"
_PARTS = ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>")  # of the function around them
SETTINGS: dict[str, Any] = {"quant": "int4", "kv": "int8", "context": 64, "budget": "2GiB"}
PROMPT = "What a walk is"
TOKENS = 6
STEADY = 3  # the token, from 0, that stands for all later ones


class Recorder:
    """Pairs of functions of the two packages below ``folder`` of which one calls the other.

    Frames of other code between the two are passed over: what ``with`` or torch calls for a
    function, that function calls. Comprehensions belong to the function around them. What runs
    while a module is imported is left out, and so are other threads.
    """

    def __init__(self, folder: Path) -> None:
        self.pairs: dict[tuple[str, str], None] = {}
        self._folder = folder
        self._roots = tuple(f"{folder / package}{os.sep}" for package in PACKAGES)
        self._names: dict[int, tuple[CodeType, str | None]] = {}

    @contextmanager
    def recording(self) -> Iterator[dict[tuple[str, str], None]]:
        """The pairs that come while the block runs."""
        self.pairs = pairs = {}
        sys.setprofile(self._profile)
        try:
            yield pairs
        finally:
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or frame.f_code.co_name in _PARTS:
            return
        callee = self._name(frame.f_code)
        if callee is None or callee == _AT_IMPORT:
            return
        caller = self._caller(frame)
        if caller not in (callee, _AT_IMPORT):
            self.pairs.setdefault((caller, callee))

    def _caller(self, frame: FrameType) -> str:
        above = frame.f_back
        while above is not None:
            name = self._name(above.f_code)
            if name is not None:
                return name
            above = above.f_back
        return YOU

    def _name(self, code: CodeType) -> str | None:
        """``module:function``, None for other code than that of the two packages."""
        if id(code) not in self._names:
            self._names[id(code)] = code, self._named(code)  # kept, so that no other gets its id
        return self._names[id(code)][1]

    def _named(self, code: CodeType) -> str | None:
        if not code.co_filename.startswith(self._roots):
            return None
        if not code.co_flags & inspect.CO_OPTIMIZED:  # the body of a module or a class
            return _AT_IMPORT
        parts = Path(code.co_filename).relative_to(self._folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        function = code.co_qualname
        while function.endswith(_PARTS):
            function = function.rpartition(".<locals>.")[0]
        return f"{module}:{function}"


class CheckoutFinder:
    """Finds the two packages below a folder, before whatever else would find them."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        return PathFinder.find_spec(name, path or [self._folder], target)


def walks(folder: Path, model: Path) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each walk: ``load``, and three tokens of one answer."""
    import edgelm

    recorder = Recorder(folder)
    found: dict[str, list[tuple[str, str]]] = {}
    with recorder.recording() as pairs:
        lm = edgelm.load(model, threads=1, **SETTINGS)
    found["load"] = list(pairs)
    tokens = []
    with recorder.recording() as pairs:
        pieces = lm.stream(PROMPT, max_new_tokens=TOKENS)
    asked = pairs
    for _ in range(STEADY + 1):
        with recorder.recording() as pairs:
            next(pieces)
        tokens.append(list(pairs))
    pieces.close()
    lm.close()
    found["first token"] = list(asked | dict.fromkeys(tokens[0]))
    found["second token"] = tokens[1]
    found["later token"] = tokens[STEADY]
    return found


def main() -> None:
    folder, model = (Path(argument).resolve() for argument in sys.argv[1:])
    sys.meta_path.insert(0, CheckoutFinder(folder))  # type: ignore[arg-type]
    gc.disable()  # finalizers would run at any time
    print(json.dumps(walks(folder, model)))


if __name__ == "__main__":
    main()
