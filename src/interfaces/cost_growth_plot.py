"""How cost grows as a picture: a column of panels a size, time above and memory below, on logarithmic axes."""

from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of the rows of `smallgpt bench scaling`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(rows), 5.6), layout="constrained")
    panels = figure.subplots(2, len(rows), squeeze=False)
    for row, upper, lower in zip(rows, *panels, strict=True):
        sizes = [point["size"] for point in row["points"]]
        seconds = [1000 * point["seconds"] for point in row["points"]]
        memory = [point["memory_bytes"] / 2**20 for point in row["points"]]
        _panel(upper, sizes, seconds, row["time_exponent"], row["time_theory"])
        _panel(lower, sizes, memory, row["memory_exponent"], row["memory_theory"])
        upper.set_title(row["along"].replace("_", " "))
    panels[0, 0].set_ylabel("milliseconds")
    panels[1, 0].set_ylabel("MiB above the start")
    figure.savefig(path, dpi=150)


def _panel(panel: "Axes", sizes: list[float], costs: list[float], measured: float, theory: float) -> None:
    """Points, and both slopes through their middle."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    middle = exp(fmean(map(log, sizes))), exp(fmean(map(log, costs)))
    panel.loglog(sizes, costs, "o", color="tab:blue")
    for slope, name, style in ((measured, "fit", "-"), (theory, "theory", "--")):
        line = [middle[1] * (size / middle[0]) ** slope for size in sizes]
        panel.loglog(sizes, line, style, color="tab:blue" if name == "fit" else "grey", label=f"{name} {slope:.2f}")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.minorticks_off()
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
