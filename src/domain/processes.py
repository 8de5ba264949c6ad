"""Processes that train together. Only what they must agree on is here; how they talk is infrastructure/distributed.py's."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from smallgpt.domain.gpt import GPT
from smallgpt.domain.state import Held, held, take

Value = TypeVar("Value")


class Processes(Protocol):
    """This process and the others of its training. What has a result must be called by all of them, in the same order."""

    @property
    def rank(self) -> int:
        """Which of them this is; 0 alone prints, and writes to the disk."""

    @property
    def count(self) -> int:
        """How many there are."""

    def sum(self, x: Tensor) -> Tensor:
        """x summed over all of them."""

    def any(self, flag: bool) -> bool:
        """Is it so in any of them?"""

    def of_all(self, value: Value) -> list[Value]:
        """Everybody's value, in the order of ranks."""

    def of_first(self, value: Value) -> Value:
        """The value of the first of them."""

    def wait_for_first(self, seconds: float | None = None) -> None:
        """Until the first of them is here too: for so long, or as long as it takes to prepare data. The first waits for all."""

    @property
    def shards(self) -> bool:
        """Does each hold but a share of weights, gradients and optimizer state, so that all must call the model together?"""

    def sharded(self) -> "Processes":
        """The same processes, each holding but a share of weights, gradients and optimizer state."""

    def joined(self, model: GPT) -> nn.Module:
        """The module to call in training, whose backward pass gives the mean of everybody's gradients to the model.

        A model is joined once, before its optimizers are made.
        """

    def apart(self, joined: nn.Module) -> AbstractContextManager[object]:
        """Within, gradients of the joined module stay in this process and add up."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A weight, gradient, norm or state of which this process may hold a share, all of it."""

    def gathered(self, model: GPT, optimizers: list[Optimizer]) -> Held:
        """Everything that all of them hold, for the first one; nothing for the others."""

    def spread(self, model: GPT, optimizers: list[Optimizer], state: Held) -> None:
        """The opposite: give all of them what the first one has; it may keep those very tensors. Others' are not read."""


@dataclass(frozen=True)
class Alone:
    """A training of one process."""

    rank: int = 0
    count: int = 1
    shards: bool = False

    def sum(self, x: Tensor) -> Tensor:
        """See Processes."""
        return x

    def any(self, flag: bool) -> bool:
        """See Processes."""
        return flag

    def of_all(self, value: Value) -> list[Value]:
        """See Processes."""
        return [value]

    def of_first(self, value: Value) -> Value:
        """See Processes."""
        return value

    def wait_for_first(self, seconds: float | None = None) -> None:
        """See Processes."""

    def sharded(self) -> Self:
        """See Processes. Its share is everything."""
        return self

    def joined(self, model: GPT) -> nn.Module:
        """See Processes."""
        return model

    def apart(self, joined: nn.Module) -> AbstractContextManager[object]:
        """See Processes."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """See Processes."""
        return tensor

    def gathered(self, model: GPT, optimizers: list[Optimizer]) -> Held:
        """See Processes."""
        return held(model, optimizers)

    def spread(self, model: GPT, optimizers: list[Optimizer], state: Held) -> None:
        """See Processes."""
        take(model, optimizers, state)


ALONE = Alone()
