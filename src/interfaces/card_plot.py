"""How long documents are, as a picture: a histogram of each split over lengths that double."""

from collections.abc import Mapping
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_BINS_A_DOUBLING = 4
_COLOURS = ("tab:blue", "tab:orange")


def plot(lengths: Mapping[Any, npt.NDArray[Any]], block_sizes: tuple[int, ...], path: Path) -> None:
    """Write the picture of each split's document lengths (documents,); the file is replaced as a whole."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    longest = max(int(each.max()) for each in lengths.values())
    shortest = max(1, min(int(each.min()) for each in lengths.values()))
    low, high = int(log2(shortest)), max(ceil(log2(longest + 1)), int(log2(shortest)) + 1)
    edges = 2.0 ** (np.arange(low * _BINS_A_DOUBLING, high * _BINS_A_DOUBLING + 1) / _BINS_A_DOUBLING)
    for (name, each), colour in zip(lengths.items(), _COLOURS, strict=False):
        counts, _ = np.histogram(np.maximum(each, 1), bins=edges)
        label = f"{name}: {len(each):,} documents"
        axes.stairs(counts / len(each), edges, color=colour, fill=name == "train", alpha=0.6, label=label)
    for size in block_sizes:
        if edges[0] < size < edges[-1]:
            axes.axvline(size, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    step = -(-(high - low) // 12)
    ticks = [2**power for power in range(low, high + 1, step)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("tokens of a document (dashed: block sizes)")
    axes.set_ylabel("share of documents")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(beside, dpi=150, format="png")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
