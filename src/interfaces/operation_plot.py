"""Times of operations as a picture: one panel a direction, one line a system, logarithmic axes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallgpt.domain.errors import ConfigError

FORMATS = (".png", ".svg", ".pdf")


def writable(path: Path) -> None:
    """Before minutes are spent: raise ConfigError for a suffix that is no picture's, and make the folder."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} names no picture; end it in {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def plot(rows: Sequence[dict[str, Any]], sizes: Sequence[str], title: str, path: Path) -> None:
    """Write milliseconds over the first of `sizes` (columns of the rows) that varies, a line for each value of the others."""
    from matplotlib.figure import Figure

    varying = [name for name in sizes if len({row[name] for row in rows}) > 1]
    along, others = (varying or [*sizes])[0], varying[1:]
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    ticks = sorted({row[along] for row in rows})
    figure = Figure(figsize=(4.2 * len(directions) + 2.4, 4.0), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for panel, direction in zip(panels, directions, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row["direction"] == direction:
                label = ", ".join([row["system"], *(f"{name.replace('_', ' ')} {row[name]:,}" for name in others)])
                lines.setdefault(label, []).append((row[along], row["milliseconds"]))
        for label, points in lines.items():
            panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=label)
        panel.set(xscale="log", yscale="log", xlabel=along.replace("_", " "), title=direction)
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("milliseconds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
