"""What `smallgpt bench attention`, `layer-norm` and `cross-entropy` put side by side: our backends, and torch's own forms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from smallgpt.application.operation_costs import (
    Direction,
    attention_flops,
    layer_norm_bytes,
    linear_cross_entropy_flops,
)
from smallgpt.domain import ops as plain
from smallgpt.kernels.language import INSTALLED, INTERPRETING
from smallgpt.kernels.select import BACKENDS, LOSS_BACKENDS

Outputs = tuple[Tensor, ...]
Operation = Callable[..., Any]
SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
EPS = 1e-5
IGNORED = -100


@dataclass(frozen=True)
class System:
    """One implementation of a case's operation."""

    name: str
    call: Callable[..., Outputs]
    """The case's operands, and what goes with them undifferentiated -> outputs."""
    split: Callable[[Tensor], Outputs] | None = None
    """Where the system takes the packed projection apart: then it is timed on the parts, and given gradients for them."""


@dataclass(frozen=True)
class Operands:
    """What an operation is called with, and the gradients of its outputs."""

    leaves: Outputs
    fixed: Outputs = ()
    """Not differentiated."""
    upstream: Outputs | None = None
    """None for a scalar loss."""

    def placed(self, device: torch.device, dtype: torch.dtype) -> "Operands":
        """On a device, in dtype what is not an index; rounded to bf16 first, so that all dtypes get the same numbers."""
        leaves = tuple(x.bfloat16().to(device, dtype).requires_grad_() for x in self.leaves)
        upstream = None if self.upstream is None else tuple(x.bfloat16().to(device, dtype) for x in self.upstream)
        return Operands(leaves, tuple(x.to(device) for x in self.fixed), upstream)


class Case(Protocol):
    """An operation at one shape; the fields of the class are the shape."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    operation: ClassVar[str]
    ceiling: ClassVar[str]
    """What bounds it: "flops" or "bytes"."""
    backward_alone: ClassVar[bool]
    """Whether every system makes its gradients in the backward pass; else some make them in the forward one."""

    def work(self, direction: Direction, dtype: torch.dtype) -> float:
        """The least FLOPs or bytes."""

    def small(self) -> Self:
        """The same kernels at little work, for the comparison with float64; no dropout."""

    def operands(self, generator: torch.Generator) -> Operands:
        """Normal numbers in fp32, on the generator's device."""

    def systems(self, device: torch.device) -> Iterator[System]:
        """Ours first, then torch's."""


