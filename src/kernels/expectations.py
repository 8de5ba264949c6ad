"""In which order `auto` tries the implementations: what published figures let expect, until a GPU has measured it here.

Sources: Triton's tutorial attention equals or beats FlashAttention-2, torch's default, up to a head size of 64 on an H100
(the figures in FlashAttention-3's repository, assets/flash3_fp16_fwd.png) and falls behind in the backward pass at 128
(triton issue 5437). Triton uses no tensor cores below compute capability 8 (triton pull request 5066). A fused addition and
norm is one pass over memory instead of two, whatever the GPU.
"""

from dataclasses import dataclass

import torch

from smallgpt.domain.errors import HardwareError
from smallgpt.kernels.attention.fused import fits_one_tile
from smallgpt.kernels.launching import architecture
from smallgpt.kernels.layer_norm.tiles import MAX_WIDTH

MAX_HEAD_SIZE_AHEAD = 64

Preference = list[tuple[str, str]]
"""Backends, best first, each with the words that say why."""


@dataclass(frozen=True)
class Shape:
    """What decides speed: the head size, the context in tokens and the width."""

    head_size: int = 64
    block_size: int = 1024
    n_embd: int = 256


def preference(operation: str, device: torch.device, dtype: torch.dtype, shape: Shape) -> Preference:
    """The order for "attention", "layer_norm" or "linear_cross_entropy" on a device."""
    plain = [("torch", "torch's best"), ("reference", "the formula, as nothing faster runs")]
    if device.type != "cuda":
        return plain
    try:
        gpu = architecture(device)
    except HardwareError:
        return plain  # a GPU that Triton does not serve
    ours = _expected(operation, gpu, dtype, shape)
    return [ours, *plain] if ours is not None else plain


def _expected(operation: str, gpu: str, dtype: torch.dtype, shape: Shape) -> tuple[str, str] | None:
    """Our backend where it is expected to be the fastest."""
    tensor_cores = gpu != "sm_75"
    if operation == "layer_norm":
        return ("triton", "expected faster: one pass over memory") if shape.n_embd <= MAX_WIDTH else None
    if operation == "linear_cross_entropy":
        if not tensor_cores:
            return "triton-chunked", "expected faster: matrix products by cuBLAS, rows by Triton"
        return "triton", "expected about as fast, and the logits are never kept"
    if not tensor_cores or dtype == torch.float32:
        return None
    if fits_one_tile(gpu, shape.block_size, shape.head_size, 16, dropout=True):
        return "triton", "expected faster: a head's sequence is one tile"
    if shape.head_size <= MAX_HEAD_SIZE_AHEAD:
        return "triton", "expected no slower up to a head size of 64"
    return None
