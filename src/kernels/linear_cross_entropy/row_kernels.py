"""The Triton kernels of chunked linear + cross-entropy: a row of logits becomes its loss and, in place, its slopes.

    lse = log Σ exp(z)      loss = lse - (1-ε) z[target] - ε mean(z) + ζ lse²
    slope = (1 + 2ζ lse) softmax(z) - (1-ε) onehot(target) - ε/V

Slopes are not divided by the number of rows, and are written times 2^SHIFT, which keeps small ones within fp16's normal
range. `in_registers` reads a row once; `in_two_passes` is for rows too long for that: it reads them a second time, from cache.
Rows are padded to `width` so that all loads are vectors; what is in the padding does not matter.
"""

from smallgpt.kernels.language import tl, triton

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def in_registers(
    logits_ptr,  # (N, width), of which the first V columns count; replaced by the slopes if WRITES
    targets_ptr,  # (N,) int64
    share_ptr,  # (N,) fp32: what a row's slopes are multiplied by; None for 1
    loss_ptr,  # (N,) out, fp32
    width,
    V,
    ignore_index,
    smoothing,
    z_loss,
    SMOOTHS: tl.constexpr,  # smoothing is not 0
    WRITES: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_V: tl.constexpr,  # at least width
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK_V)
    logits_ptr += row * width
    target = tl.load(targets_ptr + row)
    chosen = chosen_logit(logits_ptr, target, V)
    logits = tl.load(logits_ptr + ids, ids < width, 0.0).to(tl.float32)
    if SMOOTHS:
        chosen = (1 - smoothing) * chosen + smoothing * tl.sum(tl.where(ids < V, logits, 0.0), 0) / V
    logits = tl.where(ids < V, logits, float("-inf"))
    highest = tl.max(logits, 0)
    p = tl.exp2((logits - highest) * LOG2E)
    total = tl.sum(p, 0)
    log_sum = log_of_sum(total, target, V, ignore_index)
    lse = highest + log_sum
    loss = (highest - chosen) + log_sum + z_loss * lse * lse
    tl.store(loss_ptr + row, tl.where(target != ignore_index, loss, 0.0))
    if WRITES:
        share = row_share(share_ptr, row, target, ignore_index, SHIFT)
        slope = p * (share * (1 + 2 * z_loss * lse) / total)
        if SMOOTHS:
            slope -= share * (smoothing / V)
        slope = tl.where(ids == target, slope - share * (1 - smoothing), slope)  # before it is rounded
        tl.store(logits_ptr + ids, slope.to(logits_ptr.dtype.element_ty), ids < width)


@triton.jit
def in_two_passes(
    logits_ptr,
    targets_ptr,
    share_ptr,
    loss_ptr,
    width,
    V,
    ignore_index,
    smoothing,
    z_loss,
    SMOOTHS: tl.constexpr,
    WRITES: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.arange(0, BLOCK_V)
    logits_ptr += row * width
    target = tl.load(targets_ptr + row)
    chosen = chosen_logit(logits_ptr, target, V)
    highest = float("-inf")
    total = tl.zeros([BLOCK_V], tl.float32)
    everything = tl.zeros([BLOCK_V], tl.float32)
    for first in range(0, width, BLOCK_V):
        logits = tl.load(logits_ptr + first + ids, ids < width - first, 0.0).to(tl.float32)
        if SMOOTHS:
            everything += tl.where(ids < V - first, logits, 0.0)
        logits = tl.where(ids < V - first, logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 0))
        total = total * tl.exp2((highest - higher) * LOG2E) + tl.exp2((logits - higher) * LOG2E)
        highest = higher
    if SMOOTHS:
        chosen = (1 - smoothing) * chosen + smoothing * tl.sum(everything, 0) / V
    sum_of_all = tl.sum(total, 0)
    log_sum = log_of_sum(sum_of_all, target, V, ignore_index)
    lse = highest + log_sum
    loss = (highest - chosen) + log_sum + z_loss * lse * lse
    tl.store(loss_ptr + row, tl.where(target != ignore_index, loss, 0.0))
    if WRITES:
        share = row_share(share_ptr, row, target, ignore_index, SHIFT)
        for first in range(0, width, BLOCK_V):
            logits = tl.load(logits_ptr + first + ids, ids < width - first, 0.0).to(tl.float32)
            logits = tl.where(ids < V - first, logits, float("-inf"))  # the padding holds anything
            p = tl.exp2((logits - highest) * LOG2E)
            slope = p * (share * (1 + 2 * z_loss * lse) / sum_of_all)
            if SMOOTHS:
                slope -= share * (smoothing / V)
            slope = tl.where(first + ids == target, slope - share * (1 - smoothing), slope)
            tl.store(logits_ptr + first + ids, slope.to(logits_ptr.dtype.element_ty), ids < width - first)


@triton.jit
def chosen_logit(logits_ptr, target, V):
    """The target's logit, or 0 where it has none. Read before the first reduction, whose barrier holds back later writes."""
    return tl.load(logits_ptr + target, (target >= 0) & (target < V), 0.0).to(tl.float32)


@triton.jit
def log_of_sum(total, target, V, ignore_index):
    """Natural; nan if the target counts but is no id, so that loss and slopes are nan."""
    exists = (target >= 0) & (target < V)
    return tl.where(exists | (target == ignore_index), tl.log2(total) * LN2, float("nan"))


@triton.jit
def row_share(share_ptr, row, target, ignore_index, SHIFT: tl.constexpr):
    """What to multiply a row's slopes by; 0 if its target is ignored."""
    share = tl.where(target != ignore_index, 2.0**SHIFT, 0.0)
    if share_ptr is not None:
        share *= tl.load(share_ptr + row)
    return share
