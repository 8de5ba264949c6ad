"""The pictures of a report, drawn by matplotlib as SVG that takes its colours from the page's light or dark scheme."""

import io
import re
from math import isfinite
from typing import TYPE_CHECKING

from smallgpt.application.findings import RunRecord, number
from smallgpt.interfaces.report.curves import smoothed, spread, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that the SVG is searched for: each becomes the CSS variable of its name.
COLOURS = {"ink": "#010101", "faint": "#020202", "a": "#0a0a01", "b": "#0a0a02", "c": "#0a0a03", "d": "#0a0a04"}
COLOURS |= {"e": "#0a0a05", "f": "#0a0a06"}
RUN_COLOURS = ("a", "b", "c", "d", "e", "f")
FEW = 40
"""A series this short is drawn with its points."""


def loss_plot(run: RunRecord) -> str:
    """Training loss, raw and smoothed, the validation passes, and the n-gram lines to beat; nats per token."""
    figure, axes = _axes("nats per token", width=5.8, height=3.8, legend=True, margin=1.15)
    steps = [float(event["step"]) for event in run.train]
    added = {"smoothed labels": run.config.training.label_smoothing, "z-loss": run.config.training.z_loss}
    words = ", ".join(name for name, weight in added.items() if weight)
    how = f" ({words})" if words else ""
    _line(axes, steps, run.losses, "faint", width=0.8)
    _line(axes, steps, smoothed(run.losses), "a", label="training" + how)
    passes = [(float(event["step"]), number(event, "nats_per_token")) for event in run.validations]
    _points(axes, passes, "b", "validation")
    seen = [*run.losses, *(nats for _, nats in passes)]
    _limit(axes, seen, run.baselines)
    _ngram_lines(axes, run.baselines)
    _not_finite_marks(axes, [s for s, loss in zip(steps, run.losses, strict=True) if not isfinite(loss)])
    return _svg(figure, "Training and validation loss over the steps, with the n-gram lines")


def bits_plot(run: RunRecord) -> str:
    """Bits per byte of the validation passes; empty when the data's bytes are unknown."""
    passes = [(float(e["step"]), bits) for e in run.validations if isfinite(bits := number(e, "bits_per_byte"))]
    if not passes:
        return ""
    figure, axes = _axes("bits per byte")
    _points(axes, passes, "b", None)
    return _svg(figure, "Bits per byte of the validation split over the steps")


def rate_plot(run: RunRecord) -> str:
    """The learning rate as it was."""
    figure, axes = _axes("learning rate")
    _line(axes, *_series(run, "learning_rate"), "c")
    axes.set_ylim(bottom=0)
    return _svg(figure, "Learning rate over the steps")


def norm_plot(run: RunRecord) -> str:
    """The gradient norm before clipping, and the norm at which it is clipped."""
    figure, axes = _axes("gradient norm", legend=True)
    steps, norms = _series(run, "grad_norm")
    _line(axes, steps, norms, "faint", width=0.8)
    _line(axes, steps, smoothed(norms), "d")
    clip = run.config.training.clip_norm
    if clip:
        axes.axhline(clip, color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (4, 3)), label=f"clipped at {clip:g}")
        axes.legend(**_legend())
    _limit(axes, norms, {})
    _not_finite_marks(axes, [s for s, norm in zip(steps, norms, strict=True) if not isfinite(norm)])
    return _svg(figure, "Gradient norm over the steps")


def speed_plot(run: RunRecord) -> str:
    """Tokens per second of each step, smoothed."""
    figure, axes = _axes("tokens per second")
    steps, speeds = _series(run, "tokens_per_second")
    _line(axes, steps, speeds, "faint", width=0.8)
    _line(axes, steps, smoothed(speeds, 0.05), "e")
    _limit(axes, speeds, {})
    axes.set_ylim(bottom=0)
    return _svg(figure, "Training speed over the steps")


def compared_losses(runs: dict[str, RunRecord]) -> str:
    """Smoothed training losses of several runs over the steps."""
    figure, axes = _axes("training loss, nats per token", width=6.2, height=3.7)
    for at, (name, run) in enumerate(runs.items()):
        steps, losses = _series(run, "loss")
        _line(axes, steps, smoothed(losses), RUN_COLOURS[at % 6], label=name, dashed=at >= 6)
    _limit(axes, [loss for run in runs.values() for loss in run.losses], {})
    axes.legend(**_many())
    return _svg(figure, "Training losses of the runs over the steps")


