"""What all implementations of domain.ops.LinearCrossEntropy agree on: the products' dtype, and how rows become one loss.

Gradients are made for losses of slope 1 and scaled at the end, in fp32: made for a slope of 1/N or for whatever comes from
above, fp16 could not hold them. Where every row has its own slope, the rows keep their share of the largest one.
"""

import torch
from torch import Tensor

from smallgpt.domain.ops import Reduction


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """What x weightᵀ is computed in: autocast's dtype inside autocast, else the wider of the two."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return torch.promote_types(x.dtype, weight.dtype)


def reduce(losses: Tensor, valid: Tensor, reduction: Reduction) -> Tensor:
    """(N,) losses, 0 where not valid -> the scalar mean or sum, or themselves. The mean of no rows is 0/0 = nan."""
    if reduction == "none":
        return losses
    return losses.sum() / valid.sum() if reduction == "mean" else losses.sum()


def slopes_of_losses(grad_output: Tensor, valid: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor | None]:
    """The gradient of what reduce() gave -> (scale (), share (N,) or None for 1): a row's loss has slope scale·share."""
    if reduction == "mean":
        return grad_output / valid.sum().clamp(min=1), None
    if reduction == "sum":
        return grad_output, None
    if grad_output.numel() == 0:
        return grad_output.new_ones(()), grad_output
    largest = grad_output.abs().amax().clamp(min=torch.finfo(grad_output.dtype).tiny)
    return largest, grad_output / largest


def scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale·gradient in `dtype`, multiplied in fp32 or wider: a scale of 1/N is no number to round to 8 bits."""
    return (gradient.to(torch.promote_types(gradient.dtype, torch.float32)) * scale).to(dtype)


def check_targets(targets: Tensor, n_ids: int, ignore_index: int) -> None:
    """Raise ValueError for targets on the CPU that are no ids. On a GPU that would make the host wait: losses become nan."""
    if targets.device.type != "cpu":
        return
    wrong = targets[((targets < 0) | (targets >= n_ids)) & (targets != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"linear_cross_entropy: target {wrong[0].item()} is no row of a weight of {n_ids}; give ids in 0 to {n_ids - 1}, "
            f"or {ignore_index} for rows to ignore"
        )
