"""The Triton kernels of "flash" linear + cross-entropy: attention over the vocabulary, so that no logit is ever stored.

With softmax weights p over the vocabulary, E_p[W] is attention with W as keys and values, and it is what the gradient of x
needs: dx = E_p[W] - W[target]. `forward` is that attention, `finish` makes loss and dx of its parts, `weight_gradient` holds
a block of the vocabulary and walks over the rows. README.md derives them.

Rows of W and x are read in up to two parts of C1 and C2 columns, because a tile's sides are powers of two: 384 = 256 + 128.
Logits are taken relative to the row's highest before anything else: where they are in the thousands, that difference is
exact and their logarithm of a sum is not. What is rounded to fp16 is first multiplied by 2^SHIFT, since probabilities of
1e-5 are below its normal range.
"""

from smallgpt.kernels.language import tl, triton

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(ptr, rows, columns, stride, n_rows, n_columns, FITS: tl.constexpr):
    """[ROWS, COLUMNS] with adjacent columns; zeros outside, unless FITS says that all of it is inside."""
    at = ptr + rows[:, None] * stride + columns[None, :]
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(at) if FITS else tl.load(at, inside, 0.0)


@triton.jit
def forward(
    x_ptr,  # (N, C), rows x_stride apart
    weight_ptr,  # (V, C), rows weight_stride apart
    highest_ptr,  # (splits, N) out, fp32: the highest logit of a split's part of the vocabulary
    sum_ptr,  # (splits, N) out, fp32: 2^SHIFT Σ exp(logit - highest)
    mix_ptr,  # (splits, N, C) out, fp32: 2^SHIFT Σ exp(logit - highest) W; None where no gradient is wanted
    x_stride,
    weight_stride,
    N,
    V,
    C,
    split_blocks,  # blocks of BLOCK_V that a split has
    BLOCK_ROWS: tl.constexpr,
    BLOCK_V: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,  # 0: one part is enough
    FITS_V: tl.constexpr,  # V is a multiple of BLOCK_V
    FITS_C: tl.constexpr,  # C is C1 + C2
    SHIFT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.arange(0, C1)
    ids = tl.arange(0, BLOCK_V)
    x = load_tile(x_ptr, rows.to(tl.int64), columns, x_stride, N, C, False)  # [ROWS, C1]
    mix = tl.zeros([BLOCK_ROWS, C1], tl.float32)
    if C2 > 0:
        columns2 = C1 + tl.arange(0, C2)
        x2 = load_tile(x_ptr, rows.to(tl.int64), columns2, x_stride, N, C, False)  # [ROWS, C2]
        mix2 = tl.zeros([BLOCK_ROWS, C2], tl.float32)
    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    start = split * split_blocks * BLOCK_V
    stop = tl.minimum(start + split_blocks * BLOCK_V, V)
    w_ptr = weight_ptr + start.to(tl.int64) * weight_stride
    for first in range(start, stop, BLOCK_V):
        w = load_tile(w_ptr, ids, columns, weight_stride, V - first, C, FITS_V and FITS_C)  # [V, C1]
        logits = tl.dot(x, tl.trans(w), input_precision=PRECISION)  # [ROWS, V]
        if C2 > 0:
            w2 = load_tile(w_ptr, ids, columns2, weight_stride, V - first, C, FITS_V and FITS_C)  # [V, C2]
            logits = tl.dot(x2, tl.trans(w2), logits, input_precision=PRECISION)
        if not FITS_V:
            logits = tl.where((ids < V - first)[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        p = tl.exp2((logits - higher[:, None]) * LOG2E + SHIFT)
        rescale = tl.exp2((highest - higher) * LOG2E)
        total = total * rescale + tl.sum(p, 1)
        if mix_ptr is not None:
            mix = tl.dot(p.to(w.dtype), w, mix * rescale[:, None], input_precision=PRECISION)
            if C2 > 0:
                mix2 = tl.dot(p.to(w.dtype), w2, mix2 * rescale[:, None], input_precision=PRECISION)
        highest = higher
        w_ptr += BLOCK_V * weight_stride
    at = split.to(tl.int64) * N + rows
    tl.store(highest_ptr + at, highest, rows < N)
    tl.store(sum_ptr + at, total, rows < N)
    if mix_ptr is not None:
        inside = (rows < N)[:, None]
        tl.store(mix_ptr + at[:, None] * C + columns[None, :], mix, inside & (columns < C)[None, :])
        if C2 > 0:
            tl.store(mix_ptr + at[:, None] * C + columns2[None, :], mix2, inside & (columns2 < C)[None, :])


@triton.jit
def finish(
    x_ptr,  # (N, C), rows x_stride apart
    weight_ptr,  # (V, C), rows weight_stride apart
    targets_ptr,  # (N,) int64
    highest_ptr,  # (SPLITS, N) fp32, and so on: see forward
    sum_ptr,
    mix_ptr,
    mean_ptr,  # (C,) fp32: the mean of W's rows; None without label smoothing
    loss_ptr,  # (N,) out, fp32
    row_highest_ptr,  # (N,) out, fp32: the highest logit of all
    log_sum_ptr,  # (N,) out, fp32: log Σ exp(logit - highest); nan where the target is no row of W
    dx_ptr,  # (N, C) out, for a loss of slope 1; None where no gradient is wanted
    x_stride,
    weight_stride,
    N,
    V,
    C,
    ignore_index,
    smoothing,
    z_loss,
    SPLITS: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    inside = (rows < N)[:, None] & (columns < C)[None, :]
    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        highest = tl.maximum(highest, tl.load(highest_ptr + split * N + rows, rows < N, 0.0))
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    for split in tl.static_range(SPLITS):
        rescale = tl.exp2((tl.load(highest_ptr + split * N + rows, rows < N, 0.0) - highest) * LOG2E)
        total += tl.load(sum_ptr + split * N + rows, rows < N, 1.0) * rescale
    target = tl.load(targets_ptr + rows, rows < N, ignore_index)
    counts = target != ignore_index
    exists = (target >= 0) & (target < V)
    log_sum = (tl.log2(total) - SHIFT) * LN2
    log_sum = tl.where(counts & (exists == 0), float("nan"), log_sum)
    lse = highest + log_sum
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], inside, 0.0).to(tl.float32)  # [ROWS, C]
    wanted = inside & (counts & exists)[:, None]
    towards = tl.load(weight_ptr + target[:, None] * weight_stride + columns[None, :], wanted, 0.0).to(tl.float32)
    if mean_ptr is not None:  # the target is a mixture, so W[target] becomes that mixture of W's rows
        mean = tl.load(mean_ptr + columns, columns < C, 0.0)
        towards = (1 - smoothing) * towards + smoothing * mean[None, :]
    loss = (highest - tl.sum(x * towards, 1)) + log_sum + z_loss * lse * lse
    tl.store(loss_ptr + rows, tl.where(counts, loss, 0.0), rows < N)
    tl.store(row_highest_ptr + rows, highest, rows < N)
    tl.store(log_sum_ptr + rows, log_sum, rows < N)
    if dx_ptr is not None:
        mix = tl.zeros([BLOCK_ROWS, BLOCK_C], tl.float32)
        for split in tl.static_range(SPLITS):
            rescale = tl.exp2((tl.load(highest_ptr + split * N + rows, rows < N, 0.0) - highest) * LOG2E)
            at = mix_ptr + (split * N + rows)[:, None] * C + columns[None, :]
            mix += tl.load(at, inside, 0.0) * rescale[:, None]
        dx = mix * ((1 + 2 * z_loss * lse) / total)[:, None] - towards
        dx = tl.where(counts[:, None], dx, 0.0)
        tl.store(dx_ptr + rows[:, None] * C + columns[None, :], dx.to(dx_ptr.dtype.element_ty), inside)


@triton.jit
def weight_gradient(
    x_ptr,  # (N, C), rows x_stride apart
    weight_ptr,  # (V, C), rows weight_stride apart
    targets_ptr,  # (N,) int64
    highest_ptr,  # (N,) fp32: see finish
    log_sum_ptr,  # (N,) fp32
    share_ptr,  # (N,) fp32: the slope of a row's loss, in units of scale; None where all are 1
    scale_ptr,  # () fp32
    smooth_ptr,  # (C,) fp32: ε/V Σ share x, the part of the slopes that is the same for every id; None without smoothing
    dweight_ptr,  # (V, C) out
    x_stride,
    weight_stride,
    N,
    V,
    C,
    ignore_index,
    smoothing,
    z_loss,
    BLOCK_V: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    FITS_N: tl.constexpr,  # N is a multiple of BLOCK_ROWS
    FITS_C: tl.constexpr,
    SHIFT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_id = tl.program_id(0) * BLOCK_V
    ids = first_id + tl.arange(0, BLOCK_V)
    columns = tl.arange(0, C1)
    rows = tl.arange(0, BLOCK_ROWS)
    w = load_tile(weight_ptr, ids.to(tl.int64), columns, weight_stride, V, C, False)  # [V, C1]
    dw = tl.zeros([BLOCK_V, C1], tl.float32)
    if C2 > 0:
        columns2 = C1 + tl.arange(0, C2)
        w2 = load_tile(weight_ptr, ids.to(tl.int64), columns2, weight_stride, V, C, False)  # [V, C2]
        dw2 = tl.zeros([BLOCK_V, C2], tl.float32)
    for first in range(0, N, BLOCK_ROWS):
        x = load_tile(x_ptr, rows, columns, x_stride, N - first, C, FITS_N and FITS_C)  # [ROWS, C1]
        logits = tl.dot(w, tl.trans(x), input_precision=PRECISION)  # [V, ROWS]
        if C2 > 0:
            x2 = load_tile(x_ptr, rows, columns2, x_stride, N - first, C, FITS_N and FITS_C)  # [ROWS, C2]
            logits = tl.dot(w2, tl.trans(x2), logits, input_precision=PRECISION)
        highest = tl.load(highest_ptr + first + rows, rows < N - first, 0.0)
        log_sum = tl.load(log_sum_ptr + first + rows, rows < N - first, 0.0)
        target = tl.load(targets_ptr + first + rows, rows < N - first, ignore_index)
        counts = target != ignore_index
        share = counts.to(tl.float32)
        if share_ptr is not None:
            share *= tl.load(share_ptr + first + rows, rows < N - first, 0.0)
        p = tl.exp2((logits - highest[None, :]) * LOG2E + (SHIFT - log_sum * LOG2E)[None, :])
        slope = p * (share * (1 + 2 * z_loss * (highest + log_sum)))[None, :]
        here = tl.where(counts, target - first_id, -1).to(tl.int32)  # the target's place in this block
        hit = tl.arange(0, BLOCK_V)[:, None] == here[None, :]
        slope -= tl.where(hit, (share * ((1 - smoothing) * 2.0**SHIFT))[None, :], 0.0)  # before it is rounded
        dw = tl.dot(slope.to(x.dtype), x, dw, input_precision=PRECISION)
        if C2 > 0:
            dw2 = tl.dot(slope.to(x.dtype), x2, dw2, input_precision=PRECISION)
        x_ptr += BLOCK_ROWS * x_stride
    scale = tl.load(scale_ptr)
    inside = (ids < V)[:, None] & (columns < C)[None, :]
    dw = dw * 2.0**-SHIFT
    if smooth_ptr is not None:
        dw -= tl.load(smooth_ptr + columns, columns < C, 0.0)[None, :]
    at = dweight_ptr + ids.to(tl.int64)[:, None] * C
    tl.store(at + columns[None, :], (dw * scale).to(dweight_ptr.dtype.element_ty), inside)
    if C2 > 0:
        inside2 = (ids < V)[:, None] & (columns2 < C)[None, :]
        dw2 = dw2 * 2.0**-SHIFT
        if smooth_ptr is not None:
            dw2 -= tl.load(smooth_ptr + columns2, columns2 < C, 0.0)[None, :]
        tl.store(at + columns2[None, :], (dw2 * scale).to(dweight_ptr.dtype.element_ty), inside2)
