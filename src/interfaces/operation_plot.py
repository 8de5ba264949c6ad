"""Speed, memory and the roofline of timed operations as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallgpt.application.benchmarking import Ceilings, three_digits
from smallgpt.domain.errors import ConfigError

FORMATS = (".png", ".svg", ".pdf")
MARKERS = "osD^vP<>X*h"  # eleven, so that the eleventh line differs from the first in it
Row = dict[str, Any]


def writable(path: Path) -> None:
    """Before minutes are spent: raise ConfigError for a suffix that is no picture's, and make the folder."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} names no picture; end it in {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)


def plot(rows: Sequence[Row], sizes: Sequence[str], ceilings: Ceilings, title: str, path: Path) -> None:
    """Write speed and extra memory over the first of `sizes` (columns of the rows) that varies, and a roofline.

    A panel of speed for each direction; memory and roofline are of the last one ("both", where it was timed). The others
    of `sizes` that vary make a line each.
    """
    from matplotlib.figure import Figure

    varying = [name for name in sizes if len({row[name] for row in rows}) > 1]
    along, others = (varying or [*sizes])[0], varying[1:]
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    labels = list(dict.fromkeys(_label(row, others) for row in rows))
    styles = _styles(labels)
    columns = max(2, len(directions))
    figure = Figure(figsize=(4.4 * columns + 2.6, 8.0), layout="constrained")
    grid = figure.add_gridspec(2, 2 * columns)
    width = 2 * columns // len(directions)
    speeds: list[Any] = []
    for i, direction in enumerate(directions):
        cells = grid[0, width * i : width * (i + 1)]
        panel = figure.add_subplot(cells, sharey=speeds[0] if speeds else None)
        _lines(panel, [row for row in rows if row["direction"] == direction], along, others, "rate", styles)
        ceiling = rows[0]["rate"] / rows[0]["ceiling_fraction"]
        panel.axhline(ceiling, color="black", linewidth=1.2, linestyle=":", label="measured ceiling")
        panel.set(title=f"speed, {direction}", ylabel=rows[0]["rate_unit"])
        speeds.append(panel)
    last = [row for row in rows if row["direction"] == directions[-1]]
    _memory(figure.add_subplot(grid[1, :columns]), last, along, others, styles)
    _roofline(figure.add_subplot(grid[1, columns:]), last, others, ceilings, styles)
    handles = {label: line for panel in speeds for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right upper", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _label(row: Row, others: Sequence[str]) -> str:
    return ", ".join([row["system"], *(f"{name.replace('_', ' ')} {row[name]:,}" for name in others)])


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and marker each; "-apart" has those of the system that it is a form of, and is dashed."""
    whole = {label: label.replace("-apart", "") for label in labels}
    number = {name: i for i, name in enumerate(dict.fromkeys(whole.values()))}
    return {label: _style(number[whole[label]], dashed=label != whole[label]) for label in labels}


def _style(number: int, *, dashed: bool) -> dict[str, Any]:
    colour = f"C{number % 10}"
    return {
        "color": colour,
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 5,
        "markerfacecolor": "white" if dashed else colour,
        "linestyle": "--" if dashed else "-",
    }


def _lines(
    panel: Any,
    rows: Sequence[Row],
    along: str,
    others: Sequence[str],
    what: str,
    styles: dict[str, Any],
    one: float = 1,
) -> None:
    """A line for each label, on logarithmic axes with the sizes and round numbers as ticks."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row[what] is not None:
            lines.setdefault(_label(row, others), []).append((row[along], row[what] / one))
    for label, points in lines.items():
        panel.plot(*zip(*sorted(points), strict=True), label=label, **styles[label])
    panel.set(xscale="log", yscale="log", xlabel=along.replace("_", " "))
    ticks = sorted({row[along] for row in rows})
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.minorticks_off()
    _round_numbers(panel.yaxis)
    panel.grid(alpha=0.3)


def _memory(panel: Any, rows: Sequence[Row], along: str, others: Sequence[str], styles: dict[str, Any]) -> None:
    _lines(panel, rows, along, others, "extra_memory_bytes", styles, one=2**20)
    found = [row["extra_memory_bytes"] / 2**20 for row in rows if row["extra_memory_bytes"]]
    if len(found) < len(rows):  # zero has no logarithm
        panel.set_yscale("symlog", linthresh=min(found, default=1.0))
        _round_numbers(panel.yaxis)
    panel.set(ylabel="MiB", title="extra memory at the peak, forward and backward")


def _roofline(
    panel: Any, rows: Sequence[Row], others: Sequence[str], ceilings: Ceilings, styles: dict[str, Any]
) -> None:
    """FLOP/s over FLOPs a byte, under the two measured ceilings."""
    ridge = ceilings.flops / ceilings.bytes
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        flops = row["ceiling_fraction"] * _ceiling_flops(row, ceilings)
        points.setdefault(_label(row, others), []).append((row["arithmetic_intensity"], flops / 1e12))
    for label, own in points.items():
        panel.plot(*zip(*sorted(own), strict=True), **styles[label] | {"linewidth": 0.8})
    found = [x for own in points.values() for x, _ in own]
    left, right = min(*found, ridge / 3) / 2, max(*found, 3 * ridge) * 2
    roof = [(x, min(ceilings.flops, x * ceilings.bytes) / 1e12) for x in (left, ridge, right)]
    panel.plot(*zip(*roof, strict=True), color="black", linewidth=1.2, linestyle=":")
    panel.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP / byte", ylabel="TFLOP/s")
    panel.set(title=f"roofline, {rows[0]['direction']}")
    panel.set_ylim(top=1.8 * ceilings.flops / 1e12)
    above: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9}
    panel.annotate(
        f"product {three_digits(ceilings.flops / 1e12)} TFLOP/s", roof[2], xytext=(0, 5), ha="right", **above
    )
    panel.annotate(f"copy {three_digits(ceilings.bytes / 1e9)} GB/s", roof[1], xytext=(-16, -4), ha="right", **above)
    _round_numbers(panel.xaxis)
    _round_numbers(panel.yaxis)
    panel.grid(alpha=0.3)


def _ceiling_flops(row: Row, ceilings: Ceilings) -> float:
    """FLOP/s at which the row would be at its ceiling."""
    return ceilings.flops if row["rate_unit"] == "TFLOP/s" else ceilings.bytes * row["arithmetic_intensity"]


def _round_numbers(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, fewer over many decades, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    wide = low <= 0 or high / low > 1e3
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_locator(NullLocator())
