"""The systems that `smallgpt bench train` puts side by side, each run in a fresh process on the same random tokens."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smallgpt.application import cuda_graphs
from smallgpt.application.comparing_training import Sitting, time_steps
from smallgpt.application.compiling import compile_blocks
from smallgpt.application.step import Stepper
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure import competitors, devices
from smallgpt.interfaces.fresh_process import in_fresh_process
from smallgpt.interfaces.machine import choose_machine

SYSTEMS = (*competitors.TRAINERS, "smallgpt-fp32", "smallgpt")
DEFAULT_SYSTEMS = ("transformers", "transformers-compiled", "plain-compiled", "smallgpt-fp32", "smallgpt")
IN_FP32 = ("transformers", "smallgpt-fp32")
"""As one gets without asking, or for comparison; the others compute products as `--training.precision auto` decides."""

Pairs = Sequence[tuple[Tensor, Tensor]]


class DrawnBatches:
    """Inputs and targets, (B, T) int64 each, one pair a step."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches."""
        inputs, targets = self.pairs[step]
        return inputs[rows.start : rows.stop : rows.step], targets[rows.start : rows.stop : rows.step]


def sit(system: str, config: RunConfig, *, warmup: int, steps: int) -> Sitting:
    """Train `system` for some steps in a process of its own. Raises ConfigError or HardwareError where it cannot run."""
    return in_fresh_process(sit_here, system, config, warmup=warmup, steps=steps)


def sit_here(system: str, config: RunConfig, *, warmup: int, steps: int) -> Sitting:
    """`sit` in this process."""
    torch.set_num_threads(int(devices.choose_threads(config.training.threads).value))
    device = devices.choose_device(config.training.device)
    if device.type == "cuda":
        warmup = max(warmup, cuda_graphs.WARM_UP + 2)  # the capture is no step to time
    precision = devices.choose_precision(device, "fp32" if system in IN_FP32 else config.training.precision).value
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    run = step_of(system, config, precision, device, draw(config, warmup + steps))

    def step(i: int) -> None:
        run(i)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    first, seconds = time_steps(step, warmup=warmup, steps=steps)
    return Sitting(
        system=system,
        first_step_seconds=first,
        seconds=seconds,
        tokens_per_step=config.training.batch_size * config.model.block_size,
        peak_memory_bytes=devices.memory_in_use(device),
        precision=precision,
        # last, because its operands are not the step's memory; long, because a busy machine gives its best now and then
        peak_flops=devices.matmul_peak(device, devices.DTYPES[precision], seconds=1.0),
    )


def draw(config: RunConfig, steps: int) -> Pairs:
    """The same tokens for every system."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.training.batch_size, config.model.block_size + 1)
    tokens = (torch.randint(config.model.vocab_size, shape, generator=generator) for _ in range(steps))
    return [(x[:, :-1].contiguous(), x[:, 1:].contiguous()) for x in tokens]


def step_of(
    system: str, config: RunConfig, precision: str, device: torch.device, pairs: Pairs
) -> Callable[[int], object]:
    """What does optimizer step i of `system` on pairs[i], from random weights."""
    if system in competitors.TRAINERS:
        step = competitors.train_step(system, config, device, devices.DTYPES[precision])
        return lambda i: step(*pairs[i])
    training = config.training.model_copy(update={"precision": precision})
    stepper = _stepper(config.model_copy(update={"training": training}))
    batches = DrawnBatches(pairs)
    return lambda i: stepper(i, batches)


def _stepper(config: RunConfig) -> Stepper:
    """The step as `smallgpt train` runs it on this machine."""
    machine = choose_machine(config)
    model = GPT(config.model, machine.kernels.ops).to(machine.device)
    if machine.compiling.value == "on":
        compile_blocks(model)
    graphs = cuda_graphs.Graphs(machine.device) if machine.graphs.value == "on" else None
    return Stepper(model, config, total_steps=1000, precision=machine.dtype, graphs=graphs)
