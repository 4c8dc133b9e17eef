"""Measured tables: they say what a row's model and weights are, and differ from no result."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import plans
import pytest
import table_rows
import tables

ROOT = Path(tables.__file__).parent.parent


def rows(rendered: str) -> list[str]:
    """The lines of a table below its heading."""
    return [line for line in rendered.splitlines() if line.startswith("| ")][2:]


def first_cells(name: str) -> list[str]:
    return [line.split("|")[1].strip() for line in rows(tables.render(name))]


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files that have tables, which tables.py takes for the repository."""
    for path in tables.PLACES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["accuracy", "caches"])
def test_stand_ins_are_called_nano_with_their_size(name: str) -> None:
    """A row called "llama" was taken for Llama."""
    cells = set(first_cells(name))
    families = "|".join(table_rows.NANO.values())
    nano = {cell for cell in cells if re.search(families, cell)}
    assert len(nano) == len(table_rows.NANO)
    assert all(re.fullmatch(rf"nano ({families}) \(\d\.\d M\)", cell) for cell in nano)
    assert cells - nano <= {f"{table_rows.DEMO} (134.5 M)"}


@pytest.mark.smoke
def test_divergence_of_a_size_names_its_stand_in() -> None:
    lines = rows(tables.render("sizes"))
    assert len(lines) >= 3
    assert all(re.search(r"\| 0\.\d+, nano [\w ]+ \(\d\.\d M\) \|$", line) for line in lines)


@pytest.mark.smoke
def test_weights_that_were_quantized_twice_are_marked() -> None:
    demo = [row for row in table_rows.rows_of("accuracy") if row["model"] == "demo"]
    told = {row["asked"]: row["weights"] for row in demo}
    assert told["int4"] == "its own Q4_1, tables re-quantized"
    assert told["none"] == "Q4_1 as floats"
    assert {told[s] for s in ("int8", "int4-g32", "nf4")} == {"re-quantized from Q4_1"}
    peers = [row for row in table_rows.rows_of("compare") if row["case"] == "decode-int4-demo"]
    weights = {row["engine"]: row["weights"] for row in peers}
    assert weights["edgelm, native"] == "int4-g32-zfloat: its own Q4_1"
    assert weights["llama.cpp"] == "Q4_0: re-quantized from Q4_1"
    models = {row["engine"]: row["model"] for row in peers}
    assert models["transformers, bfloat16"] == f"{table_rows.DEMO} shape, random"


@pytest.mark.smoke
def test_a_peak_is_shown_only_where_it_was_measured() -> None:
    show = tables.TABLES["sizes"]["MiB measured"]
    assert show({"predicted_peak_bytes": 1 << 30}) == "not measured"
    assert show({"peak_rss_bytes": 1 << 30}) == "1,024"


def test_a_measured_peak_stays_until_it_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = []

    def answer(*words: str) -> str:
        said.append(words)
        return (
            '{"kv": "bfloat16", "context": 4096, "bits_per_weight": 5.0, "weight_bytes": 1, '
            '"predicted_peak_bytes": 2, "peak_rss_bytes": 3}'
        )

    monkeypatch.setattr(plans, "said", answer)
    before = {"peak_rss_bytes": 7, "measured_by": "edgelm bench", "weight_bytes": 1}
    assert plans.size("llama-3-8b", "int4", before, False)["peak_rss_bytes"] == 7
    assert [words[0] for words in said] == ["plan"]
    other = before | {"weight_bytes": 2}  # a recipe that has changed since
    assert "peak_rss_bytes" not in plans.size("llama-3-8b", "int4", other, False)
    assert "peak_rss_bytes" not in plans.size("llama-3-8b", "int4", {}, False)
    row = plans.size("llama-3-8b", "int4", before, True)
    assert row["peak_rss_bytes"] == 3 and row["measured_by"].startswith("edgelm bench --shape")


@pytest.mark.smoke
@pytest.mark.parametrize("path", list(tables.PLACES))
def test_a_typed_number_is_noticed_and_written_over(documents: Path, path: str) -> None:
    whole = (documents / path).read_text(encoding="utf-8")
    row = rows(tables.render(tables.PLACES[path][1]))[0]
    assert row in whole
    (documents / path).write_text(whole.replace(row, re.sub(r"\d", "9", row)), encoding="utf-8")
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert (documents / path).read_text(encoding="utf-8") == whole


@pytest.mark.smoke
def test_a_table_that_is_gone_is_noticed(
    documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = documents / "README.md"
    readme.write_text("# EdgeLM\n", encoding="utf-8")
    assert tables.main(["--check"]) == 1
    assert "its tables are" in capsys.readouterr().err
