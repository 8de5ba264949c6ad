"""Causal attention for any T: a block of queries walks over the keys with an online softmax, in two stages.

Keys before the block are seen by all of its queries and need no mask; only the blocks on the diagonal do. The forward
pass keeps one number a query, the base-2 log-sum-exp of its scores. The backward pass is one launch whose programs make dK
and dV of a block of keys, or dQ of a block of queries: every sum has one owner, so there are no atomics, and results do
not depend on the order in which programs run. delta = rowsum(dy ∘ y) is made where it is needed, not in a launch of its own.

Shape letters: M = queries and N = keys of a tile, D = BLOCK_D. Programs with the most work start first.
"""

from smallgpt.kernels.attention.dropout import keep_mask
from smallgpt.kernels.language import tl, triton


@triton.jit
def forward(
    qkv_ptr,  # (B, T, 3, H, D), columns adjacent
    y_ptr,  # (B, T, H, D) out, contiguous
    lse_ptr,  # (B, H, T) out, fp32, base 2
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides BLOCK_M
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(T, BLOCK_M)
    head = tl.program_id(0) // blocks
    start_m = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the last block sees the most keys
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    q_ptr = qkv_ptr + b * stride_b + h * stride_h
    columns = tl.arange(0, BLOCK_D)
    queries = start_m + tl.arange(0, BLOCK_M)
    inside = (queries < T)[:, None] & (columns < HEAD_SIZE)[None, :]
    q = tl.load(q_ptr + queries.to(tl.int64)[:, None] * stride_t + columns[None, :], inside, 0.0)  # [M, D]
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, start_m, BLOCK_N):
        y, highest, total = _add_to_y(
            y, highest, total, q, q_ptr, seed_ptr, stride_t, stride_3, head, start_m, start, T, scale, keep_of_256,
            HEAD_SIZE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
    for start in range(start_m, tl.minimum(start_m + BLOCK_M, T), BLOCK_N):
        y, highest, total = _add_to_y(
            y, highest, total, q, q_ptr, seed_ptr, stride_t, stride_3, head, start_m, start, T, scale, keep_of_256,
            HEAD_SIZE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, True,
        )  # fmt: skip
    y = y / total[:, None]
    if seed_ptr is not None:
        y = y * (256.0 / keep_of_256)
    y_offsets = ((b * T + queries) * H + h)[:, None] * HEAD_SIZE + columns[None, :]
    tl.store(y_ptr + y_offsets, y.to(y_ptr.dtype.element_ty), inside)
    tl.store(lse_ptr + head.to(tl.int64) * T + queries, highest + tl.log2(total), queries < T)


@triton.jit
def _load_keys(
    q_ptr, stride_t, stride_3, start, T, HEAD_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    MAY_END: tl.constexpr,
):  # fmt: skip
    """k and v from row `start` on, both [N, D]; 0 past T, where the block may end there, and past the head size."""
    columns = tl.arange(0, BLOCK_D)[None, :]
    keys = (start + tl.arange(0, BLOCK_N))[:, None]
    k_ptrs = q_ptr + stride_3 + keys.to(tl.int64) * stride_t + columns
    if MAY_END or HEAD_SIZE < BLOCK_D:
        inside = (keys < T) & (columns < HEAD_SIZE)
        k = tl.load(k_ptrs, inside, 0.0)
        v = tl.load(k_ptrs + stride_3, inside, 0.0)
    else:
        k = tl.load(k_ptrs)
        v = tl.load(k_ptrs + stride_3)
    return k, v


@triton.jit
def _add_to_y(
    y, highest, total, q, q_ptr, seed_ptr, stride_t, stride_3, head, start_m, start_n, T, scale, keep_of_256,
    HEAD_SIZE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Fold the keys from start_n on into y [M, D] and the running maximum and sum [M] of its weights."""
    k, v = _load_keys(q_ptr, stride_t, stride_3, start_n, T, HEAD_SIZE, BLOCK_N, BLOCK_D, DIAGONAL)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [M, N]
    if DIAGONAL:
        queries = start_m + tl.arange(0, BLOCK_M)
        keys = start_n + tl.arange(0, BLOCK_N)
        scores = tl.where(queries[:, None] >= keys[None, :], scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, 1))
    p = tl.exp2(scores - new_highest[:, None])
    shrink = tl.exp2(highest - new_highest)
    total = total * shrink + tl.sum(p, 1)
    if seed_ptr is not None:
        p = tl.where(keep_mask(tl.load(seed_ptr), head, start_m, start_n, keep_of_256, BLOCK_M, BLOCK_N), p, 0.0)
    return tl.dot(p.to(v.dtype), v, y * shrink[:, None], input_precision=PRECISION), new_highest, total


@triton.jit
def backward(
    qkv_ptr,  # (B, T, 3, H, D), columns adjacent
    y_ptr,  # (B, T, H, D), contiguous
    lse_ptr,  # (B, H, T) fp32, base 2
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
    BLOCK_M1: tl.constexpr,  # queries that a dK/dV program takes at a time; divides BLOCK_N1
    BLOCK_N1: tl.constexpr,  # keys that it owns
    BLOCK_M2: tl.constexpr,  # queries that a dQ program owns
    BLOCK_N2: tl.constexpr,  # keys that it takes at a time; divides BLOCK_M2
    BLOCK_D: tl.constexpr,
):
    key_blocks = tl.cdiv(T, BLOCK_N1)
    query_blocks = tl.cdiv(T, BLOCK_M2)
    head = tl.program_id(0) // (key_blocks + query_blocks)
    block = tl.program_id(0) % (key_blocks + query_blocks)
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    width = H * HEAD_SIZE
    q_ptr = qkv_ptr + b * stride_b + h * stride_h
    y_ptr += b * T * width + h * HEAD_SIZE
    dy_ptr += b * dy_stride_b + h * dy_stride_h
    dq_ptr = dqkv_ptr + b * T * 3 * width + h * HEAD_SIZE
    lse_ptr += head.to(tl.int64) * T
    if block < key_blocks:  # the first keys are seen by the most queries
        _dk_dv_program(
            q_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, seed_ptr, stride_t, stride_3, dy_stride_t, width, T, scale,
            scale_of_gradient, keep_of_256, head, block * BLOCK_N1, HEAD_SIZE, PRECISION, BLOCK_M1, BLOCK_N1, BLOCK_D,
        )  # fmt: skip
    else:  # the last queries see the most keys
        start_m = (query_blocks - 1 - (block - key_blocks)) * BLOCK_M2
        _dq_program(
            q_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, seed_ptr, stride_t, stride_3, dy_stride_t, width, T, scale,
            scale_of_gradient, keep_of_256, head, start_m, HEAD_SIZE, PRECISION, BLOCK_M2, BLOCK_N2, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _dk_dv_program(
    q_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, seed_ptr, stride_t, stride_3, dy_stride_t, width, T, scale,
    scale_of_gradient, keep_of_256, head, start_n, HEAD_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk and dv of the keys from start_n on: the queries on the diagonal first, then those that see every key."""
    columns = tl.arange(0, BLOCK_D)
    in_head = (columns < HEAD_SIZE)[None, :]
    keys = start_n + tl.arange(0, BLOCK_N)
    inside = (keys < T)[:, None] & in_head
    k_ptrs = q_ptr + stride_3 + keys.to(tl.int64)[:, None] * stride_t + columns[None, :]
    k = tl.load(k_ptrs, inside, 0.0)  # [N, D]
    v = tl.load(k_ptrs + stride_3, inside, 0.0)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(start_n, tl.minimum(start_n + BLOCK_N, T), BLOCK_M):
        dk, dv = _add_to_dk_dv(
            dk, dv, k, v, q_ptr, y_ptr, lse_ptr, dy_ptr, seed_ptr, stride_t, dy_stride_t, width, head, start, start_n, T,
            scale, keep_of_256, HEAD_SIZE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, True,
        )  # fmt: skip
    for start in range(start_n + BLOCK_N, T, BLOCK_M):
        dk, dv = _add_to_dk_dv(
            dk, dv, k, v, q_ptr, y_ptr, lse_ptr, dy_ptr, seed_ptr, stride_t, dy_stride_t, width, head, start, start_n, T,
            scale, keep_of_256, HEAD_SIZE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D, False,
        )  # fmt: skip
    to = dq_ptr + width + keys.to(tl.int64)[:, None] * (3 * width) + columns[None, :]
    tl.store(to, (dk * scale_of_gradient).to(dq_ptr.dtype.element_ty), inside)
    tl.store(to + width, dv.to(dq_ptr.dtype.element_ty), inside)


@triton.jit
def _dq_program(
    q_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, seed_ptr, stride_t, stride_3, dy_stride_t, width, T, scale,
    scale_of_gradient, keep_of_256, head, start_m, HEAD_SIZE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq of the queries from start_m on: the keys before them first, then the diagonal."""
    columns = tl.arange(0, BLOCK_D)
    queries = start_m + tl.arange(0, BLOCK_M)
    inside = (queries < T)[:, None] & (columns < HEAD_SIZE)[None, :]
    rows = queries.to(tl.int64)[:, None]
    q = tl.load(q_ptr + rows * stride_t + columns[None, :], inside, 0.0)  # [M, D]
    dy = tl.load(dy_ptr + rows * dy_stride_t + columns[None, :], inside, 0.0)
    y = tl.load(y_ptr + rows * width + columns[None, :], inside, 0.0)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)  # [M]
    lse = tl.load(lse_ptr + queries, queries < T, 0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, start_m, BLOCK_N):
        k, v = _load_keys(q_ptr, stride_t, stride_3, start, T, HEAD_SIZE, BLOCK_N, BLOCK_D, False)
        dq = _add_to_dq(
            dq, q, k, v, dy, lse, delta, seed_ptr, head, start_m, start, scale, keep_of_256,
            PRECISION, BLOCK_M, BLOCK_N, False,
        )  # fmt: skip
    for start in range(start_m, tl.minimum(start_m + BLOCK_M, T), BLOCK_N):
        k, v = _load_keys(q_ptr, stride_t, stride_3, start, T, HEAD_SIZE, BLOCK_N, BLOCK_D, True)
        dq = _add_to_dq(
            dq, q, k, v, dy, lse, delta, seed_ptr, head, start_m, start, scale, keep_of_256,
            PRECISION, BLOCK_M, BLOCK_N, True,
        )  # fmt: skip
    to = dq_ptr + rows * (3 * width) + columns[None, :]
    tl.store(to, (dq * scale_of_gradient).to(dq_ptr.dtype.element_ty), inside)


@triton.jit
def _add_to_dk_dv(
    dk, dv, k, v, q_ptr, y_ptr, lse_ptr, dy_ptr, seed_ptr, stride_t, dy_stride_t, width, head, start_m, start_n, T,
    scale, keep_of_256, HEAD_SIZE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """What the queries from start_m on add to dk (but for 1/√D) and dv, both [N, D]. Tiles here are keys by queries."""
    columns = tl.arange(0, BLOCK_D)[None, :]
    queries = start_m + tl.arange(0, BLOCK_M)
    rows = queries.to(tl.int64)[:, None]
    inside = (queries < T)[:, None] & (columns < HEAD_SIZE)
    q = tl.load(q_ptr + rows * stride_t + columns, inside, 0.0)  # [M, D]
    lse = tl.load(lse_ptr + queries, queries < T, 0.0)
    p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale - lse[None, :])  # [N, M]
    if DIAGONAL:
        keys = start_n + tl.arange(0, BLOCK_N)
        p = tl.where(queries[None, :] >= keys[:, None], p, 0.0)
    dy = tl.load(dy_ptr + rows * dy_stride_t + columns, inside, 0.0)
    y = tl.load(y_ptr + rows * width + columns, inside, 0.0)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)  # [M]
    dp = tl.dot(v, tl.trans(dy), input_precision=PRECISION)
    dropped = p
    if seed_ptr is not None:
        keep = tl.trans(keep_mask(tl.load(seed_ptr), head, start_m, start_n, keep_of_256, BLOCK_M, BLOCK_N))
        dropped = tl.where(keep, p * (256.0 / keep_of_256), 0.0)
        dp = tl.where(keep, dp * (256.0 / keep_of_256), 0.0)
    dv = tl.dot(dropped.to(dy.dtype), dy, dv, input_precision=PRECISION)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def _add_to_dq(
    dq, q, k, v, dy, lse, delta, seed_ptr, head, start_m, start_n, scale, keep_of_256,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """dq [M, D] with what the keys from start_n on add to it, but for 1/√D."""
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None])  # [M, N]
    if DIAGONAL:
        queries = start_m + tl.arange(0, BLOCK_M)
        keys = start_n + tl.arange(0, BLOCK_N)
        p = tl.where(queries[:, None] >= keys[None, :], p, 0.0)
    dp = tl.dot(dy, tl.trans(v), input_precision=PRECISION)
    if seed_ptr is not None:
        keep = keep_mask(tl.load(seed_ptr), head, start_m, start_n, keep_of_256, BLOCK_M, BLOCK_N)
        dp = tl.where(keep, dp * (256.0 / keep_of_256), 0.0)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
