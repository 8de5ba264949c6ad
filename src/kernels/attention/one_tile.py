"""Causal attention for T <= 128: a program has a head's whole sequence on chip, so nothing has to be carried along.

No online softmax, no LSE and no delta in memory: the softmax of a row is complete where it is made, and the backward pass makes
it again. One launch each way; queries go by BLOCK_M rows where registers or shared memory want less than the whole square.

Shape letters: M = BLOCK_M queries, N = BLOCK_T keys, D = BLOCK_D. Rows past T and columns past the head size are loaded as 0
and never stored; a padded query still sees key 0, so that its softmax is finite.
"""

from smallgpt.kernels.attention.dropout import keep_mask
from smallgpt.kernels.language import tl, triton


@triton.jit
def forward(
    qkv_ptr,  # (B, T, 3, H, D), columns adjacent
    y_ptr,  # (B, T, H, D) out, contiguous
    seed_ptr,  # (1,) int64, or None without dropout
    stride_b,
    stride_t,
    stride_3,
    stride_h,
    T,
    H,
    scale,  # log2(e) / √D, so that exp2 does for exp
    keep_of_256,
    HEAD_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0)
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    q_ptr = qkv_ptr + b * stride_b + h * stride_h
    columns = tl.arange(0, BLOCK_D)
    keys = tl.arange(0, BLOCK_T)
    key_offsets = keys.to(tl.int64)[:, None] * stride_t + columns[None, :]  # [N, D]
    key_inside = (keys < T)[:, None] & (columns < HEAD_SIZE)[None, :]
    k = tl.load(q_ptr + stride_3 + key_offsets, key_inside, 0.0)
    v = tl.load(q_ptr + stride_3 + stride_3 + key_offsets, key_inside, 0.0)  # 2 * stride_3 may not fit 32 bits
    for start in tl.static_range(0, BLOCK_T, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        inside = (queries < T)[:, None] & (columns < HEAD_SIZE)[None, :]
        q = tl.load(q_ptr + queries.to(tl.int64)[:, None] * stride_t + columns[None, :], inside, 0.0)  # [M, D]
        p = _softmax(q, k, queries, keys, scale, PRECISION)  # [M, N]
        if seed_ptr is not None:
            keep = keep_mask(tl.load(seed_ptr), head, start, 0, keep_of_256, BLOCK_M, BLOCK_T)
            p = tl.where(keep, p * (256.0 / keep_of_256), 0.0)
        y = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)  # [M, D]
        rows = b * T + queries
        y_offsets = (rows * H + h)[:, None] * HEAD_SIZE + columns[None, :]
        tl.store(y_ptr + y_offsets, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def backward(
    qkv_ptr,  # (B, T, 3, H, D), columns adjacent
    dy_ptr,  # (B, T, H, D), columns adjacent
    dqkv_ptr,  # (B, T, 3, H, D) out, contiguous
    seed_ptr,  # (1,) int64, or None without dropout
    stride_b,
    stride_t,
    stride_3,
    stride_h,
    dy_stride_b,
    dy_stride_t,
    dy_stride_h,
    T,
    H,
    scale,  # log2(e) / √D
    scale_of_gradient,  # 1 / √D
    keep_of_256,
    HEAD_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    head = tl.program_id(0)
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    q_ptr = qkv_ptr + b * stride_b + h * stride_h
    dy_ptr += b * dy_stride_b + h * dy_stride_h
    width = H * HEAD_SIZE
    dq_ptr = dqkv_ptr + b * T * 3 * width + h * HEAD_SIZE
    columns = tl.arange(0, BLOCK_D)
    keys = tl.arange(0, BLOCK_T)
    key_offsets = keys.to(tl.int64)[:, None] * stride_t + columns[None, :]  # [N, D]
    key_inside = (keys < T)[:, None] & (columns < HEAD_SIZE)[None, :]
    k = tl.load(q_ptr + stride_3 + key_offsets, key_inside, 0.0)
    v = tl.load(q_ptr + stride_3 + stride_3 + key_offsets, key_inside, 0.0)  # 2 * stride_3 may not fit 32 bits
    dk = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in tl.static_range(0, BLOCK_T, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        inside = (queries < T)[:, None] & (columns < HEAD_SIZE)[None, :]
        q = tl.load(q_ptr + queries.to(tl.int64)[:, None] * stride_t + columns[None, :], inside, 0.0)  # [M, D]
        dy = tl.load(dy_ptr + queries.to(tl.int64)[:, None] * dy_stride_t + columns[None, :], inside, 0.0)
        p = _softmax(q, k, queries, keys, scale, PRECISION)  # [M, N]
        dp = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
        dropped = p
        if seed_ptr is not None:
            keep = keep_mask(tl.load(seed_ptr), head, start, 0, keep_of_256, BLOCK_M, BLOCK_T)
            dropped = tl.where(keep, p * (256.0 / keep_of_256), 0.0)
            dp = tl.where(keep, dp * (256.0 / keep_of_256), 0.0)
        dv += tl.dot(tl.trans(dropped.to(dy.dtype)), dy, input_precision=PRECISION)
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None])).to(q.dtype)  # [M, N]
        dk += tl.dot(tl.trans(ds), q, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION) * scale_of_gradient  # [M, D]
        to = dq_ptr + queries.to(tl.int64)[:, None] * (3 * width) + columns[None, :]
        tl.store(to, dq.to(dqkv_ptr.dtype.element_ty), inside)
    to = dq_ptr + keys.to(tl.int64)[:, None] * (3 * width) + columns[None, :]
    tl.store(to + width, (dk * scale_of_gradient).to(dqkv_ptr.dtype.element_ty), key_inside)
    tl.store(to + 2 * width, dv.to(dqkv_ptr.dtype.element_ty), key_inside)


@triton.jit
def _softmax(q, k, queries, keys, scale, PRECISION: tl.constexpr):
    """q [M, D], k [N, D] -> [M, N] fp32, zero where the key comes after the query."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(queries[:, None] >= keys[None, :], scores, float("-inf"))
    p = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]
