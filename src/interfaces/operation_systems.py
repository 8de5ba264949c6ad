"""What `smallgpt bench attention`, `layer-norm` and `cross-entropy` put side by side: our backends, and others' forms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from smallgpt.application.operation_costs import (
    Bound,
    Direction,
    Work,
    attention_bytes,
    attention_flops,
    layer_norm_bytes,
    layer_norm_flops,
    linear_cross_entropy_bytes,
    linear_cross_entropy_flops,
)
from smallgpt.domain import ops as plain
from smallgpt.interfaces import operation_competitors as others
from smallgpt.interfaces.operation_competitors import IGNORED, Operation, Outputs
from smallgpt.interfaces.operation_inputs import Operands
from smallgpt.kernels.language import INSTALLED, INTERPRETING
from smallgpt.kernels.select import BACKENDS, LOSS_BACKENDS

EPS = 1e-5


@dataclass(frozen=True)
class System:
    """One implementation of a case's operation."""

    name: str
    call: Callable[..., Outputs]
    """The case's operands, and what goes with them undifferentiated -> outputs."""
    split: Callable[[Tensor], Outputs] | None = None
    """Where the system takes the packed projection apart: then it is timed on the parts, and given gradients for them."""
    backward: bool = True
    """Whether it has a backward pass on the device."""
    not_unless_named: str | None = None
    """Why it is timed only when it is asked for by name."""


class Case(Protocol):
    """An operation at one shape; the fields of the class are the shape."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    operation: ClassVar[str]
    bound: ClassVar[Bound]
    """What it is limited by, and so what its speed is told in."""
    backward_alone: ClassVar[bool]
    """Whether every system makes its gradients in the backward pass; else some make them in the forward one."""

    def work(self, direction: Direction, dtype: torch.dtype) -> Work:
        """The least FLOPs and bytes."""

    def small(self) -> Self:
        """The same kernels at little work, for the comparison with float64; no dropout."""

    def operands(self, generator: torch.Generator) -> Operands:
        """Normal numbers in fp32, on the generator's device."""

    def systems(self, device: torch.device) -> Iterator[System]:
        """Ours first, then others'."""


