"""Attention by our Triton kernels. README.md derives them.

Causal attention, on the packed projection, is one launch forward and one backward. Up to T = 128, where the tables have an
entry, a head's whole sequence is one tile (one_tile.py); beyond, and where that tile does not fit, the online softmax in two
stages (two_stage.py). Cached attention is one launch, or two where the keys are split (decode.py).
"""

from math import e, log2, sqrt
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.gradients import first_derivative_only
from smallgpt.kernels.attention import decode, one_tile, two_stage
from smallgpt.kernels.language import triton
from smallgpt.kernels.launching import architecture, check, define, launch, multiprocessors
from smallgpt.kernels.precision import product_precision
from smallgpt.kernels.tiles import Tile, tile

MAX_HEAD_SIZE = 128
MAX_ONE_TILE = 128  # tokens

# When to split the keys of a head, estimated in README.md.
MIN_SLOTS_TO_SPLIT = 512
MIN_KEYS_PER_SPLIT = 128
PROGRAMS_PER_MULTIPROCESSOR = 2  # that keep its share of the memory's bandwidth busy
COMBINE = {"BLOCK_SPLITS": 16, "num_warps": 4, "num_stages": 1}


def causal_attention(qkv: Tensor, dropout: float) -> Tensor:
    """See domain.ops.CausalAttention: (B, T, 3, H, D) -> (B, T, H, D), D at most 128, in qkv's dtype, or autocast's.

    The dropout probability is rounded to a multiple of 1/256. Scores and sums are fp32; fp32 inputs are multiplied in
    full precision or TF32 as torch.backends.cuda.matmul.fp32_precision says. Raises ValueError for what the kernels do
    not take, HardwareError where Triton cannot run.
    """
    if torch.is_autocast_enabled(qkv.device.type):
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    check("attention", qkv=qkv)
    if qkv.dim() != 5 or qkv.size(2) != 3:
        raise ValueError(f"attention: qkv is {tuple(qkv.shape)}; give the packed projection (B, T, 3, H, D)")
    _check_head_size(qkv.size(4))
    if not 0 <= dropout < 1:
        raise ValueError(f"attention: dropout is {dropout}; give a probability from 0 to below 1")
    seed = None
    if keep_of_256(dropout) < 256:
        seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=qkv.device)
    y: Tensor = _CausalAttention.apply(qkv, seed, dropout)  # type: ignore[no-untyped-call]
    return y


def keep_of_256(dropout: float) -> int:
    """How many of 256 attention weights stay, on average: at least one."""
    return max(1, round(256 * (1 - dropout)))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
        y, lse = FORWARD(qkv, seed, dropout)
        if lse.numel() == 0:  # one tile: the backward pass makes everything again from qkv
            ctx.save_for_backward(qkv, seed, None, None)
        else:
            ctx.save_for_backward(qkv, seed, y, lse)
        ctx.dropout = dropout
        return y  # type: ignore[no-any-return]

    @staticmethod
    @first_derivative_only("attention")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        qkv, seed, y, lse = ctx.saved_tensors
        return BACKWARD(dy, qkv, y, lse, seed, ctx.dropout), None, None


