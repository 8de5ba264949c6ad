"""One optimizer step: micro-batches, one backward each, then unscale, check, clip, update. In that order.

Clipping gradients that still carry fp16's loss scale shrinks them to nothing (the seed's fault: loss stuck at 4.85).
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from smallgpt.application.ports import Batches, Processes
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.optimizers import build_optimizers, load_state_tensors, state_tensors
from smallgpt.domain.schedule import build_scheduler


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


@dataclass
class Stepper:
    """Model, optimizers, schedulers and loss scaler of a run of total_steps."""

    model: GPT
    config: RunConfig
    total_steps: int
    precision: torch.dtype = torch.float32
    processes: Processes = field(default_factory=Processes)
    forward: Callable[..., Tensor] | None = None
    """The compiled model, where there is one."""

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.optimizers = build_optimizers(self.model, self.config.optimizer)
        self.schedulers = [build_scheduler(o, self.config.schedule, self.total_steps) for o in self.optimizers]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which products run in the run's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def __call__(self, step: int, batches: Batches) -> StepResult:
        """Do optimizer step number `step`, counted from 0."""
        settings = self.config.training
        torch.manual_seed(_mix(settings.seed, step, self.processes.rank))
        rows = range(settings.batch_size)[self.processes.rank :: self.processes.count]
        inputs, targets = batches.rows(step, rows)
        learning_rate = float(self.optimizers[0].param_groups[0]["lr"])
        loss, tokens = self._accumulate(inputs, targets)
        if tokens == 0:  # the mean over no target is 0/0
            return StepResult(nan, nan, learning_rate, 0, "loss")
        bad = self._first_bad(loss, norm := self._unscaled_norm())
        if bad is None:
            self._update(norm)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return StepResult(loss.item(), norm.item(), learning_rate, tokens, bad)

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Backward through every micro-batch, each weighted by its share of the global batch's valid tokens."""
        settings = self.config.training
        micro = settings.micro_batch if isinstance(settings.micro_batch, int) else len(inputs)
        total = self.processes.sum((targets != -100).sum()).item()
        loss = torch.zeros((), device=self.device)
        forward = self.model if self.forward is None else self.forward
        for x, y in zip(torch.split(inputs, micro), torch.split(targets, micro), strict=True):
            valid = int((y != -100).sum())
            if valid == 0:
                continue
            with self.autocast():
                mean = forward(
                    x.to(self.device),
                    y.to(self.device),
                    label_smoothing=settings.label_smoothing,
                    z_loss=settings.z_loss,
                )
            share = mean * (valid / total)
            self.scaler.scale(share * self.processes.count).backward()
            loss += share.detach()
        return self.processes.sum(loss), int(total)

    def _unscaled_norm(self) -> Tensor:
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        return get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _first_bad(self, loss: Tensor, norm: Tensor) -> str | None:
        """The name of the first tensor that is not finite, looked for only when the sums say that there is one."""
        if torch.isfinite(loss) and torch.isfinite(norm):
            return None
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                return name
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"gradient of {name}"
        return "loss"

    def _update(self, norm: Tensor) -> None:
        clip_norm = self.config.training.clip_norm
        if clip_norm > 0:
            clip_grads_with_norm_(self.model.parameters(), clip_norm, norm)
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            self.scaler.step(optimizer)
            scheduler.step()

    def tensors(self) -> dict[str, Tensor]:
        """Optimizer state by name."""
        return state_tensors(self.model, self.optimizers)

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, Any], updates: int) -> None:
        """Take up optimizer and scaler state after `updates` steps that were not skipped.

        The schedule needs no state: it is walked through again, to the same numbers, or to others when the run is now
        to be longer.
        """
        load_state_tensors(self.model, self.optimizers, tensors)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before")
            for scheduler in self.schedulers:
                for _ in range(updates):
                    scheduler.step()


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every (seed, step, rank). Hashed, because torch's CPU generator reads 32 of its bits only."""
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest())
