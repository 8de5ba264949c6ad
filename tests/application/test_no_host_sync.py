"""Nothing in a step reads a number on the host. On a GPU each such reading would stop the queue."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smallgpt.application.ports import Batches
from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.kernels.select import BACKENDS

aten = torch.ops.aten
READING = {aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal, aten.masked_select, aten.unique_dim}


class Readings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations whose result depends on numbers that the host would have to wait for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in READING:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Fixed:
    """One batch, as a device-resident store would hand it over."""

    def __init__(self, config: RunConfig) -> None:
        tokens = torch.randint(config.model.vocab_size, (8, config.model.block_size + 1))
        self.batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        return self.batch


def settings(tiny: GPTConfig, optimizer: str, micro_batch: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": tiny.model_copy(update={"dropout": 0.1}),
            "optimizer": {"name": optimizer},
            "training": {"batch_size": 8, "micro_batch": micro_batch, "max_steps": 10, "label_smoothing": 0.1},
        }
    )


def readings(stepper: Stepper, batches: Batches) -> list[str]:
    stepper.start(0, batches)  # the first step makes the optimizers' state
    readings = Readings()
    with readings:
        stepper.start(1, batches)
    return readings.seen


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("micro_batch", [8, 3])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_step_reads_nothing(
    tiny: GPTConfig, optimizer: str, precision: torch.dtype, micro_batch: int, backend: str
) -> None:
    config = settings(tiny, optimizer, micro_batch)
    stepper = Stepper(GPT(config.model, BACKENDS[backend]), config, 10, precision)
    found = readings(stepper, Fixed(config))
    assert found == []


def test_a_reading_would_be_seen(tiny: GPTConfig) -> None:
    config = settings(tiny, "adamw", 8)
    stepper = Stepper(GPT(config.model), config, 10)

    def look(*_: object) -> None:
        assert torch.ones(()) > 0

    stepper.optimizers[0].register_step_pre_hook(look)
    assert readings(stepper, Fixed(config)) == ["aten._local_scalar_dense.default"]
