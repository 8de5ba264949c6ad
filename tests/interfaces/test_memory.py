"""The memory plan against what torch's allocator hands out in real steps; the micro-batch that fits; running out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smallgpt.application.memory_plan import MemoryPlan
from smallgpt.application.step import Stepper
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.devices import Choice
from smallgpt.interfaces.machine import Machine
from smallgpt.interfaces.memory import USABLE, RunMemory, explaining_shortage, plan, settle
from smallgpt.kernels.attention.memory import kept_bytes as attention_kept
from smallgpt.kernels.layer_norm.memory import kept_bytes as layer_norm_kept
from smallgpt.kernels.select import BACKENDS, Selection
from tests.allocations import allocated
from tests.conftest import MadeBatches

CPU = torch.device("cpu")
SMALL = {"block_size": 64, "vocab_size": 512, "n_layer": 3, "n_head": 2, "n_embd": 64, "dropout": 0.1}


def machine(precision: str = "fp32", backend: str = "torch") -> Machine:
    chosen = dict.fromkeys(("attention", "layer_norm", "linear_cross_entropy"), backend)
    as_told = Choice("off", "test")
    selection = Selection(BACKENDS[backend], chosen, {})
    return Machine(CPU, Choice("1", "test"), Choice(precision, "test"), as_told, selection)


def settings(model: dict[str, Any], **training: Any) -> RunConfig:
    optimizer = {"name": training.pop("optimizer", "adamw")}
    training = {"batch_size": 8} | training
    return RunConfig.model_validate({"model": SMALL | model, "training": training, "optimizer": optimizer})


def measured_peak(config: RunConfig, machine: Machine) -> int:
    """Of two steps of a new model: the second one runs beside the optimizer's state."""

    def train() -> None:
        model = GPT(config.model, machine.kernels.ops)
        model.transformer.recomputes_blocks = config.training.activation_checkpointing
        stepper = Stepper(model, config, 10, machine.dtype)
        for step in range(2):
            stepper(step, MadeBatches(config.model))

    return allocated(train).peak


RUNS: dict[str, RunConfig] = {
    "as it is": settings({}),
    "no dropout": settings({"dropout": 0.0}),
    "micro-batches": settings({}, micro_batch=2),
    "uneven micro-batches": settings({}, micro_batch=3),
    "one layer, long, many heads": settings({"n_layer": 1, "n_head": 8, "block_size": 128}, batch_size=4),
    "beyond a block of queries": settings({"n_layer": 2, "block_size": 320}, batch_size=2),
    "many ids": settings({"vocab_size": 8192, "block_size": 32}, batch_size=4),
    "many ids, micro-batches": settings({"vocab_size": 8192, "block_size": 32}, batch_size=4, micro_batch=1),
    "wide, few tokens": settings({"n_embd": 256, "block_size": 8, "bias": False}, batch_size=1),
    "wide": settings({"n_embd": 256, "n_head": 4, "block_size": 32}, batch_size=4),
    "muon": settings({}, optimizer="muon"),
    "muon, wide, few tokens": settings({"n_embd": 256, "n_layer": 1, "block_size": 8}, batch_size=1, optimizer="muon"),
    "recomputed": settings({"n_layer": 6}, activation_checkpointing=True),
    "recomputed micro-batches": settings({"n_layer": 6}, activation_checkpointing=True, micro_batch=2),
    "recomputed, many heads": settings({"n_head": 8, "block_size": 128}, batch_size=4, activation_checkpointing=True),
    "recomputed, no dropout": settings({"n_layer": 6, "dropout": 0.0}, activation_checkpointing=True),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *[("torch", name) for name in RUNS],
        *[("reference", name) for name in ("as it is", "micro-batches", "many ids, micro-batches", "recomputed")],
    ],
)
def test_the_plan_is_within_a_tenth_of_what_the_allocator_handed_out(backend: str, name: str, precision: str) -> None:
    config, here = RUNS[name], machine(precision, backend)
    assert plan(config, here, evaluates=False).peak == pytest.approx(measured_peak(config, here), rel=0.1)


@pytest.mark.parametrize("tokens", [40, 150])
@pytest.mark.parametrize(
    ("backend", "dropout"), [("torch", 0.0), ("torch", 0.2), ("reference", 0.0), ("reference", 0.2), ("triton", 0.0)]
)
def test_what_attention_keeps_is_counted(backend: str, dropout: float, tokens: int) -> None:
    B, H, D = 2, 2, 32
    weight = torch.randn(3 * H * D, 8, requires_grad=True)
    x = torch.randn(B, tokens, 8)
    results = []

    def forward() -> None:
        qkv = torch.nn.functional.linear(x, weight).view(B, tokens, 3, H, D)
        results.append(BACKENDS[backend].causal_attention(qkv, dropout).reshape(B, tokens, H * D))

    forward()  # compiles what is compiled once
    results.clear()
    left = allocated(forward).left
    output = 4 * B * tokens * H * D
    expected = output + attention_kept(backend, CPU, torch.float32, B, tokens, H, D, dropout)
    assert left == pytest.approx(expected, abs=200)  # a seed, a scale


@pytest.mark.parametrize("backend", ["torch", "reference", "triton"])
def test_what_layer_norm_keeps_is_counted(backend: str) -> None:
    N, C = 50, 64
    residual, delta = (torch.randn(N, C, requires_grad=True) for _ in range(2))
    weight, bias = torch.ones(C, requires_grad=True), torch.zeros(C, requires_grad=True)
    results = []

    def forward() -> None:
        results.append(BACKENDS[backend].add_layer_norm(residual, delta, weight, bias, 1e-5))

    forward()
    results.clear()
    left = allocated(forward).left
    total_too = 4 * N * C if backend == "reference" else 0  # the next block reads it; the others keep it anyway
    assert left == pytest.approx(4 * N * C + total_too + layer_norm_kept(backend, N, C), abs=200)
