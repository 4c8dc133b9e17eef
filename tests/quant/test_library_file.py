"""Which native library a package takes: its own, that of an install, or none and why."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from quant import native
from quant.native import library_file
from quant.native.library_file import absence, digest, find

ROOT = Path(__file__).resolve().parent.parent.parent


def library(folder: Path, sources: str = "") -> Path:
    """A file in the place of the library of the package in `folder`, of such sources."""
    file = folder / "lib" / library_file.NAMES[0]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\0ELF " + sources.encode() + b"\0")
    return file


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder quant/native of an edgelm that is the first one installed here."""
    site = tmp_path / "site-packages"
    about = site / "edgelm-9.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: edgelm\nVersion: 9\n")
    monkeypatch.syspath_prepend(site)
    return site / "quant" / "native"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The folder quant/native of a checkout, with sources."""
    folder = tmp_path / "checkout" / "quant" / "native"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / "src" / "b.cpp").write_text("int b;")
    (folder / "src" / "deep" / "a.h").write_text("int a;")
    return folder


def test_an_installed_package_takes_the_library_beside_it(tmp_path: Path) -> None:
    """Whatever it was compiled from: there are no sources to differ from."""
    folder = tmp_path / "site-packages" / "quant" / "native"
    assert find([str(folder)]) is None
    assert "installed without its native library" in absence([str(folder)])
    file = library(folder)
    assert find([str(folder)]) == file


def test_an_editable_install_has_two_folders(checkout: Path, installed: Path) -> None:
    file = library(installed, digest(checkout / "src"))
    assert find([str(checkout), str(installed)]) == file


def test_a_checkout_takes_its_own_library_first(checkout: Path, installed: Path) -> None:
    library(installed, digest(checkout / "src"))
    own = library(checkout, digest(checkout / "src"))
    assert find([str(checkout)]) == own


def test_a_checkout_without_one_takes_the_installed_one(checkout: Path, installed: Path) -> None:
    file = library(installed, digest(checkout / "src"))
    assert find([str(checkout)]) == file


def test_a_library_of_other_sources_is_refused(checkout: Path, installed: Path) -> None:
    """Beside the sources or installed; one that fits is taken behind one that does not."""
    old = library(checkout, digest(checkout / "src"))
    (checkout / "src" / "deep" / "a.h").write_text("int changed;")
    assert find([str(checkout)]) is None
    told = absence([str(checkout)])
    assert f"{old} was compiled from other sources than the checkout" in told
    assert f"{checkout.parent.parent} has; `pip install .` there" in told
    file = library(installed, digest(checkout / "src"))
    assert find([str(checkout)]) == file


def test_a_checkout_without_any_names_the_command(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is installed; a compiler need not be what is missing."""
    monkeypatch.setattr(library_file, "DISTRIBUTION", "not-installed-anywhere")
    assert find([str(checkout)]) is None
    told = absence([str(checkout)])
    assert f"the checkout {checkout.parent.parent} has no native library; `pip install .`" in told
    assert "no C++ compiler" not in told


def test_every_source_tells(checkout: Path) -> None:
    """Its name and its text, in folders too; notes beside them do not."""
    source, found = checkout / "src" / "deep" / "a.h", {digest(checkout / "src")}
    (checkout / "src" / "notes.txt").write_text("not compiled")
    found.add(digest(checkout / "src"))
    assert len(found) == 1
    source.write_text("int changed;")
    found.add(digest(checkout / "src"))
    source.rename(source.with_name("c.h"))
    found.add(digest(checkout / "src"))
    assert len(found) == 3


@pytest.mark.skipif(native.missing() is not None, reason=f"no native library: {native.missing()}")
def test_cmake_computes_the_same_digest() -> None:
    """If it fails for an installed package, this checkout has other sources: install it again."""
    told = native.library().edgelm_sources
    told.restype = ctypes.c_char_p
    assert told().decode() == digest(ROOT / "quant" / "native" / "src")
