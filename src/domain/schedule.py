"""Learning rates on torch's schedulers, counted in optimizer steps."""

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from smallgpt.domain.config import ScheduleConfig, steps_of


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LRScheduler:
    """The schedule of a run of total_steps; call step() once after each optimizer step."""
    peak = optimizer.param_groups[0]["lr"]
    warmup = steps_of(config.warmup, total_steps)
    steps = max(1, total_steps - warmup)
    phases: list[LRScheduler] = []
    milestones: list[int] = []
    if warmup:
        # the first step must not be lost to a rate of zero
        phases.append(LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup))
        milestones.append(warmup)
    match config.name:
        case "cosine":
            phases.append(CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.floor * peak))
        case "warm-restarts":
            first = steps_of(config.restart, steps)
            floor = config.floor * peak
            phases.append(
                CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=config.restart_factor, eta_min=floor)
            )
        case "linear":
            phases.append(LinearLR(optimizer, start_factor=1.0, end_factor=config.floor, total_iters=steps))
        case "wsd":
            decay = min(steps_of(config.decay, steps), steps)
            phases.append(ConstantLR(optimizer, factor=1.0))
            phases.append(LinearLR(optimizer, start_factor=1.0, end_factor=config.floor, total_iters=decay))
            milestones.append(total_steps - decay)
        case "constant":
            phases.append(ConstantLR(optimizer, factor=1.0))
    return SequentialLR(optimizer, phases, milestones)


class Rates:
    """The learning rate of every step of a run, a function of the step's number alone."""

    def __init__(self, config: ScheduleConfig, peak: float, total_steps: int) -> None:
        self.config, self.peak, self.total_steps = config, peak, total_steps
        self._restart()

    def at(self, step: int) -> float:
        """The rate of optimizer step number `step`, counted from 0. Fast for the steps in their order."""
        if step < self.step:
            self._restart()
        while self.step < step:
            self.optimizer.step()
            self.scheduler.step()
            self.step += 1
        return float(self.optimizer.param_groups[0]["lr"])

    def _restart(self) -> None:
        """torch's schedulers move an optimizer's rate: this one has nothing else to do."""
        self.optimizer = SGD([nn.Parameter()], lr=self.peak)
        self.scheduler = build_scheduler(self.optimizer, self.config, self.total_steps)
        self.step = 0


def learning_rates(config: ScheduleConfig, peak: float, total_steps: int) -> list[float]:
    """The rate of every step of a run, for plots, the doctor and tests."""
    rates = Rates(config, peak, total_steps)
    return [rates.at(step) for step in range(total_steps)]
