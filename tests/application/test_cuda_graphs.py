"""When steps are captured and replayed. Where there is no GPU, a stand-in for the graph records and repeats the call."""

from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.application import cuda_graphs
from smallgpt.application.cuda_graphs import WARM_UP, Graphs
from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import HardwareError
from smallgpt.domain.gpt import GPT

CPU = torch.device("cpu")


class Recorded:
    """As a CUDA graph behaves: capturing computes nothing, a replay reads and writes the memory of the capture."""

    captures = 0

    def __init__(self, compute: Any, inputs: tuple[Tensor, ...], stream: object, pool: object) -> None:
        Recorded.captures += 1
        self.compute, self.inputs = compute, tuple(x.clone() for x in inputs)
        self.output: Tensor | None = None
        self.graph = self

    def pool(self) -> int:
        return 1

    def __call__(self, *inputs: Tensor) -> Tensor:
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new)
        found: Tensor = self.compute(*self.inputs)
        self.output = found if self.output is None else self.output.copy_(found)
        return self.output


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(Recorded, "captures", 0)
    monkeypatch.setattr(cuda_graphs, "Captured", Recorded)
    monkeypatch.setattr(Graphs, "_beside", lambda self, compute, inputs: compute(*inputs))
    monkeypatch.setattr(Graphs, "stream", None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return Recorded


def settings(tiny: GPTConfig, **training: Any) -> RunConfig:
    values = {"batch_size": 8, "max_steps": 12, **training}
    return RunConfig.model_validate({"model": tiny, "training": values})


def test_each_shape_is_captured_once_after_its_warm_up(recorded: type[Recorded]) -> None:
    graphs = Graphs(CPU)
    for shape in ((4, 6), (2, 12)):
        before = recorded.captures
        for call in range(WARM_UP + 3):
            x = torch.full(shape, float(call))
            assert graphs(lambda x: 2 * x, x).equal(2 * x)
            assert recorded.captures == before + (call >= WARM_UP)


def test_a_captured_run_is_an_eager_run(tiny: GPTConfig, make_batches: Any, recorded: type[Recorded]) -> None:
    losses = []
    for graphs in (None, Graphs(CPU)):
        torch.manual_seed(0)
        config = settings(tiny.model_copy(update={"dropout": 0.2}), micro_batch=3)
        stepper = Stepper(GPT(config.model), config, 12, graphs=graphs)
        losses.append([stepper(step, make_batches(config.model)).loss for step in range(12)])
    assert recorded.captures == 1
    assert losses[0] == losses[1]


def test_a_failed_capture_names_the_flag_that_avoids_it(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Recorded:
        raise RuntimeError("operation not permitted when stream is capturing\nand a trace")

    monkeypatch.setattr(cuda_graphs, "Captured", fail)
    graphs = Graphs(CPU)
    for _ in range(WARM_UP):
        graphs(lambda x: x + 1, torch.ones(1))
    with pytest.raises(
        HardwareError, match=r"not permitted when stream is capturing\nTrain with --training.cuda-graphs off"
    ):
        graphs(lambda x: x + 1, torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a real capture needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_on_a_gpu_replays_train_like_eager_steps_and_never_wait(
    tiny: GPTConfig, make_batches: Any, optimizer: str, precision: torch.dtype
) -> None:
    device, losses = torch.device("cuda"), []
    config = settings(tiny.model_copy(update={"dropout": 0.1})).model_copy(
        update={"optimizer": RunConfig().optimizer.model_copy(update={"name": optimizer})}
    )
    for graphs in (None, Graphs(device)):
        torch.manual_seed(0)
        stepper = Stepper(GPT(config.model).to(device), config, 12, precision, graphs=graphs)
        batches = make_batches(config.model)

        class OnDevice:
            def __init__(self, source: Any = batches) -> None:
                self.ready = [tuple(x.to(device) for x in source.rows(step, range(8))) for step in range(12)]

            def rows(self, step: int, rows: range) -> Any:
                return self.ready[step]

        ready = OnDevice()
        results = [stepper(step, ready).loss for step in range(8)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            running = [stepper.start(step, ready) for step in range(8, 12)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        losses.append(results + [each.result().loss for each in running])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
