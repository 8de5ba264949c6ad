"""Which attention weights dropout keeps: a pure function of (seed, head, query, key), so that every tile shape, and the
backward pass, makes the same mask anew instead of storing T² of it.

One Philox call gives 128 bits, enough for 16 weights at a byte each: a quarter of the usual calls at a word each, and 7
rounds pass the same statistical batteries as 10 (Salmon et al. 2011, table 2). A byte b keeps its weight when b < keep_of_256,
so the probability is rounded to 1/256, and the survivors are scaled by what it was rounded to.
"""

from smallgpt.kernels.language import tl, triton

PHILOX_ROUNDS = tl.constexpr(7)
GROUP = tl.constexpr(16)  # keys to a Philox call


@triton.jit
def keep_mask(seed, head, query_start, key_start, keep_of_256, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] bool; seed int64, head counts over batch and heads, key_start is a multiple of 16."""
    queries = query_start + tl.arange(0, BLOCK_M)
    groups = key_start // GROUP + tl.arange(0, BLOCK_N // GROUP)
    group = tl.broadcast_to(groups[None, :], (BLOCK_M, BLOCK_N // GROUP))
    query = tl.broadcast_to(queries[:, None], (BLOCK_M, BLOCK_N // GROUP))
    zero = group * 0
    w0, w1, w2, w3 = tl.philox(seed, group, query, zero + head, zero, PHILOX_ROUNDS)
    words = tl.join(tl.join(w0, w1), tl.join(w2, w3))  # [BLOCK_M, groups, 2, 2]
    words = tl.reshape(words, (BLOCK_M, BLOCK_N // GROUP, 4, 1))
    shifts = tl.reshape((tl.arange(0, 4) * 8).to(tl.uint32), (1, 1, 1, 4))
    bytes_ = (words >> shifts) & 0xFF
    return tl.reshape(bytes_, (BLOCK_M, BLOCK_N)).to(tl.int32) < keep_of_256