def launch_forward(qkv: Tensor, seed: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """-> (y (B, T, H, D), lse (B, H, T) fp32 base 2; lse is empty where one tile does)."""
    y, lse = _fake_forward(qkv, seed, dropout)
    if y.numel() == 0:
        return y, lse
    B, T, H, D = y.shape
    qkv = _columns_adjacent(qkv)
    common = _common(qkv, seed, dropout) | {"y_ptr": y, "scale": log2(e) / sqrt(D)}
    tiles = _one_tile(qkv, seed)
    if tiles is not None:
        launch(one_tile.forward, (B * H,), **common, **tiles[0])
        return y, lse
    entry = _two_stage(qkv, seed, "forward")
    launch(two_stage.forward, (triton.cdiv(T, entry["BLOCK_M"]) * B * H,), lse_ptr=lse, **common, **entry)
    return y, lse


def launch_backward(
    dy: Tensor, qkv: Tensor, y: Tensor | None, lse: Tensor | None, seed: Tensor | None, dropout: float
) -> Tensor:
    """-> dqkv, contiguous (B, T, 3, H, D); y and lse are None where one tile does."""
    dqkv = _fake_backward(dy, qkv, y, lse, seed, dropout)
    if dqkv.numel() == 0:
        return dqkv
    B, T, H, D = dy.shape
    qkv, dy = _columns_adjacent(qkv), _columns_adjacent(dy)
    strides = dict(zip(("dy_stride_b", "dy_stride_t", "dy_stride_h"), dy.stride()[:3], strict=True))
    common = _common(qkv, seed, dropout) | strides
    common |= {"dy_ptr": dy, "dqkv_ptr": dqkv, "scale": log2(e) / sqrt(D), "scale_of_gradient": 1 / sqrt(D)}
    if lse is None:
        tiles = _one_tile(qkv, seed)
        assert tiles is not None, "the forward pass took one tile"
        launch(one_tile.backward, (B * H,), **common, **tiles[1])
        return dqkv
    entry = _two_stage(qkv, seed, "backward")
    blocks = triton.cdiv(T, entry["BLOCK_N1"]) + triton.cdiv(T, entry["BLOCK_M2"])
    launch(two_stage.backward, (blocks * B * H,), y_ptr=y, lse_ptr=lse, **common, **entry)
    return dqkv


def _common(qkv: Tensor, seed: Tensor | None, dropout: float) -> dict[str, Any]:
    """What all four kernels are told."""
    _, T, _, H, D = qkv.shape
    strides = dict(zip(("stride_b", "stride_t", "stride_3", "stride_h"), qkv.stride()[:4], strict=True))
    return strides | {
        "qkv_ptr": qkv,
        "seed_ptr": seed,
        "T": T,
        "H": H,
        "keep_of_256": keep_of_256(dropout),
        "HEAD_SIZE": D,
        "PRECISION": product_precision(qkv.dtype),
    }


def fits_one_tile(gpu: str, tokens: int, head_size: int, bits: int, dropout: bool) -> bool:
    """Whether the tables have both directions of a single tile for such a sequence on an architecture."""
    return None not in _one_tile_entries(gpu, tokens, head_size, bits, dropout)


def _one_tile_entries(gpu: str, tokens: int, head_size: int, bits: int, dropout: bool) -> list[Tile | None]:
    """The forward and the backward tile; None where there is none."""
    if tokens > MAX_ONE_TILE:
        return [None, None]
    block_t = 64 if tokens <= 64 else 128
    names = (f"one_tile_{direction}_{block_t}" for direction in ("forward", "backward"))
    entries = (_entry(name, gpu, head_size, bits, dropout) for name in names)
    size = {"BLOCK_T": block_t, "BLOCK_D": _padded(head_size)}
    return [None if entry is None else entry | size for entry in entries]


def _one_tile(qkv: Tensor, seed: Tensor | None) -> tuple[Tile, Tile] | None:
    forward, backward = _one_tile_entries(
        architecture(qkv.device), qkv.size(1), qkv.size(4), 8 * qkv.element_size(), seed is not None
    )
    return None if forward is None or backward is None else (forward, backward)


def _two_stage(qkv: Tensor, seed: Tensor | None, direction: str) -> Tile:
    D = qkv.size(4)
    entry = _entry(f"two_stage_{direction}", architecture(qkv.device), D, 8 * qkv.element_size(), seed is not None)
    assert entry is not None, "the tables hold every head size for every architecture"
    return entry | {"BLOCK_D": _padded(D)}


def _entry(kernel: str, gpu: str, head_size: int, bits: int, dropout: bool) -> Tile | None:
    """Dropout has entries of its own: the mask costs registers."""
    return tile("attention", kernel + ("_dropout" if dropout else ""), gpu, _padded(head_size), bits)


def _padded(head_size: int) -> int:
    return max(32, int(triton.next_power_of_2(head_size)))


def _fake_forward(qkv: Tensor, seed: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    B, T, _, H, D = qkv.shape
    one = T == 0 or _one_tile(qkv, seed) is not None
    return qkv.new_empty((B, T, H, D)), qkv.new_empty((0,) if one else (B, H, T), dtype=torch.float32)


def _fake_backward(
    dy: Tensor, qkv: Tensor, y: Tensor | None, lse: Tensor | None, seed: Tensor | None, dropout: float
) -> Tensor:
    return qkv.new_empty(qkv.shape)


FORWARD = define(
    "causal_attention",
    "(Tensor qkv, Tensor? seed, float dropout) -> (Tensor, Tensor)",
    launch_forward,
    _fake_forward,
)
BACKWARD = define(
    "causal_attention_backward",
    "(Tensor dy, Tensor qkv, Tensor? y, Tensor? lse, Tensor? seed, float dropout) -> Tensor",
    launch_backward,
    _fake_backward,
)


def _columns_adjacent(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous()


def _check_head_size(head_size: int) -> None:
    if not 1 <= head_size <= MAX_HEAD_SIZE:
        raise ValueError(
            f"attention: a head size of {head_size} is not in the kernels' 1 to {MAX_HEAD_SIZE}; "
            "use more heads (--model.n-head) or --kernels.attention torch"
        )


def cached_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
    """See domain.ops.CachedAttention: q (B, T, H, D), caches (B, S, H, D) -> (B, T, H, D), in q's dtype, or autocast's.

    The caches may be of other dtypes than q. Nothing depends on the values of lengths but what the kernels read, so calls can
    be captured in a CUDA graph. A query that sees no slot gets 0. There is no backward pass: raises RuntimeError where one
    could be asked for, ValueError for what the kernels do not take, HardwareError where Triton cannot run.
    """
    if torch.is_autocast_enabled(q.device.type):
        q = q.to(torch.get_autocast_dtype(q.device.type))
    _check_cached(q, k_cache, v_cache, lengths)
    y: Tensor = DECODE(q, k_cache, v_cache, lengths)
    return y


def launch_cached(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
    """-> y (B, T, H, D)."""
    y = _fake_cached(q, k_cache, v_cache, lengths)
    if y.numel() == 0:
        return y
    B, T, H, D = y.shape
    S = k_cache.size(1)
    kernel = decode.one_query if T == 1 else decode.few_queries
    bits = 8 * max(x.element_size() for x in (q, k_cache, v_cache))
    entry = _entry(kernel.__name__, architecture(q.device), D, bits, dropout=False)
    assert entry is not None, "the tables hold every head size for every architecture"
    programs = B * H * triton.cdiv(T, entry.get("BLOCK_M", 1))
    keys_per_split = _keys_per_split(S, programs, multiprocessors(q.device), entry["BLOCK_N"])
    splits = max(1, triton.cdiv(S, keys_per_split))
    out, lse = y, None
    if splits > 1:
        out, lse = (y.new_empty(shape, dtype=torch.float32) for shape in ((B, T, H, splits, D), (B, T, H, splits)))
    shared = {"lse_ptr": lse, "S": S, "T": T, "H": H, "keys_per_split": keys_per_split}
    shared |= {"HEAD_SIZE": D, "BLOCK_D": _padded(D), "lengths_ptr": None if lengths is None else lengths.contiguous()}
    operands = {"q": _columns_adjacent(q), "k": _columns_adjacent(k_cache), "v": _columns_adjacent(v_cache)}
    common: dict[str, Any] = shared | {f"{name}_ptr": x for name, x in operands.items()} | {"scale": log2(e) / sqrt(D)}
    for name, x in operands.items():
        common |= {f"{name}_stride_{of}": n for of, n in zip("bth" if name == "q" else "bsh", x.stride(), strict=False)}
    if T > 1:
        common["PRECISION"] = product_precision(q.dtype)
    launch(kernel, (programs, splits), out_ptr=out, **common, **entry)
    if splits > 1:
        launch(decode.combine, (B * T * H,), means_ptr=out, y_ptr=y, splits=splits, **shared, **COMBINE)
    return y


def _keys_per_split(slots: int, programs: int, multiprocessors: int, block: int) -> int:
    """A multiple of `block`: all slots, or so few that the splits of all programs fill the device. Never by lengths."""
    splits = 1
    if slots >= MIN_SLOTS_TO_SPLIT:
        wanted = triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, programs)
        splits = min(wanted, triton.cdiv(slots, MIN_KEYS_PER_SPLIT))
    return int(block * max(1, triton.cdiv(slots, splits * block)))


def _fake_cached(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
    return q.new_empty(q.shape)


DECODE = define(
    "cached_attention",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? lengths) -> Tensor",
    launch_cached,
    _fake_cached,
)


def _check_cached(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> None:
    check("attention", q=q, k_cache=k_cache, v_cache=v_cache)
    expected = (*q.shape[:1], *k_cache.shape[1:2], *q.shape[2:])
    if q.dim() != 4 or k_cache.shape != expected or v_cache.shape != expected:
        raise ValueError(
            f"attention: q is {tuple(q.shape)}, the caches are {tuple(k_cache.shape)} and {tuple(v_cache.shape)}; "
            "give q (B, T, H, D) and caches (B, S, H, D)"
        )
    _check_head_size(q.size(3))
    if lengths is not None and (
        lengths.shape != q.shape[:1] or lengths.dtype != torch.int64 or lengths.device != q.device
    ):
        raise ValueError(
            f"attention: lengths is {tuple(lengths.shape)} {lengths.dtype} on {lengths.device}; "
            f"give ({q.size(0)},) torch.int64 on {q.device}"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k_cache, v_cache)):
        raise RuntimeError(
            "attention: the kernel for cached keys has no backward pass; decode under torch.inference_mode(), "
            "or use --kernels.attention torch"
        )
