"""What a step did, read from the device when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smallgpt.domain.gpt import GPT

LOSS, NORM, TOKENS, SCALE, FIRST_BAD = range(5)


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean nats per token of the global batch, as optimised (label smoothing included)."""
    grad_norm: float
    """Of the unscaled gradients, before clipping."""
    learning_rate: float
    tokens: int
    bad_tensor: str | None
    """The first tensor that was not finite: the update was skipped. None: all is well."""
    loss_scale: float
    """That fp16's gradients carried; 1 without a scaler."""


def numbers_of(loss: Tensor, norm: Tensor, tokens: Tensor, finite: Tensor, scale: Tensor) -> Tensor:
    """(5,) float64 on the device. finite (gradients + 2,) bool: of each gradient, of their norm, of the loss."""
    first_bad = torch.where(finite.all(), -1, finite.int().argmin())
    return torch.stack([x.double() for x in (loss, norm, tokens, scale, first_bad)])


class Running:
    """A step that the device has been given and may still be at."""

    def __init__(self, step: int, numbers: Tensor, learning_rate: float, model: GPT, graded: Sequence[str]) -> None:
        """`step` is counted from 0; numbers are those of numbers_of(); `graded` names the gradients that they are about."""
        self.step, self.learning_rate, self.model, self.graded = step, learning_rate, model, graded
        self.done: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":  # copied behind the step, so that the host can wait for this step alone
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.done.record(torch.cuda.current_stream(numbers.device))
        else:
            self.numbers = numbers

    @property
    def on_gpu(self) -> bool:
        """Whether the step may still be running."""
        return self.done is not None

    def result(self) -> StepResult:
        """Wait for the step, and say what it did."""
        if self.done is not None:
            self.done.synchronize()
        found = self.numbers.tolist()
        return StepResult(
            loss=found[LOSS],
            grad_norm=found[NORM],
            learning_rate=self.learning_rate,
            tokens=int(found[TOKENS]),
            bad_tensor=None if found[FIRST_BAD] < 0 else self._name(int(found[FIRST_BAD]), int(found[TOKENS])),
            loss_scale=found[SCALE],
        )

    def _name(self, first_bad: int, tokens: int) -> str:
        """A weight if one is broken, since then every gradient is; else the gradient, else the loss."""
        if tokens == 0:
            return "loss"
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                return name
        if first_bad < len(self.graded):
            return f"gradient of {self.graded[first_bad]}"
        return "norm of the gradients" if first_bad == len(self.graded) else "loss"
