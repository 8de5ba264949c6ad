"""Linear + cross-entropy in chunks of rows: products by the library, everything else by one Triton kernel a row.

A chunk's logits are turned into their slopes in place, and at once into its share of both gradients: 6·V·C FLOPs a row, and
memory for one chunk. The gradients are summed in fp32 and stay un-normalised until backward (see contract.py); the slopes of
fp16 are kept times 2^10, so that probabilities down to 6e-8 stay normal numbers. Only reduction "none" works twice: the
slopes of its losses are not known before backward, which makes the logits again.
"""

from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.gradients import first_derivative_only
from smallgpt.domain.ops import Reduction
from smallgpt.kernels.language import triton
from smallgpt.kernels.launching import architecture, check, define, launch
from smallgpt.kernels.linear_cross_entropy import row_kernels
from smallgpt.kernels.linear_cross_entropy.contract import check_targets, reduce, scaled, slopes_of_losses
from smallgpt.kernels.linear_cross_entropy.tiles import row_tile

# Of logits. Each chunk adds to all of dW once more, 8·V·C bytes: at 64 MiB that is a fifth of the time, here a tenth
# (estimated for V = 50,304, C = 256 on an H100, not measured).
CHUNK_BYTES = 128 * 2**20
SHIFT = {torch.float32: 0, torch.bfloat16: 0, torch.float16: 10}


class Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        label_smoothing: float,
        ignore_index: int,
        z_loss: float,
        reduction: Reduction,
        dtype: torch.dtype,
    ) -> Tensor:
        wants = ctx.needs_input_grad[:2]
        at_once = reduction != "none"
        low_x, low_w = x.to(dtype), weight.to(dtype)
        options = label_smoothing, ignore_index, z_loss
        losses, dx, dw = CHUNKED(low_x, low_w, targets, None, *options, wants[0] and at_once, wants[1] and at_once)
        valid = targets != ignore_index
        ctx.save_for_backward(x, weight, valid, *((dx, dw) if at_once else (low_x, low_w, targets)))
        ctx.options, ctx.wants, ctx.reduction, ctx.product_dtype = options, wants, reduction, dtype
        return reduce(losses, valid, reduction)

    @staticmethod
    @first_derivative_only("linear-cross-entropy")
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, valid, *kept = ctx.saved_tensors
        scale, share = slopes_of_losses(grad_output, valid, ctx.reduction)
        if share is None:
            dx, dw = kept
        else:
            _, dx, dw = CHUNKED(*kept, share, *ctx.options, *ctx.wants)
        scale = scale * 2.0 ** -SHIFT[ctx.product_dtype]
        gradients = (
            scaled(gradient, scale, of.dtype) if wanted else None
            for gradient, of, wanted in zip((dx, dw), (x, weight), ctx.wants, strict=True)
        )
        return *gradients, *[None] * 6


def launch_chunked(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    share: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    wants_dx: bool,
    wants_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x (N, C), weight (V, C) of one dtype -> fp32 losses (N,), dx (N, C), dw (V, C), the gradients of Σ share·loss·2^SHIFT.

    A gradient that is not wanted is an empty tensor.
    """
    check("linear_cross_entropy", x=x)  # in autocast's dtype now
    check_targets(targets, weight.size(0), ignore_index)
    losses, dx, dw = _fake_chunked(x, weight, targets, share, label_smoothing, ignore_index, z_loss, wants_dx, wants_dw)
    N, V = x.size(0), weight.size(0)
    width = triton.cdiv(V, 16) * 16  # so that every row starts where vectors may
    rows = min(N, _rows_a_chunk(width * x.element_size()))
    buffer = x.new_empty(rows, width)
    fits, tile = row_tile(width, x.element_size(), architecture(x.device))
    targets = targets.contiguous()
    dw.zero_()
    for start in range(0, N, max(1, rows)):
        part = slice(start, min(N, start + rows))
        n = part.stop - start
        logits = buffer[:n, :V]
        torch.mm(x[part], weight.T, out=logits)
        launch(
            row_kernels.in_registers if fits else row_kernels.in_two_passes,
            (n,),
            logits_ptr=buffer,
            targets_ptr=targets[part],
            share_ptr=None if share is None else share[part],
            loss_ptr=losses[part],
            width=width,
            V=V,
            ignore_index=ignore_index,
            smoothing=label_smoothing,
            z_loss=z_loss,
            SMOOTHS=label_smoothing != 0,
            WRITES=wants_dx or wants_dw,
            SHIFT=SHIFT[x.dtype],
            **tile,
        )
        if wants_dx:
            _multiply_into(dx[part], logits, weight, 0)
        if wants_dw:
            _multiply_into(dw, logits.T, x[part], 1)
    return losses, dx, dw


def _fake_chunked(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    share: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    wants_dx: bool,
    wants_dw: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    losses = x.new_empty(x.size(0), dtype=torch.float32)
    dx = x.new_empty(x.shape if wants_dx else (0,), dtype=torch.float32)
    dw = x.new_empty(weight.shape if wants_dw else (0,), dtype=torch.float32)
    return losses, dx, dw


CHUNKED = define(
    "linear_cross_entropy_chunked",
    "(Tensor x, Tensor weight, Tensor targets, Tensor? share, float label_smoothing, int ignore_index, float z_loss, "
    "bool wants_dx, bool wants_dw) -> (Tensor, Tensor, Tensor)",
    launch_chunked,
    _fake_chunked,
)


def _rows_a_chunk(row_bytes: int) -> int:
    rows = CHUNK_BYTES // row_bytes
    return max(1, rows) if rows < 128 else rows // 128 * 128


def _multiply_into(out: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """out = beta·out + a b, where out is fp32. Forms with out= are not autocast, which would round fp32 operands again."""
    if a.dtype == torch.float32:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif out.is_cuda and torch.version.hip is None:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=beta, out=out)
    else:
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)
