"""What this machine computes a run with, each choice with the reason that is shown."""

from dataclasses import dataclass

import torch

from smallgpt.domain.config import RunConfig
from smallgpt.infrastructure import devices
from smallgpt.kernels.expectations import Shape
from smallgpt.kernels.select import Selection, select


@dataclass(frozen=True)
class Machine:
    """What this machine computes a run with, each choice with its reason."""

    device: torch.device
    threads: devices.Choice
    precision: devices.Choice
    compiling: devices.Choice
    kernels: Selection

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return devices.DTYPES[self.precision.value]

    def reasons(self) -> dict[str, str]:
        """Per choice, what was chosen and why, in words."""
        choices = {"threads": self.threads, "precision": self.precision, "compile": self.compiling}
        words = {name: f"{choice.value}: {choice.reason}" for name, choice in choices.items()}
        return words | {name: f"{self.kernels.chosen[name]}: {why}" for name, why in self.kernels.reasons.items()}


def choose_machine(config: RunConfig) -> Machine:
    """Decide device, threads, precision, compilation and kernels for a run. Raises HardwareError for a wish that cannot be."""
    settings, kernels = config.training, config.kernels
    device = devices.choose_device(settings.device)
    precision = devices.choose_precision(device, settings.precision)
    selection = select(
        kernels.backend,
        device,
        devices.DTYPES[precision.value],
        attention=kernels.attention,
        layer_norm=kernels.layer_norm,
        linear_cross_entropy=kernels.linear_cross_entropy,
        shape=Shape(config.model.n_embd // config.model.n_head, config.model.block_size, config.model.n_embd),
    )
    compiling = devices.choose_compile(device, settings.compile)
    return Machine(device, devices.choose_threads(settings.threads), precision, compiling, selection)
