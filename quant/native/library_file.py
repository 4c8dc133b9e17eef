"""Finds the native library, and checks that it was built from the sources beside this package.

An installed package has its library in the folder `lib` beside it. A checkout has sources and
often no library: it takes that of the edgelm installed in the same environment. There a library
is one only if it was compiled from the very sources at hand, which CMake writes into it
(src/sources.cmake): an older one would quietly run other code than one reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

NAMES = ("edgelm_native.so", "edgelm_native.dll")
DISTRIBUTION = "edgelm"


def find(folders: Iterable[str]) -> Path | None:
    """The library for the package that lies in `folders`; None if there is none.

    An editable install has two folders: that of the sources, and where it puts the library.
    """
    sources = _sources(folders)
    if sources is None:
        return next(_libraries(folders), None)
    wanted = digest(sources).encode()
    found = (file for file in _candidates(folders) if wanted in file.read_bytes())
    return next(found, None)


def absence(folders: Iterable[str]) -> str:
    """Reason why ``find`` finds none, in words."""
    sources = _sources(folders)
    if sources is None:
        return "the package was installed without its native library (no C++ compiler)"
    checkout = sources.parent.parent.parent
    for file in _candidates(folders):
        return (
            f"{file} was compiled from other sources than the checkout {checkout} has; "
            "`pip install .` there builds its own"
        )
    return (
        f"the checkout {checkout} has no native library; `pip install .` there builds it, with a "
        "C++17 compiler"
    )


def digest(sources: Path) -> str:
    """Digest of a library's sources: src/sources.cmake computes the same."""
    files = {
        path.relative_to(sources).as_posix(): path
        for pattern in ("*.cpp", "*.h")
        for path in sources.rglob(pattern)
    }
    lines = (
        f"{name} {hashlib.sha256(files[name].read_bytes()).hexdigest()}\n" for name in sorted(files)
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sources(folders: Iterable[str]) -> Path | None:
    """The C++ sources beside the package, which only a checkout has."""
    return next((path for folder in folders if (path := Path(folder) / "src").is_dir()), None)


def _candidates(folders: Iterable[str]) -> Iterator[Path]:
    yield from _libraries(folders)
    try:
        installed = distribution(DISTRIBUTION).locate_file("quant/native")
    except PackageNotFoundError:
        return
    yield from _libraries([str(installed)])


def _libraries(folders: Iterable[str]) -> Iterator[Path]:
    files = (Path(folder) / "lib" / name for folder in folders for name in NAMES)
    return (file for file in files if file.is_file())
