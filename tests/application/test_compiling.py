"""Compiling block by block: the same losses, undone without a trace, and kept only when it is faster."""

import time
from functools import partial
from typing import Any

import pytest
import torch

from smallgpt.application.compiling import as_it_is, compile_blocks, keep_if_faster, uncompile_blocks
from smallgpt.application.step import Stepper
from smallgpt.application.training import Look
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score
from smallgpt.domain.sampling import Sampling


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


def test_a_compiler_that_fails_leaves_the_model_as_it_was(
    stepper: Stepper, tiny: GPTConfig, make_batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: GPT) -> None:
        monkeypatch.setattr(model.transformer.h[0], "_compiled_call_impl", fail)

    def fail(*_: object) -> None:
        raise OSError("no C++ compiler found\nand a trace")

    monkeypatch.setattr("smallgpt.application.compiling.compile_blocks", broken)
    kept, words = keep_if_faster(stepper, make_batches(tiny))
    assert not kept
    assert words == "compiling failed: OSError: no C++ compiler found"
    assert stepper(0, make_batches(tiny)).bad_tensor is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of Dynamo itself
def test_evaluations_and_samples_leave_the_compiled_forms_to_training(
    tiny: GPTConfig, make_loop: Any, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo keeps eight forms of a function; a cache that grows token by token would use them up before the first step."""
    calls: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    config = RunConfig.model_validate(
        {
            "model": tiny,
            "training": {"batch_size": 8, "max_steps": 4},
            "evaluation": {"every": 1, "sample_every": 1, "sample_tokens": 8},
        }
    )
    model = GPT(tiny)
    compile_blocks(model)
    sampled = as_it_is(
        lambda model, step: {"ids": list(model.stream(torch.zeros(1, 1, dtype=torch.long), 8, Sampling()))}
    )
    evaluated = as_it_is(
        lambda model, *_: Score(float(model(torch.zeros(1, 5, dtype=torch.long)).detach().sum()), 1, 1)
    )
    make_loop(config, record, model=model, look=Look(evaluated, sampled)).run()
    assert len(calls) == 2, "the first block, which has no delta yet, and the others"
