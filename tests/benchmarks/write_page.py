"""Write docs/benchmarks.md from docs/benchmarks/*.json. A figure that has no JSON does not appear.

    python tests/benchmarks/write_page.py

A JSON file is {"provenance", "settings", "rows"}, as `smallgpt bench train --out` and its like write it, or a bare list of
rows, as `smallgpt bench attention --json` prints it; a "note" beside the rows is shown above them. Columns are the rows'
own fields, and the end of a field's name gives its unit.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"

HEAD = """\
# Benchmarks

Written by `python tests/benchmarks/write_page.py` from the JSON files in [docs/benchmarks](benchmarks); a test keeps the two
the same. Each table stands below the command that made its figures, and compares within that one run.

- **tokens/s** and times are medians; **slowest–fastest** are the medians of the slowest and the fastest sitting or round.
- **ceiling** is the share of what the machine can do, measured in the same run: FLOPs of matrix products against a large one's
  in the same precision, or, for layer norm, bytes against a large copy's.
- **speed ratio** and **memory ratio** are against the first system of the table; **ratio to best** is the best other system's
  time ÷ this one's.
- **peak memory** is the whole process's on a CPU, libraries included, and the allocator's on a GPU.
- **bandwidth** is the share of what the machine reads from memory that the weights, read once a step, come to; **prefill** the
  share of its float32 matrix product's speed from the prompts to the first tokens.
- **first step** has what is compiled and allocated once.
"""
EXPONENTS = ("time_exponent", "time_theory", "memory_exponent", "memory_theory")
HEADERS = {
    "tokens_per_second": "tokens/s",
    "milliseconds": "ms",
    "bits_per_byte": "bits/byte",
    "nats_per_token": "nats/token",
    "time_exponent": "time ∝ sizeᵏ: k",
    "time_theory": "counted",
    "memory_exponent": "memory ∝ sizeᵏ: k",
    "memory_theory": "counted",
    "below_plain": "below the best plain",
    "bandwidth_fraction": "bandwidth",
    "prefill_fraction": "prefill",
    "passed_seed_seconds": "passed the seed's result after",
}
UNITS = ("_bytes", "_seconds", "_fraction", "_ms")

Row = Mapping[str, Any]


def page(folder: Path) -> str:
    """The whole page from a folder of JSON files, in the order of their names."""
    return "\n".join(
        [
            HEAD,
            *(
                section(path.name, json.loads(path.read_text())) + picture(path)
                for path in sorted(folder.glob("*.json"))
            ),
        ]
    )


def picture(figures: Path) -> str:
    """The plot that was written beside the figures, if there is one."""
    plot = figures.with_suffix(".png")
    return f"\n![{figures.stem}](benchmarks/{plot.name})\n" if plot.exists() else ""


def section(name: str, content: Any) -> str:
    """A file's heading, where its figures come from, and its tables."""
    kept = content if isinstance(content, dict) else {"rows": content}
    settings, note = kept.get("settings", {}), kept.get("note")
    lines = [f"## {name.removesuffix('.json')}", "", origin(kept.get("provenance", {}), name), ""]
    lines += [note, ""] if note else []
    for title, rows in tables(kept["rows"]):
        shared = constant(rows)
        alike = {**settings, **{key: rows[0][key] for key in shared}}
        lines += [title, ""] if title else []
        lines += [words(alike), ""] if alike else []
        lines += table([{key: value for key, value in row.items() if key not in shared} for row in rows])
        lines.append("")
        settings = {}  # once, above the first table
    return "\n".join(lines)


def origin(provenance: Row, name: str) -> str:
    """Command, machine, versions, commit and, where it is known, date, with a link to the figures."""
    link = f"[{name}](benchmarks/{name})"
    if not provenance:
        return f"From {link}; command, machine, versions and commit were not recorded."
    where = [str(provenance[what]) for what in ("machine", "versions") if what in provenance]
    where.append(f"commit {provenance.get('commit', 'not recorded')}")
    where += [str(provenance["date"])] if "date" in provenance else []
    return f"`{provenance['command']}`  \n{'; '.join(where)}; {link}"


def tables(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Titles and rows: most files are one table; rows that name their part are one for each; curves of growth are one of
    exponents and one of their points.
    """
    if rows and "part" in rows[0]:
        parts = dict.fromkeys(row["part"] for row in rows)
        return [(f"{part}:", [_without_part(row) for row in rows if row["part"] == part]) for part in parts]
    if not rows or "points" not in rows[0]:
        return [("", list(rows))]
    exponents: list[Row] = []
    for row in rows:
        sizes = [point["size"] for point in row["points"]]
        exponents.append(
            {"along": row["along"], "sizes": [sizes[0], sizes[-1]], **{key: row[key] for key in EXPONENTS}}
        )
    points: list[Row] = [{"along": row["along"], **point} for row in rows for point in row["points"]]
    return [("Exponents:", exponents), ("Points:", points)]


def _without_part(row: Row) -> Row:
    return {key: own for key, own in row.items() if key != "part"}


def constant(rows: Sequence[Row]) -> list[str]:
    """Fields in words and whole numbers that all rows share, such as a shape: said once, above the table."""
    if len(rows) < 2:
        return []
    shared = [
        key for key in rows[0] if key != "system" and all(key in row and row[key] == rows[0][key] for row in rows)
    ]
    return [key for key in shared if isinstance(rows[0][key], (int, str)) and not key.endswith(UNITS)]


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table with a column for every field."""
    rows = [spread(row) for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    lines = [[header(key) for key in keys], ["---"] * len(keys)]
    lines += [[value(key, row.get(key)) for key in keys] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def spread(row: Row) -> Row:
    """The row with slowest and fastest as one field, where they were."""
    if not {"slowest", "fastest"} <= row.keys():
        return row
    both = {"slowest–fastest": [row["slowest"], row["fastest"]]}
    found: dict[str, Any] = {}
    for key, own in row.items():
        found |= both if key in ("slowest", "fastest") else {key: own}
    return found


def header(key: str) -> str:
    """A field's name for people, without its unit."""
    unit = next((unit for unit in UNITS if key.endswith(unit)), "")
    return HEADERS.get(key, key.removesuffix(unit).replace("_", " "))


def value(key: str, own: Any) -> str:
    """A field with its unit."""
    match own:
        case None:
            return ""
        case bool() | str():
            return str(own)
        case [low, high]:
            return f"{value(key, low)}–{value(key, high)}"
        case list():
            return ", ".join(value(key, one) for one in own)
    if key.endswith("_bytes"):
        return f"{own / 2**20:,.0f} MiB"
    if key.startswith(("bits_per_byte", "nats_per_token", "below_plain")):
        return f"{own:.3f}"
    if key.endswith("_fraction"):
        return f"{own:.1%}"
    if "ratio" in key.split("_"):
        return f"{own:.2f}x"
    unit = " s" if f"_{key}".endswith("_seconds") else " ms" if key.endswith("_ms") else ""
    return number(own) + unit


def number(own: float) -> str:
    """Whole numbers with commas, others with four digits."""
    return f"{own:,.0f}" if isinstance(own, int) or abs(own) >= 1000 else f"{own:.4g}"


def words(fields: Row) -> str:
    """Fields in a line: "n layer 4, vocab size 50,304"."""
    return ", ".join(f"{header(key)} {value(key, own)}" for key, own in fields.items())


if __name__ == "__main__":
    (DOCS / "benchmarks.md").write_text(page(DOCS / "benchmarks"), encoding="utf-8")
