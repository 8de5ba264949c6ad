"""Series made fit for a picture: smoothed, thinned, and free of what cannot be drawn."""

from itertools import pairwise
from math import isfinite, nan

MOST_POINTS = 1200
"""More cannot be told apart on a screen."""


def smoothed(values: list[float], share: float = 0.02) -> list[float]:
    """Mean of the exponential means from the left and from the right, over about `share` of the series.

    From one side alone it would lag behind a falling loss. NaN where the value is not finite.
    """
    right = _exponential_mean(values[::-1], share)[::-1]
    return [(a + b) / 2 for a, b in zip(_exponential_mean(values, share), right, strict=True)]


def _exponential_mean(values: list[float], share: float) -> list[float]:
    """Started without bias, as in Adam (arXiv 1412.6980, section 3): divided by the weight collected so far."""
    decay = 1 - 1 / max(1.0, share * len(values))
    mean = weight = 0.0
    means = []
    for value in values:
        if isfinite(value):
            mean = decay * mean + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        means.append(mean / weight if isfinite(value) else nan)
    return means


def thinned(x: list[float], y: list[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most about `most` points; of each stretch the lowest and the highest stay, so that no spike is lost."""
    if len(x) <= most:
        return x, y
    stretch = -(-len(x) // (most // 2))
    keep: set[int] = {0, len(x) - 1}
    for start in range(0, len(x), stretch):
        finite = [i for i in range(start, min(start + stretch, len(x))) if isfinite(y[i])]
        keep |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)} if finite else {start}
    order = sorted(keep)
    return [x[i] for i in order], [y[i] for i in order]


def spread(positions: list[float], gap: float) -> list[float]:
    """Positions moved up just enough that labels at them do not overlap; the order stays."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = list(positions)
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    return placed
