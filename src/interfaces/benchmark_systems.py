"""The systems that `smallgpt bench train` puts side by side, each run in a fresh process."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from smallgpt.application.benchmarking import Sitting, time_steps
from smallgpt.application.step import Stepper
from smallgpt.domain.config import RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.competitors import transformers_step
from smallgpt.interfaces.machine import choose_machine

SYSTEMS = ("transformers", "smallgpt-fp32", "smallgpt")


class RandomBatches:
    """Tokens drawn anew every step: speed does not depend on what they say."""

    def __init__(self, config: RunConfig) -> None:
        self.block_size, self.vocab_size = config.model.block_size, config.model.vocab_size

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches."""
        tokens = torch.randint(self.vocab_size, (len(rows), self.block_size + 1))
        return tokens[:, :-1], tokens[:, 1:]


def sit(system: str, config: RunConfig, *, warmup: int, steps: int) -> Sitting:
    """Train `system` for some steps in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_sit, system, config, warmup, steps).result()


def _sit(system: str, config: RunConfig, warmup: int, steps: int) -> Sitting:
    torch.set_num_threads(int(devices.choose_threads(config.training.threads).value))
    device = devices.choose_device(config.training.device)
    seconds = time_steps(_step_of(system, config, device), warmup=warmup, steps=steps)
    tokens = config.training.batch_size * config.model.block_size
    return Sitting(system, seconds, tokens, devices.memory_in_use(device))


def _step_of(system: str, config: RunConfig, device: torch.device) -> Callable[[int], object]:
    if system == "transformers":
        return transformers_step(config.model, config.training.batch_size, device)
    if system == "smallgpt-fp32":
        training = config.training.model_copy(update={"precision": "fp32"})
        config = config.model_copy(update={"training": training})
    machine = choose_machine(config)
    model = GPT(config.model, machine.kernels.ops).to(device)
    stepper = Stepper(model, config, total_steps=1000, precision=machine.dtype)
    batches = RandomBatches(config)
    return lambda i: stepper(i, batches)
