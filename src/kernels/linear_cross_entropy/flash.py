"""Linear + cross-entropy without any logits: attention over the vocabulary forward, a walk over the rows for dW backward.

8·V·C FLOPs a row instead of 6, and no memory traffic but W, x and their gradients. The vocabulary is split between programs
so that few rows fill a GPU; how often depends on nothing but V, so a row's result does not depend on the rows around it.
"""

from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.gradients import first_derivative_only
from smallgpt.domain.ops import Reduction
from smallgpt.kernels.language import triton
from smallgpt.kernels.launching import architecture, check, define, launch, multiprocessors
from smallgpt.kernels.linear_cross_entropy import flash_kernels
from smallgpt.kernels.linear_cross_entropy.contract import check_targets, reduce, scaled, slopes_of_losses
from smallgpt.kernels.linear_cross_entropy.tiles import finish_tile
from smallgpt.kernels.precision import product_precision
from smallgpt.kernels.tiles import Tile, tile

MAX_WIDTH = 384
SPLITS = 4
LARGEST_BLOCK = 128  # rows of a tile
PARTIAL_BYTES = 24 * 2**20  # of the splits' E[W]; more rows than fit go in further launches
SHIFT = {torch.float32: 0, torch.bfloat16: 0, torch.float16: 10}  # see flash_kernels


class Flash(torch.autograd.Function):
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
        wants_dx = ctx.needs_input_grad[0]
        low_x, low_w = x.to(dtype), weight.to(dtype)
        options = label_smoothing, ignore_index, z_loss
        losses, *statistics, dx = FLASH(low_x, low_w, targets, *options, wants_dx)
        ctx.save_for_backward(x, weight, dx, low_x, low_w, targets, *statistics)
        ctx.options, ctx.reduction = options, reduction
        return reduce(losses, targets != ignore_index, reduction)

    @staticmethod
    @first_derivative_only("linear-cross-entropy")
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, dx, *kept = ctx.saved_tensors
        scale, share = slopes_of_losses(grad_output, kept[2] != ctx.options[1], ctx.reduction)
        wants_dx, wants_dw = ctx.needs_input_grad[:2]
        dw = None
        if wants_dw:
            dw = FLASH_DWEIGHT(*kept, scale, share, *ctx.options, weight.dtype)
        slopes = scale if share is None else grad_output[:, None]
        return scaled(dx, slopes, x.dtype) if wants_dx else None, dw, *[None] * 6


