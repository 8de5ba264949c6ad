"""What this machine computes a run with, each choice with the reason that is shown."""

from dataclasses import dataclass

import torch

from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError, KernelError
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.allocator import freed_memory_kept
from smallgpt.infrastructure.launches import launched, local_device
from smallgpt.kernels.expectations import Shape
from smallgpt.kernels.select import Selection, select


@dataclass(frozen=True)
class Machine:
    """What this machine computes a run with, each choice with its reason."""

    device: torch.device
    threads: devices.Choice
    precision: devices.Choice
    allocator: devices.Choice | None
    """Of the CPU's memory; None on a GPU."""
    compiling: devices.Choice
    graphs: devices.Choice
    kernels: Selection

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return devices.DTYPES[self.precision.value]

    def reasons(self) -> dict[str, str]:
        """Per choice, what was chosen and why, in words."""
        choices = {
            "threads": self.threads,
            "memory": self.allocator,
            "precision": self.precision,
            "compile": self.compiling,
            "cuda-graphs": self.graphs,
        }
        words = {name: f"{choice.value}: {choice.reason}" for name, choice in choices.items() if choice is not None}
        return words | {name: f"{self.kernels.chosen[name]}: {why}" for name, why in self.kernels.reasons.items()}


def choose_machine(config: RunConfig) -> Machine:
    """Decide device, threads, memory, precision, compilation and kernels for a run; the first three are set at once.

    Raises HardwareError for a wish that cannot be.
    """
    settings = config.training
    device = local_device(devices.choose_device(settings.device))
    if device.index is not None:  # "cuda" alone is the current one; streams and events that name none belong to that
        torch.cuda.set_device(device)
    threads = devices.choose_threads(settings.threads)
    torch.set_num_threads(int(threads.value))
    allocator = freed_memory_kept() if device.type == "cpu" else None
    precision = devices.choose_precision(device, settings.precision)
    selection = _kernels(config, device, precision.value)
    compiling = devices.choose_compile(device, settings.compile, settings.max_minutes)
    among_others = (launched() or (0, 1))[1] > 1
    redrawn = settings.activation_checkpointing and config.model.dropout > 0
    obstacles = {
        "several processes exchange gradients within a step": among_others,
        "dropout that is computed again reads its generator on the host": redrawn,
    }
    obstacle = next((words for words, holds in obstacles.items() if holds), None)
    graphs = devices.choose_graphs(device, settings.cuda_graphs, obstacle)
    return Machine(device, threads, precision, allocator, compiling, graphs, selection)


def _kernels(config: RunConfig, device: torch.device, precision: str) -> Selection:
    wished = config.kernels
    try:
        return select(
            wished.backend,
            device,
            devices.DTYPES[precision],
            attention=wished.attention,
            layer_norm=wished.layer_norm,
            linear_cross_entropy=wished.linear_cross_entropy,
            shape=Shape(config.model.n_embd // config.model.n_head, config.model.block_size, config.model.n_embd),
        )
    except KernelError as error:
        flag = f"--kernels.{error.operation.replace('_', '-')}"
        others = "--training.device" if precision == "fp32" else "--training.device or --training.precision"
        raise HardwareError(f"{error}.\nUse {flag} auto, or another {others}.") from None
