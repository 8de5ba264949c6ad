"""The Triton kernels of (residual add +) layer norm: several short rows to a program, statistics in fp32.

One row is reduced within one tile, so its result does not depend on the rows around it. Nothing is added atomically: the
backward pass of weight and bias sums into one partial row a program, and `sum_partials` adds those in a fixed order.
"""

from smallgpt.kernels.language import tl, triton


@triton.jit
def forward(
    x_ptr,  # (M, C), rows x_stride apart
    delta_ptr,  # (M, C), rows delta_stride apart, or None
    weight_ptr,  # (C,)
    bias_ptr,  # (C,), or None
    total_ptr,  # (M, C) out, x + delta; None without delta
    y_ptr,  # (M, C) out
    mean_ptr,  # (M,) out, fp32
    rstd_ptr,  # (M,) out, fp32
    x_stride,
    delta_stride,
    M,
    C,
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    inside = (rows < M)[:, None] & (columns < C)[None, :]
    offsets = rows[:, None] * C + columns[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], inside, 0.0).to(tl.float32)  # [ROWS, C]
    if delta_ptr is not None:
        delta = tl.load(delta_ptr + rows[:, None] * delta_stride + columns[None, :], inside, 0.0)
        rounded = (x + delta.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + offsets, rounded, inside)
        x = rounded.to(tl.float32)  # the norm reads what is handed on
    mean = tl.sum(x, 1) / C  # [ROWS]
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / C + eps)  # of the centred values: no cancellation
    weight = tl.load(weight_ptr + columns, columns < C, 0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, columns < C, 0.0).to(tl.float32)[None, :]
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), inside)
    tl.store(mean_ptr + rows, mean, rows < M)
    tl.store(rstd_ptr + rows, rstd, rows < M)


@triton.jit
def backward(
    dy_ptr,  # (M, C), rows dy_stride apart
    dtotal_ptr,  # (M, C), rows dtotal_stride apart: the gradient of the sum itself, or None
    x_ptr,  # (M, C), rows x_stride apart: what was normalised
    weight_ptr,  # (C,)
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    dx_ptr,  # (M, C) out
    partial_ptr,  # (2, programs, C) out, fp32: of the weight's gradient and of the bias's
    dy_stride,
    dtotal_stride,
    x_stride,
    M,
    C,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    columns = tl.arange(0, BLOCK_C)
    weight = tl.load(weight_ptr + columns, columns < C, 0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_C], tl.float32)
    for tile in range(program, tl.cdiv(M, BLOCK_ROWS), programs):
        rows = (tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        inside = (rows < M)[:, None] & (columns < C)[None, :]
        mean = tl.load(mean_ptr + rows, rows < M, 0.0)  # [ROWS]
        rstd = tl.load(rstd_ptr + rows, rows < M, 0.0)
        x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], inside, 0.0).to(tl.float32)
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + columns[None, :], inside, 0.0).to(tl.float32)
        unit = (x - mean[:, None]) * rstd[:, None]  # beyond the row it only ever meets a dy of 0
        dweight += dy * unit
        dbias += dy
        dunit = dy * weight[None, :]
        along_row = tl.sum(dunit * unit, 1) / C
        dx = (dunit - (tl.sum(dunit, 1) / C)[:, None] - unit * along_row[:, None]) * rstd[:, None]
        if dtotal_ptr is not None:
            dx += tl.load(dtotal_ptr + rows[:, None] * dtotal_stride + columns[None, :], inside, 0.0).to(tl.float32)
        tl.store(dx_ptr + rows[:, None] * C + columns[None, :], dx.to(dx_ptr.dtype.element_ty), inside)
    to = partial_ptr + program.to(tl.int64) * C + columns
    tl.store(to, tl.sum(dweight, 0), columns < C)
    tl.store(to + programs.to(tl.int64) * C, tl.sum(dbias, 0), columns < C)


@triton.jit
def sum_partials(
    partial_ptr,  # (2, P, C) fp32
    dweight_ptr,  # (C,) out
    dbias_ptr,  # (C,) out
    P,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    dweight = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, P, BLOCK_P):
        programs = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = (programs < P)[:, None] & (columns < C)[None, :]
        dweight += tl.load(partial_ptr + programs[:, None] * C + columns[None, :], inside, 0.0)
        dbias += tl.load(partial_ptr + (programs + P)[:, None] * C + columns[None, :], inside, 0.0)
    tl.store(dweight_ptr + columns, tl.sum(dweight, 0).to(dweight_ptr.dtype.element_ty), columns < C)
    tl.store(dbias_ptr + columns, tl.sum(dbias, 0).to(dbias_ptr.dtype.element_ty), columns < C)
