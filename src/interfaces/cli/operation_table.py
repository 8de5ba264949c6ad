"""How `smallgpt bench attention` and its like show what was timed: a table a shape."""

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """One a shape, a line a system and direction."""
    from smallgpt.application.benchmarking import OperationRow

    measured = {*OperationRow.__dataclass_fields__, "dtype", "input_sets"}
    found: dict[str, Table] = {}
    for row in rows:
        title = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in measured)
        if title not in found:
            found[title] = _empty(title, row["rate_unit"])
        found[title].add_row(*_cells(row))
    return list(found.values())


def _empty(title: str, unit: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("direction", "system"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "rounds", unit, "of ceiling", "best other ÷ this", "extra memory"):
        table.add_column(name, justify="right")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    from smallgpt.application.benchmarking import three_digits

    ratio, extra = row["ratio_to_best"], row["extra_memory_bytes"]
    return [
        row["direction"],
        row["system"],
        f"{row['milliseconds']:.4g}",
        f"{row['fastest']:.4g}–{row['slowest']:.4g}",
        three_digits(row["rate"]),
        f"{row['ceiling_fraction']:.1%}",
        "" if ratio is None else f"{ratio:.2f}x",
        "" if extra is None else f"{extra / 2**20:,.1f} MiB",
    ]