@dataclass(frozen=True)
class Attention:
    """Causal attention on the packed projection (B, T, 3, H, D)."""

    operation: ClassVar[str] = "attention"
    ceiling: ClassVar[str] = "flops"
    backward_alone: ClassVar[bool] = True
    batch_size: int
    seq_len: int
    n_head: int
    head_size: int
    dropout: float = 0.0

    def work(self, direction: Direction, dtype: torch.dtype) -> float:
        """See Case."""
        return attention_flops(self.batch_size, self.seq_len, self.n_head, self.head_size, direction)

    def small(self) -> Self:
        """See Case. The length stays: it decides which kernel runs."""
        return replace(self, batch_size=1, n_head=min(2, self.n_head), dropout=0.0)

    def operands(self, generator: torch.Generator) -> Operands:
        """See Case."""
        B, T, H, D = self.batch_size, self.seq_len, self.n_head, self.head_size
        return Operands((_normal(generator, B, T, 3, H, D),), upstream=(_normal(generator, B, T, H, D),))

    def systems(self, device: torch.device) -> Iterator[System]:
        """See Case. "-apart" is SDPA spared the packed projection and its packed gradient."""
        for name, operation in _distinct({name: ops.causal_attention for name, ops in BACKENDS.items()}):
            yield System(name, partial(_attend, operation, self.dropout))
        if device.type == "cpu":
            yield System("sdpa", partial(_attend, plain.causal_attention, self.dropout))
            return
        for name, backend in SDPA_BACKENDS.items():
            yield System(f"sdpa-{name}", partial(_attend, partial(_forced, backend), self.dropout))
            yield System(f"sdpa-{name}-apart", partial(_attend_apart, backend, self.dropout), _apart)


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm of (rows, width), or with `add` the residual addition and layer norm."""

    operation: ClassVar[str] = "layer_norm"
    ceiling: ClassVar[str] = "bytes"
    backward_alone: ClassVar[bool] = True
    rows: int
    width: int
    add: bool = False

    def work(self, direction: Direction, dtype: torch.dtype) -> float:
        """See Case."""
        return layer_norm_bytes(self.rows, self.width, dtype.itemsize, direction, add=self.add)

    def small(self) -> Self:
        """See Case."""
        return replace(self, rows=min(33, self.rows))

    def operands(self, generator: torch.Generator) -> Operands:
        """See Case."""
        count = 2 if self.add else 1
        rows = [_normal(generator, self.rows, self.width) for _ in range(2 * count)]
        weight, bias = (_normal(generator, self.width) for _ in range(2))
        return Operands((*rows[:count], weight, bias), upstream=tuple(rows[count:]))

    def systems(self, device: torch.device) -> Iterator[System]:
        """See Case."""
        name_of = "add_layer_norm" if self.add else "layer_norm"
        for name, operation in _distinct({name: getattr(ops, name_of) for name, ops in BACKENDS.items()}):
            yield System(name, partial(_normalise, operation))
        if device.type == "cuda":
            compiled = torch.compile(getattr(plain, name_of), dynamic=False)
            yield System("torch-compiled", partial(_normalise, compiled))


@dataclass(frozen=True)
class CrossEntropy:
    """The output head and its loss: x (rows, width), weight (vocabulary, width)."""

    operation: ClassVar[str] = "linear_cross_entropy"
    ceiling: ClassVar[str] = "flops"
    backward_alone: ClassVar[bool] = False
    rows: int
    vocab_size: int
    width: int

    def work(self, direction: Direction, dtype: torch.dtype) -> float:
        """See Case."""
        return linear_cross_entropy_flops(self.rows, self.width, self.vocab_size, direction)

    def small(self) -> Self:
        """See Case."""
        return replace(self, rows=min(65, self.rows))

    def operands(self, generator: torch.Generator) -> Operands:
        """See Case. Logits have a standard deviation of 1, as those of a model have after some training."""
        x, weight = _normal(generator, self.rows, self.width), _normal(generator, self.vocab_size, self.width)
        targets = torch.randint(self.vocab_size, (self.rows,), generator=generator, device=generator.device)
        targets[:: max(2, self.rows // 8)] = IGNORED
        return Operands((x, weight / self.width**0.5), (targets,))

    def systems(self, device: torch.device) -> Iterator[System]:
        """See Case."""
        for name, operation in _distinct({name: ops.linear_cross_entropy for name, ops in LOSS_BACKENDS.items()}):
            yield System(name, partial(_lose, operation))
        yield System("full-logits", partial(_lose, plain.linear_cross_entropy))
        if device.type == "cuda":
            compiled = torch.compile(plain.linear_cross_entropy, dynamic=False)
            yield System("full-logits-compiled", partial(_lose, compiled))
        yield System("F.linear_cross_entropy", partial(_librarys_loss, chunked=False))
        yield System("F.linear_cross_entropy-chunked", partial(_librarys_loss, chunked=True))


def why_not(system: System, device: torch.device) -> str | None:
    """The reason why a system is not timed on the device whatever its results, or None."""
    if not system.name.startswith("triton") or device.type == "cuda":
        return None
    if not INSTALLED:
        return "Triton is not installed"
    if INTERPRETING:
        return "TRITON_INTERPRET=1 runs it in Triton's interpreter, whose times mean nothing; it needs a GPU"
    return "it needs a GPU"


def _distinct(operations: dict[str, Operation]) -> Iterator[tuple[str, Operation]]:
    """Without those that are the same function under a second name."""
    seen: list[Operation] = []
    for name, operation in operations.items():
        if operation not in seen:
            seen.append(operation)
            yield name, operation


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _attend(operation: Operation, dropout: float, qkv: Tensor) -> Outputs:
    return (operation(qkv, dropout),)


def _forced(backend: SDPBackend, qkv: Tensor, dropout: float) -> Tensor:
    with sdpa_kernel(backend):
        return plain.causal_attention(qkv, dropout)


def _apart(qkv: Tensor) -> Outputs:
    """q, k and v, each (B, H, T, D) and contiguous."""
    return qkv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def _attend_apart(backend: SDPBackend, dropout: float, q: Tensor, k: Tensor, v: Tensor) -> Outputs:
    with sdpa_kernel(backend):
        return (F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2),)


def _normalise(operation: Operation, *operands: Tensor) -> Outputs:
    found = operation(*operands, EPS)
    return (found,) if isinstance(found, Tensor) else found


def _lose(operation: Operation, x: Tensor, weight: Tensor, targets: Tensor) -> Outputs:
    return (operation(x, weight, targets, 0.0, IGNORED),)


def _librarys_loss(x: Tensor, weight: Tensor, targets: Tensor, *, chunked: bool) -> Outputs:
    """torch's own, from 2.13 on; chunked as it is by default. Raises NotImplementedError in an older torch."""
    try:
        from torch.nn.functional import linear_cross_entropy
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
    except ImportError:
        raise NotImplementedError(f"torch {torch.__version__} has none") from None
    options = LinearCrossEntropyOptions() if chunked else None
    return (linear_cross_entropy(x, weight, targets, ignore_index=IGNORED, options=options),)
