"""Attention maps as a picture: a row of panels for each block, a panel for each head."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor


def plot(patterns: Tensor, labels: Sequence[str], path: Path) -> None:
    """Write the picture of patterns (n_layer, H, T, T), queries downwards, with a label for each of the T tokens."""
    from matplotlib.figure import Figure

    n_layer, n_head, n_tokens, _ = patterns.shape
    side = min(3.0, 1.0 + 0.12 * n_tokens)
    figure = Figure(figsize=(1 + side * n_head, 1 + side * n_layer), layout="constrained")
    panels = figure.subplots(n_layer, n_head, squeeze=False, sharex=True, sharey=True)
    size = max(3.0, min(8.0, 60 * side / n_tokens))
    for layer in range(n_layer):
        for head in range(n_head):
            panel = panels[layer][head]
            panel.imshow(patterns[layer, head].cpu().numpy(), vmin=0, vmax=1, cmap="Blues")
            panel.set_title(f"head {layer}.{head}", fontsize=8)
            panel.set_xticks(range(n_tokens), labels, rotation=90, fontsize=size, parse_math=False)
            panel.set_yticks(range(n_tokens), labels, fontsize=size, parse_math=False)
    figure.supxlabel("token that is looked at", fontsize=8)
    figure.supylabel("token that looks", fontsize=8)
    figure.savefig(path, dpi=100)
