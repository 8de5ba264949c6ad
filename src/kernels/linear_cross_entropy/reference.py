"""Linear + cross-entropy as its formula, logits and all, in fp32 or wider, autocast or not.

For reading, and as the oracle of tests.
"""

import torch
from torch import Tensor

from smallgpt.domain.ops import Reduction


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """See domain.ops.LinearCrossEntropy: x (N, C), weight (V, C), targets (N,) -> scalar, or (N,) for "none"."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):  # it would compute the product in 16 bits
        logits = x.to(wide) @ weight.to(wide).T  # (N, V)
    log_z = logits.logsumexp(-1)
    valid = targets != ignore_index
    chosen = logits.gather(1, targets.masked_fill(~valid, 0)[:, None])[:, 0]
    nll = log_z - chosen
    uniform = log_z - logits.mean(-1)  # cross-entropy against the uniform distribution
    losses = (1 - label_smoothing) * nll + label_smoothing * uniform + z_loss * log_z.square()
    losses = losses.masked_fill(~valid, 0)
    if reduction == "none":
        return losses
    return losses.sum() / valid.sum() if reduction == "mean" else losses.sum()