def compared_validations(runs: dict[str, RunRecord]) -> str:
    """Validation of several runs over the minutes: bits per byte where all have it, else nats per token."""
    bytes_known = all(isfinite(number(e, "bits_per_byte")) for run in runs.values() for e in run.validations)
    key = "bits_per_byte" if bytes_known else "nats_per_token"
    figure, axes = _axes(f"validation, {key.replace('_', ' ')}", "minutes", width=6.2, height=3.7)
    for at, (name, run) in enumerate(runs.items()):
        seconds = {int(event["step"]): number(event, "seconds") for event in run.train}
        passes = [(seconds.get(int(e["step"]), 0.0) / 60, number(e, key)) for e in run.validations]
        _points(axes, passes, RUN_COLOURS[at % 6], name, dashed=at >= 6)
    axes.legend(**_many())
    return _svg(figure, "Validation of the runs over time")


def _axes(
    label: str,
    below: str = "step",
    *,
    width: float = 5.0,
    height: float = 3.0,
    legend: bool = False,
    margin: float = 0.15,
) -> "tuple[Figure, Axes]":
    """An empty picture, sizes in inches: `legend` leaves a row for one under the title, `margin` room on the right.

    Fixed margins put the axes of all pictures in line, and take half the time of a computed layout.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    left, bottom, top = 0.65, 0.55, 0.6 if legend else 0.35
    inside = (left / width, bottom / height, (width - left - margin) / width, (height - bottom - top) / height)
    axes = figure.add_axes(inside)
    axes.set_title(label, loc="left", pad=24 if legend else 6, fontsize=10.5, color=COLOURS["ink"])
    axes.set_xlabel(below, fontsize=10, color=COLOURS["ink"])
    axes.tick_params(colors=COLOURS["ink"], labelsize=10, length=3)
    axes.grid(True, color=COLOURS["faint"], linewidth=0.5, alpha=0.5)
    axes.locator_params(nbins=6)
    axes.locator_params(axis="x", integer=below == "step", min_n_ticks=1)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["ink"])
    return figure, axes


def _series(run: RunRecord, key: str) -> tuple[list[float], list[float]]:
    return [float(event["step"]) for event in run.train], [number(event, key) for event in run.train]


def _line(
    axes: "Axes",
    x: list[float],
    y: list[float],
    colour: str,
    *,
    label: str | None = None,
    width: float = 1.8,
    dashed: bool = False,
) -> None:
    x, y = thinned(x, y)
    marker = "." if len(x) <= FEW else ""
    style = "--" if dashed else "-"
    axes.plot(x, y, style, color=COLOURS[colour], linewidth=width, marker=marker, label=label)
    if label:
        axes.legend(**_legend())


def _points(
    axes: "Axes", points: list[tuple[float, float]], colour: str, label: str | None, *, dashed: bool = False
) -> None:
    if not points:
        return
    x, y = thinned([x for x, _ in points], [y for _, y in points])
    marker = "o" if len(x) <= FEW else ""
    style = "--" if dashed else "-"
    axes.plot(x, y, style, color=COLOURS[colour], linewidth=1.4, marker=marker, markersize=4, label=label)
    if label:
        axes.legend(**_legend())


def _legend() -> dict[str, object]:
    """In a row above the axes, where it hides nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "ncols": 3, "columnspacing": 1.2}
    return {"frameon": False, "fontsize": 10, "labelcolor": COLOURS["ink"], **place}


def _many() -> dict[str, object]:
    return {"frameon": False, "fontsize": 10, "labelcolor": COLOURS["ink"], "loc": "upper right"}


def _limit(axes: "Axes", values: list[float], lines: dict[str, float]) -> None:
    """Keep a few wild values from flattening the rest: the top is at most six medians, or the highest line."""
    finite = sorted(value for value in values if isfinite(value))
    if not finite:
        return
    high = max([min(finite[-1], 6 * finite[len(finite) // 2]), *lines.values()])
    low = min([finite[0], *lines.values()])
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)


def _ngram_lines(axes: "Axes", baselines: dict[str, float]) -> None:
    bottom, top = axes.get_ylim()
    heights = spread(list(baselines.values()), 0.065 * (top - bottom))
    for (name, nats), height in zip(baselines.items(), heights, strict=True):
        axes.axhline(nats, color=COLOURS["ink"], linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        where = axes.get_yaxis_transform()
        axes.text(1.01, height, f"{name} {nats:.2f}", transform=where, va="center", fontsize=9.5, color=COLOURS["ink"])


def _not_finite_marks(axes: "Axes", steps: list[float]) -> None:
    if not steps:
        return
    bottom = axes.get_ylim()[0]
    few = steps[:: -(-len(steps) // 200)]
    axes.plot(few, [bottom] * len(few), "x", color=COLOURS["f"], clip_on=False, label="not finite")
    axes.legend(**_legend())


def _svg(figure: "Figure", description: str) -> str:
    """The figure as an inline <svg>: sized by the page, its text real text, nothing fetched from anywhere."""
    import matplotlib

    drawing = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": description}
    with matplotlib.rc_context(settings):
        figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", svg[: (end := svg.index(">"))]) + svg[end:]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", svg)
    for name, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
