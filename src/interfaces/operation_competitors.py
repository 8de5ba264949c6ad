"""Other people's forms of the operations that `smallgpt bench` times ours beside; imported and compiled when first called.

Each is called as its users call it. The operands already have the dtype that autocast would give them, so full logits are
what they are under autocast: a product in that dtype, then the loss in fp32.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from smallgpt.domain import ops as plain

Outputs = tuple[Tensor, ...]
Operation = Callable[..., Any]
IGNORED = -100
COMPILING_ON_CPU = "compiling it on a CPU takes up to half a minute a shape; name it with --system"


SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
ON_CPU = ("flash", "math")


def forced(backend: SDPBackend, qkv: Tensor, dropout: float) -> Tensor:
    """SDPA by one backend on the packed projection: (B, T, 3, H, D) -> (B, T, H, D)."""
    with sdpa_kernel(backend):
        return plain.causal_attention(qkv, dropout)


def apart(qkv: Tensor) -> Outputs:
    """q, k and v, each (B, H, T, D) and contiguous."""
    return qkv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def attend_apart(backend: SDPBackend, dropout: float, q: Tensor, k: Tensor, v: Tensor) -> Outputs:
    """SDPA by one backend, spared the packed projection and its packed gradient."""
    with sdpa_kernel(backend):
        return (F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2),)


def flex(qkv: Tensor, dropout: float) -> Tensor:
    """FlexAttention, compiled, on the packed projection. Raises NotImplementedError with dropout."""
    return flex_apart(dropout, *qkv.permute(2, 0, 3, 1, 4))[0]


def flex_apart(dropout: float, q: Tensor, k: Tensor, v: Tensor) -> Outputs:
    """FlexAttention on q, k and v, each (B, H, T, D)."""
    if dropout:
        raise NotImplementedError("FlexAttention has no dropout")
    from torch.nn.attention.flex_attention import flex_attention

    return (_compile(flex_attention)(q, k, v, block_mask=_causal_blocks(q.size(2), q.device)).transpose(1, 2),)


@lru_cache
def _causal_blocks(seq_len: int, device: torch.device) -> Any:
    """Which tiles FlexAttention may skip. Made once a length, as a training program does."""
    from torch.nn.attention.flex_attention import create_block_mask

    def causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    return create_block_mask(causal, None, None, seq_len, seq_len, device=str(device))


def compiled(operation: Operation) -> Operation:
    """The operation by torch.compile, for static shapes."""

    def call(*operands: Any) -> Any:
        return _compile(operation)(*operands)

    return call


@lru_cache
def _compile(operation: Operation) -> Operation:
    return torch.compile(operation, dynamic=False)


def no_liger(device: torch.device) -> str | None:
    """The reason why Liger's kernels cannot be timed on the device, or None."""
    if find_spec("liger_kernel") is None:
        return "liger_kernel is not installed"
    return None if device.type == "cuda" else "it needs a GPU"


def liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Liger's layer norm: (M, C) -> (M, C)."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    y: Tensor = LigerLayerNormFunction.apply(x, weight, bias, eps)
    return y


def liger_add_layer_norm(residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Outputs:
    """The addition by torch and the norm by Liger, which fuses the two for RMSNorm only."""
    residual = residual + delta
    return residual, liger_layer_norm(residual, weight, bias, eps)


def liger_loss(sum_dtype: torch.dtype | None, x: Tensor, weight: Tensor, targets: Tensor) -> Outputs:
    """Liger's fused linear cross-entropy; dW summed in sum_dtype, or as by default in the weight's dtype."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    if not torch.is_grad_enabled():  # else it makes the gradients whether they are wanted or not
        x, weight = x.detach(), weight.detach()
    # bias, class weights, ignored target, z-loss, smoothing, reduction, soft cap, whether to tell the z-loss
    options: tuple[Any, ...] = (None, None, IGNORED, 0.0, 0.0, "mean", None, False)
    found = LigerFusedLinearCrossEntropyFunction.apply(
        x, weight, targets, *options, *([] if sum_dtype is None else [sum_dtype])
    )
    return (found[0],)


def librarys_loss(x: Tensor, weight: Tensor, targets: Tensor, *, chunked: bool) -> Outputs:
    """torch's own, from 2.13 on; chunked as it is by default. Raises NotImplementedError in an older torch.

    With bf16 operands its loss is bf16 too, where the others' is fp32: within what the comparison with float64 allows.
    """
    try:
        from torch.nn.functional import linear_cross_entropy
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
    except ImportError:
        raise NotImplementedError(f"torch {torch.__version__} has none") from None
    options = LinearCrossEntropyOptions() if chunked else None
    return (linear_cross_entropy(x, weight, targets, ignore_index=IGNORED, options=options),)
