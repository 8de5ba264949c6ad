"""Linear + cross-entropy by our Triton kernels, in two designs: `chunked` and `flash`. README.md derives and compares them."""

import torch
from torch import Tensor

from smallgpt.domain.ops import Reduction
from smallgpt.kernels.launching import architecture, check
from smallgpt.kernels.linear_cross_entropy.chunked import Chunked
from smallgpt.kernels.linear_cross_entropy.contract import product_dtype
from smallgpt.kernels.linear_cross_entropy.flash import MAX_WIDTH, Flash

# The widest C at which flash is expected to be about as fast as chunked, with far less memory, for 16-bit products:
# estimated by README.md's cost model, not measured. fp32 products are chunked everywhere: the library's are faster than a
# kernel's without tensor cores.
FLASH_WIDTH = {
    "sm_75": 0,
    "sm_80": 128,
    "sm_86": 256,
    "sm_89": 256,
    "sm_90": 256,
    "sm_100": 256,
    "sm_120": 128,
    "gfx942": 128,
}
FLASH_IDS = 16384  # fewer leave multiprocessors without a block of the vocabulary, and their logits are no burden


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """See domain.ops.LinearCrossEntropy; in the design that is expected to be faster on this GPU.

    Under autocast the products run in its dtype; statistics and sums are fp32. Rows whose target is neither an id nor
    ignore_index give nan on a GPU, and ValueError on the CPU. Raises ValueError for operands that do not belong
    together, HardwareError where Triton cannot run.
    """
    _check(x, weight, targets, label_smoothing, reduction)
    bits = torch.finfo(product_dtype(x, weight)).bits
    design = Flash if prefers_flash(x.device, weight.size(0), weight.size(1), bits) else Chunked
    return _apply(design, x, weight, targets, label_smoothing, ignore_index, z_loss, reduction)


def linear_cross_entropy_chunked(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """linear_cross_entropy() with the library's products, in chunks of rows."""
    _check(x, weight, targets, label_smoothing, reduction)
    return _apply(Chunked, x, weight, targets, label_smoothing, ignore_index, z_loss, reduction)


def linear_cross_entropy_flash(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """linear_cross_entropy() without logits, for C up to 384; ValueError beyond."""
    _check(x, weight, targets, label_smoothing, reduction)
    if x.size(1) > MAX_WIDTH:
        raise ValueError(
            f"linear_cross_entropy: width {x.size(1)} is over the {MAX_WIDTH} of the flash kernels; "
            "use --kernels.linear-cross-entropy triton-chunked"
        )
    return _apply(Flash, x, weight, targets, label_smoothing, ignore_index, z_loss, reduction)


def prefers_flash(device: torch.device, n_ids: int, width: int, bits: int) -> bool:
    """Which of the two designs "triton" means for n_ids rows of `width` and products of `bits`."""
    return bits == 16 and n_ids >= FLASH_IDS and width <= FLASH_WIDTH[architecture(device)]


# What torch.compiler.assume_constant_result does, without its import of the compiler, which takes a second and writes to
# the environment: under torch.compile the answer is asked for once, as it hangs on the device and shapes alone.
prefers_flash._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _apply(design: type[Chunked] | type[Flash], x: Tensor, weight: Tensor, *options: object) -> Tensor:
    if not torch.is_grad_enabled():  # inside apply() it never is
        x, weight = x.detach(), weight.detach()
    return design.apply(x, weight, *options, product_dtype(x, weight))  # type: ignore[no-any-return, no-untyped-call]


def _check(x: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float, reduction: str) -> None:
    name = "linear_cross_entropy"
    check(name, x=x, weight=weight)
    if x.dim() != 2 or weight.dim() != 2 or targets.dim() != 1:
        found = f"{x.dim()}, {weight.dim()} and {targets.dim()} dimensions"
        raise ValueError(f"{name}: x, weight and targets have {found}; give (N, C), (V, C) and (N,)")
    if x.size(1) != weight.size(1) or x.size(0) != targets.size(0):
        shapes = f"{tuple(x.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)}"
        raise ValueError(f"{name}: x is {shapes}; give (N, C), (V, C) and (N,)")
    if 0 in weight.shape:
        raise ValueError(f"{name}: weight is {tuple(weight.shape)}; there must be an id and a column")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"{name}: x is {x.dtype} and weight {weight.dtype}; cast one of them, or use autocast")
    if targets.dtype != torch.int64:
        raise ValueError(f"{name}: targets are {targets.dtype}; give int64 ids")
    if targets.device != x.device:
        raise ValueError(f"{name}: targets are on {targets.device} and x on {x.device}; move one of them")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing is {label_smoothing}; give a number in [0, 1]")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction is {reduction!r}; give 'mean', 'sum' or 'none'")
