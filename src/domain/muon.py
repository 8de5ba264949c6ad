"""Muon: momentum whose matrices are made orthogonal, so that every direction of a weight matrix learns at one rate.

torch.optim.Muon computes the same update matrix by matrix, in bf16 whatever the hardware, and reads its rate on the host.
Here matrices of one shape go through together, in the run's own precision, and with a rate that is a tensor a whole step
can be captured as a CUDA graph. Method: Keller Jordan, https://kellerjordan.github.io/posts/muon/.
"""

from collections.abc import Callable, Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Odd quintics ax + bx³ + cx⁵ that lift small singular values fast: the first three of "Polar Express" (Amsel, Persson, Musco
# and Gower, arXiv 2505.16932), which for short runs did what five of Jordan's fixed one do (docs/decisions/0003-cpu-recipe.md).
QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


class Muon(Optimizer):
    """For matrices only. `lr` may be a tensor; `dtype` is that of the matrix products that make updates orthogonal."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. No number is read on the host.

        `found_inf`, where it is set as GradScaler sets it for torch's fused optimizers, () and 1 for "leave everything as it
        is", is obeyed on the device.
        """
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for matrices in by_shape.values():
                self._update(matrices, group["lr"], group["momentum"], group["weight_decay"], found_inf)

    def _update(
        self,
        matrices: list[Tensor],
        lr: float | Tensor,
        momentum: float,
        weight_decay: float,
        found_inf: Tensor | None,
    ) -> None:
        if isinstance(lr, Tensor):
            lr = lr.to(matrices[0].device)  # torch's state-dict API makes a first step with a rate on the host
        gradients = [p.grad for p in matrices if p.grad is not None]
        buffers = [self._momentum_of(p) for p in matrices]
        if found_inf is not None:
            # a gradient that is its buffer leaves the buffer as it is, and whatever follows is multiplied by 0
            bad = found_inf > 0
            gradients = [torch.where(bad, buffer, g) for g, buffer in zip(gradients, buffers, strict=True)]
            lr = lr * (1 - found_inf)
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))  # (k, m, n), Nesterov's
        updates = orthogonalise(ahead, self.dtype)
        rows, columns = matrices[0].shape
        scale = lr * sqrt(max(1.0, rows / columns))  # a tall matrix changes its output as much as a wide one
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_sub_(matrices, list((updates.float() * scale).unbind(0)))

    def _momentum_of(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """(k, m, n) -> (k, m, n) of `dtype`: near U Vᵀ of each matrix's U S Vᵀ, by Newton-Schulz-like steps in `dtype`.

    Singular values from 1/100 of the matrix's norm up end between 0.18 and 1.87; smaller ones grow up to 134 times.
    """
    tall = matrices.size(1) > matrices.size(2)
    X = matrices.mT if tall else matrices
    X = (X / (1.01 * torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)).to(dtype)  # below 1, rounding included
    for a, b, c in QUINTICS:
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cA²
        X = torch.baddbmm(X, B, X, beta=a)
    return X.mT if tall else X
