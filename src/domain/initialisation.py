"""A start for the position table that already knows what is near.

With random positions a model must first learn which rows are neighbours, one row at a time, before attention can look at "the
token before". Sinusoids (arXiv 1706.03762, section 3.5, here with shorter wavelengths) give neighbouring rows similar vectors;
the table is then trained like any other. docs/decisions/0003-cpu-recipe.md has what it is worth.
"""

from math import log, sqrt

import torch
from torch import Tensor

RMS = 0.05
LONGEST = 1000  # wavelengths go from 2π to 2π · LONGEST tokens


def sinusoidal_positions(block_size: int, n_embd: int) -> Tensor:
    """(block_size, n_embd) fp32: sines and cosines of the position in turn, with root mean square RMS."""
    frequencies = torch.exp(-log(LONGEST) * torch.arange(0, n_embd, 2) / n_embd)
    angles = torch.arange(block_size)[:, None] * frequencies  # (T, C/2 rounded up)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return RMS * sqrt(2) * table[:, :n_embd]
