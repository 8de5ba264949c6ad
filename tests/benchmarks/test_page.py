"""docs/benchmarks.md says what the JSON files say, and each table where its figures come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.write_page import DOCS, page, section

ORIGIN = {"command": "smallgpt bench train", "machine": "A, 2 threads", "versions": "torch 9", "commit": "abc1234"}


def lines(rows: Any, **also: Any) -> list[str]:
    """The lines of a section whose file has these rows."""
    return section("made.json", {"provenance": ORIGIN, "rows": rows, **also}).splitlines()


def test_the_committed_page_is_what_the_committed_figures_make() -> None:
    made = page(DOCS / "benchmarks")
    assert (DOCS / "benchmarks.md").read_text() == made, "run python tests/benchmarks/write_page.py"


def test_every_table_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"provenance": {**ORIGIN, "date": "2026-01-02"}, "rows": [{"x": 1}]}))
    (tmp_path / "a.json").write_text(json.dumps([{"system": "ours", "milliseconds": 2.0}]))
    made = page(tmp_path)
    assert made.index("## a\n") < made.index("## b\n")
    assert "From [a.json](benchmarks/a.json); command, machine, versions and commit were not recorded." in made
    assert "`smallgpt bench train`  \nA, 2 threads; torch 9; commit abc1234; 2026-01-02; [b.json]" in made


def test_fields_become_columns_with_units() -> None:
    row = {
        "system": "ours",
        "tokens_per_second": 12345.6,
        "slowest": 900.0,
        "fastest": 20000.0,
        "first_step_seconds": 1.5,
    }
    row |= {"peak_memory_bytes": 3 * 2**20, "speed_ratio": 2.0, "ceiling_fraction": 0.5512, "bits_per_byte": 1.6}
    made = lines([row, {**row, "system": "theirs", "speed_ratio": None}], note="One run.")
    assert made[-3:] == [
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| ours | 12,346 | 900–20,000 | 1.5 s | 3 MiB | 2.00x | 55.1% | 1.600 |",
        "| theirs | 12,346 | 900–20,000 | 1.5 s | 3 MiB |  | 55.1% | 1.600 |",
    ]
    assert made[-4].startswith(
        "| system | tokens/s | slowest–fastest | first step | peak memory | speed ratio | ceiling |"
    )
    assert "One run." in made


def test_what_all_operations_share_is_said_once() -> None:
    shape = {"dtype": "bfloat16", "seq_len": 128, "add": False, "extra_memory_bytes": None}
    rows = [
        {"system": name, **shape, "milliseconds": ms, "ratio_to_best": 0.5} for name, ms in (("a", 1.0), ("b", 2.5))
    ]
    assert lines(rows)[-6:] == [
        "dtype bfloat16, seq len 128, add False",
        "",
        "| system | ms | ratio to best |",
        "| --- | --- | --- |",
        "| a | 1 | 0.50x |",
        "| b | 2.5 | 0.50x |",
    ]


def test_curves_of_growth_become_exponents_and_points() -> None:
    points = [{"size": size, "seconds": 0.001 * size, "memory_bytes": 2**20} for size in (1000, 2000)]
    exponents = {"time_exponent": 1.0, "time_theory": 1.25, "memory_exponent": 0.5, "memory_theory": 0.75}
    made = lines([{"along": "n_embd", "points": points, **exponents}], settings={"n_layer": 2})
    assert "n layer 2" in made
    assert "| along | sizes | time ∝ sizeᵏ: k | counted | memory ∝ sizeᵏ: k | counted |" in made
    assert "| n_embd | 1,000–2,000 | 1 | 1.25 | 0.5 | 0.75 |" in made
    assert made[-1] == "| 2,000 | 2 s | 1 MiB |"


def test_rows_of_several_parts_are_a_table_for_each() -> None:
    rows = [{"part": "Bytes", "hosts": 2, "sent": 1.5}, {"part": "Bytes", "hosts": 4, "sent": 2.0}]
    made = lines([*rows, {"part": "Time", "step_seconds": 0.25}])
    at = made.index("Bytes:")
    assert made[at + 2 : at + 6] == ["| hosts | sent |", "| --- | --- |", "| 2 | 1.5 |", "| 4 | 2 |"]
    assert made[made.index("Time:") + 2 :] == ["| step |", "| --- |", "| 0.25 s |"]


@pytest.mark.parametrize("path", sorted((DOCS / "benchmarks").glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_file_names_its_command(path: Path) -> None:
    assert set(ORIGIN) <= set(json.loads(path.read_text())["provenance"])
