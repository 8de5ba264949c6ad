"""One optimizer step: micro-batches, one backward each, then unscale, check, clip, update. In that order.

Clipping gradients that still carry fp16's loss scale shrinks them to nothing (the seed's fault: loss stuck at 4.85).
The host never waits inside a step: a step that is not finite is skipped by the optimizers on the device, and what happened
is read from five numbers afterwards. So a GPU always has the next step queued, and a whole step can be one CUDA graph.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from smallgpt.application.cuda_graphs import WARM_UP, Graphs
from smallgpt.application.ports import Batches
from smallgpt.application.step_result import Running, StepResult, numbers_of
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.optimizers import build_optimizers
from smallgpt.domain.processes import Alone, Processes
from smallgpt.domain.schedule import Rates
from smallgpt.domain.state import Held, held, take


@dataclass
class Stepper:
    """Model, optimizers, learning rates and loss scaler of a run of total_steps."""

    model: GPT
    config: RunConfig
    total_steps: int
    precision: torch.dtype = torch.float32
    processes: Processes = field(default_factory=Alone)
    joined: nn.Module | None = None
    """What `processes.joined` made of the model; the model itself when not given."""
    graphs: Graphs | None = None
    """Where a step is to be captured as a CUDA graph."""

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.optimizers = build_optimizers(self.model, self.config.optimizer, self.precision)
        peaks = [float(optimizer.param_groups[0]["lr"]) for optimizer in self.optimizers]
        self.rates = [Rates(self.config.schedule, peak, self.total_steps) for peak in peaks]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.graded: list[str] = []  # the parameters that got a gradient
        self.called = self.joined or self.model

    @property
    def warm_up(self) -> int:
        """Steps that allocate, compile or are captured, and take longer than those after them."""
        return 1 if self.graphs is None else WARM_UP + 2

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which products run in the run's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def __call__(self, step: int, batches: Batches) -> StepResult:
        """Do optimizer step number `step`, counted from 0, and wait for it."""
        return self.start(step, batches).result()

    def start(self, step: int, batches: Batches) -> Running:
        """Give the device optimizer step number `step` to do, without waiting for it."""
        settings = self.config.training
        torch.manual_seed(_mix(settings.seed, step, self.processes.rank))
        rates = self._set_rates(step)
        rows = range(settings.batch_size)[self.processes.rank :: self.processes.count]
        batch = batches.rows(step, rows)
        numbers = self._compute(*batch) if self.graphs is None else self.graphs(self._compute, *batch)
        return Running(step, numbers, rates[0], self.model, self.graded)

    def _set_rates(self, step: int) -> list[float]:
        rates = [rate.at(step) for rate in self.rates]
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)  # a captured step reads it where it lies
                else:
                    group["lr"] = rate
        return rates

    def _compute(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The whole step on the device -> numbers_of(...). No number is read here."""
        loss, tokens = self._accumulate(inputs, targets)
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        named = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.graded, gradients = list(named), list(named.values())
        norms = self.processes.whole(torch.stack(torch._foreach_norm(gradients)))
        norm = torch.linalg.vector_norm(norms)
        finite = torch.isfinite(torch.cat([norms, torch.stack([norm, loss])]))
        self._update(norm, ~finite.all())
        scale = self.scaler.scale(torch.ones((), device=self.device))
        if self.scaler.is_enabled():
            self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return numbers_of(loss, norm, tokens, finite, scale)

    def _accumulate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Backward through every micro-batch, each row weighted alike -> the mean over the global batch, and its tokens."""
        settings = self.config.training
        total = self.processes.sum((targets != -100).sum()).to(self.device, non_blocking=True)
        loss = torch.zeros((), device=self.device)
        parts = self._parts(inputs, targets)
        for number, (x, y) in enumerate(parts, 1):
            # gradients of all but the last stay here: they are exchanged once a step
            with nullcontext() if number == len(parts) else self.processes.apart(self.called):
                with self.autocast():
                    summed = self.called(
                        x.to(self.device, non_blocking=True),
                        y.to(self.device, non_blocking=True),
                        label_smoothing=settings.label_smoothing,
                        z_loss=settings.z_loss,
                        reduction="sum",
                    )
                share = summed / total  # of no target at all: 0/0, and the step is skipped
                self.scaler.scale(share * self.processes.count).backward()
            loss += share.detach()
        return self.processes.sum(loss), total

    def _parts(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches. Where processes hold shards, all have as many: a row without targets stands for a missing one."""
        micro, processes = self.config.training.micro_batch, self.processes
        if not isinstance(micro, int):
            return [(inputs, targets)]
        parts = list(zip(torch.split(inputs, micro), torch.split(targets, micro), strict=True))
        if processes.shards:
            batch_size = self.config.training.batch_size
            most, own = (len(range(rank, batch_size, processes.count)) for rank in (0, processes.rank))
            rows = len(inputs) // own * most  # of the first process: a row may be two short ones
            parts += [(inputs[:1], torch.full_like(targets[:1], -100))] * (-(-rows // micro) - len(parts))
        return parts

    def _update(self, norm: Tensor, bad: Tensor) -> None:
        """Clip and update; where `bad` () is set, the optimizers leave everything as it is."""
        if self.config.training.clip_norm > 0:
            clip_grads_with_norm_(list(self.model.parameters()), self.config.training.clip_norm, norm)
        for optimizer in self.optimizers:
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as GradScaler tells fused optimizers
            optimizer.step()

    def state(self, *, shares: bool = False) -> Held:
        """Weights and optimizer state: all of them in the first process and none in others, or each process's share."""
        if shares:
            return held(self.model, self.optimizers)
        return self.processes.gathered(self.model, self.optimizers)

    def restore(self, state: Held, scaler: dict[str, Any], *, shares: bool = False) -> None:
        """Take up what `state` gave, and the scaler's. Learning rates follow from the number of the step."""
        if shares:
            take(self.model, self.optimizers, state)
        else:
            self.processes.spread(self.model, self.optimizers, state)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every (seed, step, rank). Hashed, because torch's CPU generator reads 32 of its bits only."""
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest())
