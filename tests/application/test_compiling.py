"""Compiling block by block: the same losses, undone without a trace, and kept only when it is faster."""

import time
from typing import Any

import pytest
import torch

from smallgpt.application.compiling import compile_blocks, keep_if_faster, uncompile_blocks
from smallgpt.application.step import Stepper
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT


@pytest.fixture
def stepper(tiny: GPTConfig) -> Stepper:
    torch.manual_seed(0)
    config = RunConfig.model_validate({"model": tiny, "training": {"batch_size": 8, "max_steps": 10}})
    return Stepper(GPT(config.model), config, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of Inductor itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of Dynamo itself
def test_compiled_blocks_give_the_same_losses_and_can_be_undone(
    stepper: Stepper, tiny: GPTConfig, make_batches: Any
) -> None:
    weights = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    eager = [stepper(step, make_batches(tiny)).loss for step in range(3)]
    stepper.model.load_state_dict(weights)
    again = Stepper(stepper.model, stepper.config, 10)
    compile_blocks(stepper.model)
    compiled = [again(step, make_batches(tiny)).loss for step in range(3)]
    assert compiled == pytest.approx(eager, rel=1e-5)
    uncompile_blocks(stepper.model)
    stepper.model.load_state_dict(weights)
    third = Stepper(stepper.model, stepper.config, 10)
    assert [third(step, make_batches(tiny)).loss for step in range(3)] == eager


@pytest.mark.parametrize("wins", [True, False])
def test_what_the_clock_says_is_kept_and_the_weights_are_put_back(
    stepper: Stepper, tiny: GPTConfig, make_batches: Any, monkeypatch: pytest.MonkeyPatch, wins: bool
) -> None:
    compiled: list[bool] = []
    monkeypatch.setattr("smallgpt.application.compiling.compile_blocks", lambda model: compiled.append(True))
    monkeypatch.setattr("smallgpt.application.compiling.uncompile_blocks", lambda model: compiled.append(False))
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0 if bool(compiled) is wins else 2.0
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)
    weights = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    kept, words = keep_if_faster(stepper, make_batches(tiny))
    assert kept is wins
    assert compiled == ([True] if wins else [True, False])
    assert "compiled and" in words
    assert not {n for n, t in stepper.model.state_dict().items() if not torch.equal(t, weights[n])}