@dataclass(frozen=True)
class Attention:
    """Causal attention on the packed projection (B, T, 3, H, D)."""

    operation: ClassVar[str] = "attention"
    bound: ClassVar[Bound] = "flops"
    backward_alone: ClassVar[bool] = True
    batch_size: int
    seq_len: int
    n_head: int
    head_size: int
    dropout: float = 0.0

    def work(self, direction: Direction, dtype: torch.dtype) -> Work:
        """See Case."""
        shape = self.batch_size, self.seq_len, self.n_head, self.head_size
        return Work(attention_flops(*shape, direction), attention_bytes(*shape, dtype.itemsize, direction))

    def small(self) -> Self:
        """See Case. The length stays: it decides which kernel runs."""
        return replace(self, batch_size=1, n_head=min(2, self.n_head), dropout=0.0)

    def operands(self, generator: torch.Generator) -> Operands:
        """See Case."""
        B, T, H, D = self.batch_size, self.seq_len, self.n_head, self.head_size
        return Operands((_normal(generator, B, T, 3, H, D),), upstream=(_normal(generator, B, T, H, D),))

    def systems(self, device: torch.device) -> Iterator[System]:
        """See Case. "-apart" is a system spared the packed projection and its packed gradient."""
        for name, operation in _distinct({name: ops.causal_attention for name, ops in BACKENDS.items()}):
            yield System(name, partial(_attend, operation, self.dropout))
        on_cpu = device.type == "cpu"
        for name in others.ON_CPU if on_cpu else others.SDPA_BACKENDS:
            backend = others.SDPA_BACKENDS[name]
            yield System(f"sdpa-{name}", partial(_attend, partial(others.forced, backend), self.dropout))
            yield System(f"sdpa-{name}-apart", partial(others.attend_apart, backend, self.dropout), others.apart)
        flex = partial(System, backward=not on_cpu, not_unless_named=others.COMPILING_ON_CPU if on_cpu else None)
        yield flex("flex", partial(_attend, others.flex, self.dropout))
        yield flex("flex-apart", partial(others.flex_apart, self.dropout), others.apart)


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm of (rows, width), or with `add` the residual addition and layer norm."""

    operation: ClassVar[str] = "layer_norm"
    bound: ClassVar[Bound] = "bytes"
    backward_alone: ClassVar[bool] = True
    rows: int
    width: int
    add: bool = False

    def work(self, direction: Direction, dtype: torch.dtype) -> Work:
        """See Case."""
        flops = layer_norm_flops(self.rows, self.width, direction, add=self.add)
        return Work(flops, layer_norm_bytes(self.rows, self.width, dtype.itemsize, direction, add=self.add))

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
        yield _compiled("torch-compiled", partial(_normalise, others.compiled(getattr(plain, name_of))), device)
        yield System("liger", partial(_normalise, getattr(others, f"liger_{name_of}")))


@dataclass(frozen=True)
class CrossEntropy:
    """The output head and its loss: x (rows, width), weight (vocabulary, width)."""

    operation: ClassVar[str] = "linear_cross_entropy"
    bound: ClassVar[Bound] = "flops"
    backward_alone: ClassVar[bool] = False
    rows: int
    vocab_size: int
    width: int

    def work(self, direction: Direction, dtype: torch.dtype) -> Work:
        """See Case."""
        shape = self.rows, self.width, self.vocab_size
        flops = linear_cross_entropy_flops(*shape, direction)
        return Work(flops, linear_cross_entropy_bytes(*shape, dtype.itemsize, direction))

    def small(self) -> Self:
        """See Case."""
        return replace(self, rows=min(65, self.rows))

    def operands(self, generator: torch.Generator) -> Operands:
        """See Case. Logits have a standard deviation of 1, as those of a model have after some training."""
        x, weight = _normal(generator, self.rows, self.width), _normal(generator, self.vocab_size, self.width)
        targets = torch.randint(self.vocab_size, (self.rows,), generator=generator, device=generator.device)
        targets[1 :: max(2, self.rows // 8)] = IGNORED  # never the only row
        return Operands((x, weight / self.width**0.5), (targets,))

    def systems(self, device: torch.device) -> Iterator[System]:
        """See Case."""
        for name, operation in _distinct({name: ops.linear_cross_entropy for name, ops in LOSS_BACKENDS.items()}):
            yield System(name, partial(_lose, operation))
        yield System("full-logits", partial(_lose, plain.linear_cross_entropy))
        yield _compiled("full-logits-compiled", partial(_lose, others.compiled(plain.linear_cross_entropy)), device)
        yield System("F.linear_cross_entropy", partial(others.librarys_loss, chunked=False))
        yield System("F.linear_cross_entropy-chunked", partial(others.librarys_loss, chunked=True))
        yield System("liger", partial(others.liger_loss, None))
        yield System("liger-fp32-sums", partial(others.liger_loss, torch.float32))


def why_not(system: System, device: torch.device) -> str | None:
    """The reason why a system is not timed on the device whatever its results, or None."""
    if system.name.startswith("liger"):
        return others.no_liger(device)
    if not system.name.startswith("triton") or device.type == "cuda":
        return None
    if not INSTALLED:
        return "Triton is not installed"
    if INTERPRETING:
        return "TRITON_INTERPRET=1 runs it in Triton's interpreter, whose times mean nothing; it needs a GPU"
    return "it needs a GPU"


def _compiled(name: str, call: Callable[..., Outputs], device: torch.device) -> System:
    return System(name, call, not_unless_named=others.COMPILING_ON_CPU if device.type == "cpu" else None)


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


def _normalise(operation: Operation, *operands: Tensor) -> Outputs:
    found = operation(*operands, EPS)
    return (found,) if isinstance(found, Tensor) else found


def _lose(operation: Operation, x: Tensor, weight: Tensor, targets: Tensor) -> Outputs:
    return (operation(x, weight, targets, 0.0, IGNORED),)
