"""Attention of a few new queries against the cache, split over the keys: it reads much and computes little.

A program reads one split of one head's keys and values. Where there are several splits, each leaves its softmax-weighted mean
and the base-2 log-sum-exp of its scores in fp32, and `combine` joins them. How many there are never depends on the lengths,
which stay on the device: a split that begins past its row's length returns at once, and `combine` does not look at it.

Shape letters: M = BLOCK_M queries, N = BLOCK_N keys, D = BLOCK_D. Of a row, slots from its length on are not even loaded.
"""

from smallgpt.kernels.language import tl, triton

LOWEST = tl.constexpr(-3.4028234663852886e38)  # fp32's; the largest score of no keys, from which -inf can be subtracted


@triton.jit
def one_query(
    q_ptr,  # (B, 1, H, D), columns adjacent
    k_ptr,  # (B, S, H, D), columns adjacent, as is v
    v_ptr,
    lengths_ptr,  # (B,) int64, or None: every row has S
    out_ptr,  # (B, 1, H, D) out, contiguous; of several splits (B, 1, H, splits, D) fp32
    lse_ptr,  # (B, 1, H, splits) out, fp32, base 2; None with one split
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    S,
    T,  # 1
    H,
    keys_per_split,  # a multiple of BLOCK_N
    scale,  # log2(e) / √D, so that exp2 does for exp
    HEAD_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """No tl.dot: a product of one row would waste 15 of 16 rows of the tensor cores' tile and fetch k through shared memory.

    Each of the N places of a tile keeps a softmax of its own, so that the loop has no reduction across warps and no barrier;
    they are joined once, at the end.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    first = split * keys_per_split
    length = _length(lengths_ptr, b, S)
    if (first >= length) & (split > 0):
        return
    end = tl.minimum(first + keys_per_split, length)
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < HEAD_SIZE
    q = tl.load(q_ptr + b * q_stride_b + h * q_stride_h + columns, in_head, 0.0).to(tl.float32)  # [D]
    k_ptr += b * k_stride_b + h * k_stride_h
    v_ptr += b * v_stride_b + h * v_stride_h
    highest = tl.full([BLOCK_N], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    y = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(first, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = (keys < end)[:, None] & in_head[None, :]
        rows = keys.to(tl.int64)[:, None]
        k = tl.load(k_ptr + rows * k_stride_s + columns[None, :], inside, 0.0).to(tl.float32)  # [N, D]
        v = tl.load(v_ptr + rows * v_stride_s + columns[None, :], inside, 0.0).to(tl.float32)
        scores = tl.where(keys < end, tl.sum(q[None, :] * k, 1) * scale, float("-inf"))  # [N]
        new_highest = tl.maximum(highest, scores)
        p = tl.exp2(scores - new_highest)
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + p
        y = y * shrink[:, None] + p[:, None] * v
        highest = new_highest
    top = tl.max(highest, 0)
    weights = tl.exp2(highest - top)  # [N]
    sum_of_weights = _or_one(tl.sum(weights * total, 0))
    mean = tl.sum(weights[:, None] * y, 0) / sum_of_weights  # [D]
    place = (b * H + h) * tl.num_programs(1) + split
    tl.store(out_ptr + place * HEAD_SIZE + columns, mean.to(out_ptr.dtype.element_ty), in_head)
    if lse_ptr is not None:
        tl.store(lse_ptr + place, top + tl.log2(sum_of_weights))


@triton.jit
def few_queries(
    q_ptr,  # (B, T, H, D), columns adjacent
    k_ptr,  # (B, S, H, D), columns adjacent, as is v
    v_ptr,
    lengths_ptr,  # (B,) int64, or None: every row has S
    out_ptr,  # (B, T, H, D) out, contiguous; of several splits (B, T, H, splits, D) fp32
    lse_ptr,  # (B, T, H, splits) out, fp32, base 2; None with one split
    q_stride_b,
    q_stride_t,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    S,
    T,
    H,
    keys_per_split,  # a multiple of BLOCK_N
    scale,  # log2(e) / √D, so that exp2 does for exp
    HEAD_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """M queries share each key that is read. Keys and values are rounded to q's dtype, if theirs is wider."""
    blocks = tl.cdiv(T, BLOCK_M)
    head = tl.program_id(0) // blocks
    start_m = tl.program_id(0) % blocks * BLOCK_M
    split = tl.program_id(1)
    b = (head // H).to(tl.int64)
    h = (head % H).to(tl.int64)
    queries = start_m + tl.arange(0, BLOCK_M)
    first = split * keys_per_split
    visible = _length(lengths_ptr, b, S) - T + queries + 1  # [M] slots that each query sees
    seen = tl.max(tl.where(queries < T, visible, 0), 0)  # by any of them
    if (first >= seen) & (split > 0):
        return
    end = tl.minimum(first + keys_per_split, seen)
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < HEAD_SIZE
    inside_q = (queries < T)[:, None] & in_head[None, :]
    q_ptr += b * q_stride_b + h * q_stride_h
    q = tl.load(q_ptr + queries.to(tl.int64)[:, None] * q_stride_t + columns[None, :], inside_q, 0.0)  # [M, D]
    k_ptr += b * k_stride_b + h * k_stride_h
    v_ptr += b * v_stride_b + h * v_stride_h
    highest = tl.full([BLOCK_M], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(first, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = (keys < end)[:, None] & in_head[None, :]
        rows = keys.to(tl.int64)[:, None]
        k = tl.load(k_ptr + rows * k_stride_s + columns[None, :], inside, 0.0).to(q.dtype)  # [N, D]
        v = tl.load(v_ptr + rows * v_stride_s + columns[None, :], inside, 0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [M, N]
        scores = tl.where(keys[None, :] < tl.minimum(visible, end)[:, None], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        p = tl.exp2(scores - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(p, 1)
        y = tl.dot(p.to(q.dtype), v, y * shrink[:, None], input_precision=PRECISION)
        highest = new_highest
    total = _or_one(total)
    mean = y / total[:, None]
    places = ((b * T + queries) * H + h) * tl.num_programs(1) + split  # [M]
    tl.store(out_ptr + places[:, None] * HEAD_SIZE + columns[None, :], mean.to(out_ptr.dtype.element_ty), inside_q)
    if lse_ptr is not None:
        tl.store(lse_ptr + places, highest + tl.log2(total), queries < T)


@triton.jit
def combine(
    means_ptr,  # (B, T, H, splits, D) fp32
    lse_ptr,  # (B, T, H, splits) fp32, base 2
    lengths_ptr,  # (B,) int64, or None
    y_ptr,  # (B, T, H, D) out, contiguous
    S,
    T,
    H,
    keys_per_split,
    splits,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The means of a row's splits, weighted by 2^lse: one program a row of y. Splits past what the query sees are not read."""
    row = tl.program_id(0)
    b = (row // (T * H)).to(tl.int64)
    visible = _length(lengths_ptr, b, S) - T + row // H % T + 1
    used = tl.cdiv(tl.maximum(visible, 0), keys_per_split)
    columns = tl.arange(0, BLOCK_D)
    in_head = columns < HEAD_SIZE
    row = row.to(tl.int64)
    highest = tl.full([], LOWEST, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    y = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, used, BLOCK_SPLITS):
        at = start + tl.arange(0, BLOCK_SPLITS)
        places = row * splits + at
        lse = tl.load(lse_ptr + places, at < used, float("-inf"))
        inside = (at < used)[:, None] & in_head[None, :]
        means = tl.load(means_ptr + places[:, None] * HEAD_SIZE + columns[None, :], inside, 0.0)
        new_highest = tl.maximum(highest, tl.max(lse, 0))
        weights = tl.exp2(lse - new_highest)
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weights, 0)
        y = y * shrink + tl.sum(weights[:, None] * means, 0)
        highest = new_highest
    y = y / _or_one(total)
    tl.store(y_ptr + row * HEAD_SIZE + columns, y.to(y_ptr.dtype.element_ty), in_head)


@triton.jit
def _length(lengths_ptr, b, S):
    """How many slots of row b are valid, S at most."""
    length = S
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + b), S).to(tl.int32)
    return length


@triton.jit
def _or_one(total):
    """What to divide by: 1 where no key was seen, whose y is 0 and stays so."""
    return tl.where(total > 0, total, 1.0)
