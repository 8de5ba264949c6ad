"""A picture of what tests/benchmarks/scale_out.py found: bytes, times and scaling, each beside what was counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write the picture; a part that was not measured is left out."""
    from matplotlib.figure import Figure

    parts: list[tuple[str, str, str | None, str]] = [
        ("megabytes a process and step", "sent_megabytes", "gloo_megabytes", "hosts"),
        ("seconds of a step between two hosts", "step_seconds", "added_seconds", "link"),
        ("tokens/s, ÷ one process with all cores", "ratio", None, "processes"),
    ]
    found = [(part, [row for row in rows if part[1] in row and part[3] in row]) for part in parts]
    found = [(part, own) for part, own in found if own]
    figure = Figure(figsize=(10, 0.26 * sum(len(own) + 4 for _, own in found)), layout="constrained")
    axes = figure.subplots(len(found), squeeze=False, height_ratios=[len(own) + 2 for _, own in found])[:, 0]
    for (part, own), ax in zip(found, axes, strict=True):
        title, measured, counted, group = part
        own = [row for row in own if row.get("gloo_megabytes", 0) is not None]  # steps, and not what else was counted
        names = [f"{row.get('what', row.get('model'))}, {row[group]} {group if group != 'link' else ''}" for row in own]
        ax.barh(range(len(own)), [row[measured] for row in own], height=0.6, label="measured", color="C0")
        if counted is not None:
            with_count = [(at, row[counted]) for at, row in enumerate(own) if row.get(counted) is not None]
            at, values = zip(*with_count, strict=True)
            ax.plot(values, at, "|", color="C1", markersize=14, markeredgewidth=2, label="counted")
        else:
            ax.axvline(0.9, color="C1", label="0.9")
        ax.set_yticks(range(len(own)), names, fontsize=8)
        ax.invert_yaxis()
        ax.set_title(title, loc="left", fontsize=10)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)
