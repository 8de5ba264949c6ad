"""(Residual add +) layer norm by our Triton kernels: one launch forward, two small ones backward. README.md derives them."""

from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.gradients import first_derivative_only
from smallgpt.kernels.language import triton
from smallgpt.kernels.launching import check, define, launch, multiprocessors
from smallgpt.kernels.layer_norm import kernels
from smallgpt.kernels.layer_norm.tiles import BACKWARD, FORWARD, MAX_WIDTH, row_tile

# Of the backward pass: enough loads in flight to hide latency, few enough programs that the partial sums stay small.
WARPS_A_MULTIPROCESSOR = 16


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See domain.ops.LayerNormOp: x (..., C) -> (..., C), in x's dtype, or autocast's inside autocast.

    Raises ValueError for operands that do not belong together, HardwareError where Triton cannot run.
    """
    _check(x, None, weight, bias)
    y: Tensor = _LayerNorm.apply(x, weight, bias, eps, _output_dtype(x))  # type: ignore[no-untyped-call]
    return y


def add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See domain.ops.AddLayerNorm: (..., C) twice -> (sum, its layer norm); one pass over memory.

    The sum keeps the wider dtype of the two; the norm comes in the same, or in autocast's inside autocast: what reads
    it is a matrix product, which would round it there anyway.
    """
    _check(residual, delta, weight, bias)
    total: Tensor
    y: Tensor
    total, y = _AddLayerNorm.apply(residual, delta, weight, bias, eps, _output_dtype(residual, delta))  # type: ignore[no-untyped-call]
    return total, y


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype) -> Tensor:
        y, mean, rstd = LAYER_NORM(x, weight, bias, eps, out_dtype)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.has_bias = bias is not None
        return y  # type: ignore[no-any-return]

    @staticmethod
    @first_derivative_only("layer-norm")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dweight, dbias = BACKWARD_OF_BOTH(dy, None, x, weight, mean, rstd)
        return dx, dweight, dbias if ctx.has_bias else None, None, None


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        delta: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # the last sum of a model is not read: no zeros are made for it
        total, y, mean, rstd = ADD_LAYER_NORM(residual, delta, weight, bias, eps, out_dtype)
        ctx.save_for_backward(total, weight, mean, rstd)
        ctx.dtypes, ctx.has_bias = (residual.dtype, delta.dtype), bias is not None
        return total, y

    @staticmethod
    @first_derivative_only("layer-norm")
    def backward(ctx: Any, dtotal: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = dtotal, None, None
        if dy is not None:
            total, weight, mean, rstd = ctx.saved_tensors
            dx, dweight, dbias = BACKWARD_OF_BOTH(dy, dtotal, total, weight, mean, rstd)
        dresidual, ddelta = (None if dx is None else dx.to(dtype) for dtype in ctx.dtypes)
        return dresidual, ddelta, dweight, dbias if ctx.has_bias else None, None, None


def launch_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _fake_layer_norm(x, weight, bias, eps, out_dtype)
    _launch_forward(x, None, weight, bias, None, y, mean, rstd, eps)
    return y, mean, rstd


def launch_add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, y, mean, rstd = _fake_add_layer_norm(residual, delta, weight, bias, eps, out_dtype)
    _launch_forward(residual, delta, weight, bias, total, y, mean, rstd, eps)
    return total, y, mean, rstd


def _launch_forward(
    x: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    total: Tensor | None,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
) -> None:
    if y.numel() == 0:
        return
    x = _rows(x)
    delta = None if delta is None else _rows(delta)
    M, C = x.shape
    tile = row_tile(FORWARD, C)
    launch(
        kernels.forward,
        (triton.cdiv(M, tile["BLOCK_ROWS"]),),
        x_ptr=x,
        delta_ptr=delta,
        weight_ptr=weight.contiguous(),
        bias_ptr=None if bias is None else bias.contiguous(),
        total_ptr=total,
        y_ptr=y,
        mean_ptr=mean,
        rstd_ptr=rstd,
        x_stride=x.stride(0),
        delta_stride=0 if delta is None else delta.stride(0),
        M=M,
        C=C,
        eps=eps,
        **tile,
    )


def launch_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _fake_backward(dy, dtotal, x, weight, mean, rstd)
    if dx.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    dy, x = _rows(dy), _rows(x)
    dtotal = None if dtotal is None else _rows(dtotal)
    M, C = x.shape
    tile = row_tile(BACKWARD, C)
    programs = multiprocessors(x.device) * max(1, WARPS_A_MULTIPROCESSOR // tile["num_warps"])
    programs = min(programs, triton.cdiv(M, tile["BLOCK_ROWS"]))
    partial = torch.empty((2, programs, C), dtype=torch.float32, device=x.device)
    launch(
        kernels.backward,
        (programs,),
        dy_ptr=dy,
        dtotal_ptr=dtotal,
        x_ptr=x,
        weight_ptr=weight.contiguous(),
        mean_ptr=mean,
        rstd_ptr=rstd,
        dx_ptr=dx,
        partial_ptr=partial,
        dy_stride=dy.stride(0),
        dtotal_stride=0 if dtotal is None else dtotal.stride(0),
        x_stride=x.stride(0),
        M=M,
        C=C,
        **tile,
    )
    columns = 32
    launch(
        kernels.sum_partials,
        (triton.cdiv(C, columns),),
        partial_ptr=partial,
        dweight_ptr=dweight,
        dbias_ptr=dbias,
        P=programs,
        C=C,
        BLOCK_P=32,
        BLOCK_C=columns,
        num_warps=4,
        num_stages=2,
    )
    return dx, dweight, dbias


def _fake_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=out_dtype), mean, rstd


def _fake_add_layer_norm(
    residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = residual.new_empty(residual.shape, dtype=torch.promote_types(residual.dtype, delta.dtype))
    return total, *_fake_layer_norm(residual, weight, bias, eps, out_dtype)


def _fake_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


LAYER_NORM = define(
    "layer_norm",
    "(Tensor x, Tensor weight, Tensor? bias, float eps, ScalarType out_dtype) -> (Tensor, Tensor, Tensor)",
    launch_layer_norm,
    _fake_layer_norm,
)
ADD_LAYER_NORM = define(
    "add_layer_norm",
    "(Tensor residual, Tensor delta, Tensor weight, Tensor? bias, float eps, ScalarType out_dtype) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    launch_add_layer_norm,
    _fake_add_layer_norm,
)
BACKWARD_OF_BOTH = define(
    "layer_norm_backward",
    "(Tensor dy, Tensor? dtotal, Tensor x, Tensor weight, Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor)",
    launch_backward,
    _fake_backward,
)


def _rows(x: Tensor) -> Tensor:
    """(..., C) as (M, C) with adjacent columns, copied only where no view will do."""
    x = x.reshape(-1, x.size(-1))
    return x if x.stride(1) == 1 or x.size(1) == 1 else x.contiguous()


def _output_dtype(*inputs: Tensor) -> torch.dtype:
    device = inputs[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(inputs[0].dtype, inputs[-1].dtype)


def _check(x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    check("layer_norm", x=x, delta=delta, weight=weight, bias=bias)
    if x.dim() == 0:
        raise ValueError("layer_norm: x has no dimension to normalise; give (..., C)")
    if x.size(-1) > MAX_WIDTH:
        raise ValueError(
            f"layer_norm: rows of {x.size(-1)} are wider than the kernel's {MAX_WIDTH}; use --kernels.layer-norm torch"
        )
    if delta is not None and delta.shape != x.shape:
        raise ValueError(f"layer_norm: residual is {tuple(x.shape)} and delta {tuple(delta.shape)}; they must be equal")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} is {tuple(vector.shape)}; rows of {x.size(-1)} need ({x.size(-1)},)")
    if bias is not None and bias.dtype != weight.dtype:
        raise ValueError(f"layer_norm: weight is {weight.dtype} and bias {bias.dtype}; give both in one dtype")
