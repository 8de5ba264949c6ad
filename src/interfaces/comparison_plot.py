"""Systems side by side as bars: tokens a second, and peak memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of rows of `bench train` or `bench generate`; whiskers go from the slowest to the fastest sitting."""
    from matplotlib.figure import Figure

    names = [_name(row) for row in rows]
    rates = [row["tokens_per_second"] for row in rows]
    below = [row["tokens_per_second"] - min(row["slowest"], row["tokens_per_second"]) for row in rows]
    above = [max(row["fastest"], row["tokens_per_second"]) - row["tokens_per_second"] for row in rows]
    figure = Figure(figsize=(9.0, 1.2 + 0.4 * len(rows)), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    speed.barh(names, rates, xerr=[below, above], capsize=3)
    speed.set(title="tokens a second, slowest to fastest sitting", xlabel="tokens/s")
    memory.barh(names, [row["peak_memory_bytes"] / 2**20 for row in rows], color="tab:orange")
    memory.set(title="peak memory", xlabel="MiB")
    speed.invert_yaxis()  # the first row on top, in both panels
    for panel in (speed, memory):
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


def _name(row: dict[str, Any]) -> str:
    return f"{row['system']}, {row['streams']} at once" if "streams" in row else row["system"]
