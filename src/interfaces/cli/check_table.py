"""What `smallgpt kernels check` prints: the error of every implementation in every dtype, and each failure once."""

from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """rows are ordered by operation and backend, and hold one dtype each, the same for all."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("operation", "backend"):
        table.add_column(name, no_wrap=True)
    for name in dtypes:
        table.add_column(f"error, {name}", justify="right", no_wrap=True)
    for (operation, backend), group in groupby(rows, key=lambda row: (row["operation"], row["backend"])):
        table.add_row(operation, backend, *map(_cell, group))
    console.print(table)
    for words in dict.fromkeys(row["words"] for row in rows if not row["passed"]):
        console.print(Text(words), soft_wrap=True)


def _cell(row: dict[str, Any]) -> Text:
    if not row["available"]:
        return Text("does not run", style="dim")
    if row["error"] is None:
        return Text("FAILED", style="red")
    return Text(f"{row['error']:.0e}") if row["passed"] else Text(f"{row['error']:.0e} WRONG", style="red")
