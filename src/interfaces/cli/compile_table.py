"""What `smallgpt kernels compile` prints: the worst figures of each kernel on each target, and every broken rule."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from smallgpt.kernels.compile_report import Row, faults
from smallgpt.kernels.launching import ARCHITECTURES


def show(rows: Iterable[Row], console: Console) -> None:
    """A table for each operation, then the faults."""
    ordered = sorted(rows, key=_place)
    for operation, of_operation in groupby(ordered, key=lambda row: row.operation):
        console.print(_table(operation, list(of_operation)))
    for line in fault_lines(ordered):
        console.print(Text(line, style="red"), soft_wrap=True)


def fault_lines(rows: Iterable[Row]) -> Iterator[str]:
    """layer_norm backward, sm_90, width 8192 float32 (ROWS=1 C=8192, 32 warps): spills 32 bytes a thread"""
    for row in rows:
        words = f"{row.operation} {row.kernel}, {row.target}, {row.variant} ({row.tile}, {row.num_warps} warps)"
        yield from (f"{words}: {fault}" for fault in faults(row))


def _table(operation: str, rows: list[Row]) -> Table:
    title = f"{operation}: the worst of each kernel's launches"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("target", "kernel", "n"):
        table.add_column(name, no_wrap=True)
    for name in ("registers", "spilled", "shared KB", "occupancy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("instruction")
    for (target, kernel), group in groupby(rows, key=lambda row: (row.target, row.kernel)):
        launches = list(group)
        table.add_row(
            target,
            kernel,
            str(len(launches)),
            str(max(row.registers for row in launches)),
            f"{max(row.spill_bytes for row in launches)} B",
            f"{max(row.shared_bytes for row in launches) / 1024:.0f} of {launches[0].shared_limit // 1024}",
            f"{min(row.occupancy for row in launches):.0%}",
            ", ".join(sorted({row.instruction for row in launches})),
            style="red" if any(map(faults, launches)) else None,
        )
    return table


def _place(row: Row) -> tuple[str, int, str, str, str]:
    return row.operation, ARCHITECTURES.index(row.target), row.kernel, row.variant, row.key
