"""What `--profile N` prints: the parts of a step, then its longest operations."""

from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

LONGEST = 20
WIDE = 140
NARROW = ("ms", "share", "matmul", "copy")
PRODUCTS, TRAFFIC = ("GFLOP", "GFLOP/s", "matmul"), ("MB", "GB/s", "copy")


def in_words(profile: dict[str, Any], width: int | None) -> str:
    """`profile` is what RUN/profile/operations.json holds. A terminal narrower than WIDE columns gets fewer of them."""
    wide = width is None or width >= WIDE
    ceilings, milliseconds = profile["ceilings"], profile["step_milliseconds"]
    parts = _table("part", profile["parts"], wide)
    calls = [f"{sum(row['calls'] for row in profile['parts']):,.0f}"] if wide else []
    parts.add_section()
    parts.add_row("all", *calls, f"{milliseconds:.1f}", "100.0%")
    console = Console(file=StringIO(), width=WIDE if width is None else width)
    with console.capture() as text:
        console.print(parts)
        console.print(_table("operation", profile["operations"][:LONGEST], wide))
    return text.get() + (
        f"{profile['steps']} steps of {milliseconds:.1f} ms ({profile['unrecorded_step_milliseconds']:.1f} ms without the "
        f"recording), timed by {profile['clock']}. Measured here: {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s in a large "
        f"matrix product, {ceilings['bytes_per_second'] / 1e9:.1f} GB/s in a large copy, {profile['call_microseconds']:.1f} µs "
        "for a call that moves nothing; a row is nearest to the one that alone would take it longest. Bytes are the least "
        "traffic, estimated from shapes; above 100 % of a copy they stayed in a cache."
    )


def _table(first: str, rows: list[dict[str, Any]], wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, expand=True)
    table.add_column(first, no_wrap=True, ratio=1)
    for name in ("calls", "ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s", "matmul", "copy") if wide else NARROW:
        table.add_column(name, justify="right", min_width=6)
    table.add_column("nearest to", min_width=10)
    for row in rows:
        numbers = _numbers(row)
        operation = "" if row["operation"] is None else f"{row['operation']}: "
        name = f"{operation}{row['part']}, {row['direction']}"
        table.add_row(name, *(numbers.values() if wide else (numbers[name] for name in NARROW)), row["bound"])
    return table


def _numbers(row: dict[str, Any]) -> dict[str, str]:
    numbers = {
        "calls": f"{row['calls']:,.0f}",
        "ms": f"{row['milliseconds']:.1f}",
        "share": f"{row['share']:.1%}",
        "GFLOP": f"{row['flops'] / 1e9:.2f}",
        "MB": f"{row['bytes'] / 1e6:.1f}",
        "GFLOP/s": f"{row['flops_per_second'] / 1e9:,.0f}",
        "GB/s": f"{row['bytes_per_second'] / 1e9:.1f}",
        "matmul": f"{row['of_matmul_ceiling']:.0%}",
        "copy": f"{row['of_copy_ceiling']:.0%}",
    }
    absent = [*(PRODUCTS if row["flops"] == 0 else ()), *(TRAFFIC if row["bytes"] == 0 else ())]
    return numbers | dict.fromkeys(absent, "")