def launch_flash(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    wants_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N, C), weight (V, C) of one dtype -> losses, highest logits and the log of their sum relative to it, all (N,) fp32;
    and dx (N, C) for losses of slope 1, or an empty tensor.
    """
    check("linear_cross_entropy", x=x)  # in autocast's dtype now
    check_targets(targets, weight.size(0), ignore_index)
    losses, highest, log_sum, dx = _fake_flash(x, weight, targets, label_smoothing, ignore_index, z_loss, wants_dx)
    (N, C), V = x.shape, weight.size(0)
    if N == 0:
        return losses, highest, log_sum, dx
    x, weight, targets = _adjacent(x), _adjacent(weight), targets.contiguous()
    forward_tile, constants = _tile("forward", x)
    blocks = triton.cdiv(V, forward_tile["BLOCK_V"])
    splits = min(SPLITS, blocks)
    rows = min(N, _rows_a_launch(forward_tile["BLOCK_ROWS"], splits, C, x.device))
    split_highest, split_sum = (losses.new_empty(splits, rows) for _ in range(2))
    mix = losses.new_empty(splits, rows, C) if wants_dx else None
    mean = weight.mean(0, dtype=torch.float32) if label_smoothing else None
    last_tile = finish_tile(C)
    for start in range(0, N, rows):
        part = slice(start, min(N, start + rows))
        n = part.stop - start
        shared: dict[str, Any] = {
            "x_ptr": x[part],
            "weight_ptr": weight,
            "highest_ptr": split_highest,
            "sum_ptr": split_sum,
            "mix_ptr": mix,
            "x_stride": x.stride(0),
            "weight_stride": weight.stride(0),
            "N": n,
            "V": V,
            "C": C,
            "SHIFT": SHIFT[x.dtype],
        }
        launch(
            flash_kernels.forward,
            (triton.cdiv(n, forward_tile["BLOCK_ROWS"]), splits),
            **shared,
            split_blocks=triton.cdiv(blocks, splits),
            FITS_V=V % forward_tile["BLOCK_V"] == 0,
            **constants,
            **forward_tile,
        )
        launch(
            flash_kernels.finish,
            (triton.cdiv(n, last_tile["BLOCK_ROWS"]),),
            **shared,
            targets_ptr=targets[part],
            mean_ptr=mean,
            loss_ptr=losses[part],
            row_highest_ptr=highest[part],
            log_sum_ptr=log_sum[part],
            dx_ptr=dx[part] if wants_dx else None,
            ignore_index=ignore_index,
            smoothing=label_smoothing,
            z_loss=z_loss,
            SPLITS=splits,
            **last_tile,
        )
    return losses, highest, log_sum, dx


def launch_flash_dweight(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    highest: Tensor,
    log_sum: Tensor,
    scale: Tensor,
    share: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    out_dtype: torch.dtype,
) -> Tensor:
    """What launch_flash took and gave, scale () and share (N,) or None -> dw (V, C) of Σ scale·share·loss."""
    dw = _fake_flash_dweight(
        x, weight, targets, highest, log_sum, scale, share, label_smoothing, ignore_index, z_loss, out_dtype
    )
    (N, C), V = x.shape, weight.size(0)
    x, weight, targets = _adjacent(x), _adjacent(weight), targets.contiguous()
    smooth = None
    if label_smoothing:
        counts = (targets != ignore_index).float() if share is None else (targets != ignore_index) * share
        smooth = (x * counts[:, None]).sum(0, dtype=torch.float32) * (label_smoothing / V)
    dweight_tile, constants = _tile("weight_gradient", x)
    launch(
        flash_kernels.weight_gradient,
        (triton.cdiv(V, dweight_tile["BLOCK_V"]),),
        x_ptr=x,
        weight_ptr=weight,
        targets_ptr=targets,
        highest_ptr=highest,
        log_sum_ptr=log_sum,
        share_ptr=share,
        scale_ptr=scale.float(),
        smooth_ptr=smooth,
        dweight_ptr=dw,
        x_stride=x.stride(0),
        weight_stride=weight.stride(0),
        N=N,
        V=V,
        C=C,
        ignore_index=ignore_index,
        smoothing=label_smoothing,
        z_loss=z_loss,
        SHIFT=SHIFT[x.dtype],
        FITS_N=N % dweight_tile["BLOCK_ROWS"] == 0,
        **constants,
        **dweight_tile,
    )
    return dw


def _fake_flash(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    wants_dx: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    losses, highest, log_sum = (x.new_empty(x.size(0), dtype=torch.float32) for _ in range(3))
    return losses, highest, log_sum, x.new_empty(x.shape if wants_dx else (0,))


def _fake_flash_dweight(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    highest: Tensor,
    log_sum: Tensor,
    scale: Tensor,
    share: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    out_dtype: torch.dtype,
) -> Tensor:
    return weight.new_empty(weight.shape, dtype=out_dtype)


FLASH = define(
    "linear_cross_entropy_flash",
    "(Tensor x, Tensor weight, Tensor targets, float label_smoothing, int ignore_index, float z_loss, bool wants_dx) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    launch_flash,
    _fake_flash,
)
FLASH_DWEIGHT = define(
    "linear_cross_entropy_flash_dweight",
    "(Tensor x, Tensor weight, Tensor targets, Tensor highest, Tensor log_sum, Tensor scale, Tensor? share, "
    "float label_smoothing, int ignore_index, float z_loss, ScalarType out_dtype) -> Tensor",
    launch_flash_dweight,
    _fake_flash_dweight,
)


def padded_size(width: int) -> int:
    """The tile table's size for rows of `width`: a power of two, or 384, which is read as 256 + 128."""
    return MAX_WIDTH if width > 256 else max(16, triton.next_power_of_2(width))


def _tile(kernel: str, x: Tensor) -> tuple[Tile, dict[str, Any]]:
    """A kernel's entry in the tile table, and the constants that follow from x."""
    C, size = x.size(1), padded_size(x.size(1))
    gpu, bits = architecture(x.device), 8 * x.element_size()
    entry = tile("linear_cross_entropy", kernel, gpu, size, bits)
    if entry is None:
        raise ValueError(
            f"linear_cross_entropy: no tile for width {C}, {bits} bits on {gpu}; "
            "use --kernels.linear-cross-entropy triton-chunked"
        )
    C1, C2 = (256, 128) if size == MAX_WIDTH else (size, 0)
    return entry, {"C1": C1, "C2": C2, "FITS_C": C == C1 + C2, "PRECISION": product_precision(x.dtype)}


def _rows_a_launch(block_rows: int, splits: int, width: int, device: torch.device) -> int:
    """Whole waves of programs, as many as PARTIAL_BYTES allows, but one at least."""
    at_once = multiprocessors(device)
    waves = max(1, PARTIAL_BYTES // (4 * width * block_rows * at_once))
    return block_rows * max(1, waves * at_once // splits)


def _adjacent(x: Tensor) -> Tensor:
    """A matrix whose columns are adjacent and whose rows so near that a tile's offsets fit 32 bits, copied where need be."""
    adjacent = x.stride(1) == 1 or x.size(1) == 1
    return x if adjacent and x.stride(0) * LARGEST_BLOCK < 2**31 else x.contiguous()
