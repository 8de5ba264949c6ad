"""The memory plan against what torch's allocator hands out in real steps; the micro-batch that fits; running out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from smallgpt.application.step import Stepper
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.allocations import allocated_on_cpu
from smallgpt.infrastructure.devices import Choice
from smallgpt.interfaces.machine import Machine
from smallgpt.interfaces.memory import USABLE, RunMemory, explaining_shortage, plan, settle
from smallgpt.kernels.attention.memory import kept_bytes as attention_kept
from smallgpt.kernels.layer_norm.memory import kept_bytes as layer_norm_kept
from smallgpt.kernels.select import BACKENDS, Selection
from tests.conftest import MadeBatches

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SMALL = {"block_size": 64, "vocab_size": 512, "n_layer": 3, "n_head": 2, "n_embd": 64, "dropout": 0.1}


def machine(precision: str = "fp32", backend: str = "torch") -> Machine:
    chosen = dict.fromkeys(("attention", "layer_norm", "linear_cross_entropy"), backend)
    as_told = Choice("off", "test")
    selection = Selection(BACKENDS[backend], chosen, {})
    return Machine(CPU, Choice("1", "test"), Choice(precision, "test"), None, as_told, as_told, selection)


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

    return allocated_on_cpu(train).peak


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
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("backend", ["torch", "reference"])
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
    left = allocated_on_cpu(forward).left
    output = 4 * B * tokens * H * D
    expected = output + attention_kept(backend, CPU, torch.float32, B, tokens, H, D, dropout)
    assert left == pytest.approx(expected, abs=200)  # a seed, a scale


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_what_layer_norm_keeps_is_counted(backend: str) -> None:
    N, C = 50, 64
    residual, delta = (torch.randn(N, C, requires_grad=True) for _ in range(2))
    weight, bias = torch.ones(C, requires_grad=True), torch.zeros(C, requires_grad=True)
    results = []

    def forward() -> None:
        results.append(BACKENDS[backend].add_layer_norm(residual, delta, weight, bias, 1e-5))

    forward()
    results.clear()
    left = allocated_on_cpu(forward).left
    total_too = 4 * N * C if backend == "reference" else 0  # the next block reads it; the others keep it anyway
    assert left == pytest.approx(4 * N * C + total_too + layer_norm_kept(backend, N, C), abs=200)


def with_memory(monkeypatch: pytest.MonkeyPatch, available: int | None) -> None:
    monkeypatch.setattr(devices, "memory_available", lambda device: available)


def test_auto_takes_the_largest_micro_batch_that_fits_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    config, here = settings({"block_size": 256}, batch_size=32, micro_batch="auto"), machine()
    peaks = {size: plan(settings({"block_size": 256}, batch_size=32, micro_batch=size), here).peak for size in (8, 16)}
    with_memory(monkeypatch, int(peaks[8] / USABLE["cpu"]) + 1)
    chosen, memory = settle(config, here)
    assert chosen.training.micro_batch == 8
    assert chosen.training.batch_size == 32
    assert memory.plan.peak == peaks[8] <= USABLE["cpu"] * int(memory.available or 0) < peaks[16]
    assert str(memory.reason).startswith("8: the largest that fits: ")
    assert memory.warning is None
    assert settle(config, here)[0] == chosen


@pytest.mark.parametrize("available", [None, 10**12])
def test_auto_takes_the_whole_batch_where_it_fits_or_nothing_tells(
    monkeypatch: pytest.MonkeyPatch, available: int | None
) -> None:
    with_memory(monkeypatch, available)
    chosen, memory = settle(settings({}, micro_batch="auto"), machine())
    assert chosen.training.micro_batch == 8
    assert str(memory.reason).startswith("8: the whole batch")


def test_a_number_is_left_alone_and_too_much_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings({}, micro_batch=4)
    with_memory(monkeypatch, 10**6)
    chosen, memory = settle(config, machine())
    assert chosen is config
    assert memory.reason is None
    assert memory.warning is not None
    assert memory.warning.endswith("1.0 MB are available; --training.micro-batch auto takes what fits")


def test_when_not_one_sequence_fits_auto_names_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine()
    model = {"n_layer": 12, "block_size": 512, "n_head": 8}
    recomputed = plan(settings(model, micro_batch=1, activation_checkpointing=True), here).peak
    with_memory(monkeypatch, int(recomputed / USABLE["cpu"]) + 1)
    with pytest.raises(HardwareError) as raised:
        settle(settings(model, micro_batch="auto"), here)
    first, second = str(raised.value).splitlines()
    assert first.startswith("out of memory: one sequence at a time does not fit; the plan needs ")
    assert second.startswith("These fit: --training.activation-checkpointing --training.micro-batch ")

    with_memory(monkeypatch, recomputed // 2)
    with pytest.raises(HardwareError, match=r"A smaller --model.block-size (256|128|64) fits"):
        settle(settings(model, micro_batch="auto"), here)
    with_memory(monkeypatch, 1000)
    with pytest.raises(HardwareError, match=r"lower --model.n-layer, --model.n-embd or the vocabulary"):
        settle(settings(model, micro_batch="auto"), here)


CUDA_WORDS = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.00 GiB of which 1.00 MiB"
)
CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes."
)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (torch.OutOfMemoryError(CUDA_WORDS), "tried to allocate 20.00 MiB"),
        (RuntimeError(CPU_WORDS), "tried to allocate 800 B"),
        (MemoryError(), "an allocation failed"),
    ],
)
def test_running_out_names_flags_under_which_the_plan_fits(error: Exception, what: str) -> None:
    config, here = settings({"block_size": 256}, batch_size=32), machine()
    whole = plan(config, here)
    memory = RunMemory(whole, available=whole.peak, held=0, reason=None)
    with pytest.raises(HardwareError) as raised, explaining_shortage(config, here, memory):
        raise error
    first, second = str(raised.value).splitlines()
    assert first.startswith(f"out of memory: {what}; the plan needs ")
    assert second.startswith("These fit: --training.micro-batch 16, or --training.activation-checkpointing")
    assert plan(settings({"block_size": 256}, batch_size=32, micro_batch=16), here).peak <= USABLE["cpu"] * whole.peak
    assert raised.value.exit_code == 6


def test_other_errors_pass_through() -> None:
    config, here = settings({}), machine()
    memory = RunMemory(plan(config, here), available=10**9, held=0, reason=None)
    with pytest.raises(RuntimeError, match="shapes"), explaining_shortage(config, here, memory):
        raise RuntimeError("shapes do not match")


RESIDENT = """
import torch
from smallgpt.application.step import Stepper
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure import devices
from tests.conftest import MadeBatches
from tests.interfaces.test_memory import CPU, SMALL, machine, plan, settings
torch.set_num_threads(1)
shape = {"block_size": 256, "n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 4096}
here, config = machine("fp32"), settings(shape, batch_size=32)
batches = MadeBatches(config.model).rows(0, range(32))
toy = settings({})  # brings the libraries that a step needs, which are no part of the plan
Stepper(GPT(toy.model, here.kernels.ops), toy, 10, here.dtype)(0, MadeBatches(toy.model))
held = devices.memory_held(CPU)
stepper = Stepper(GPT(config.model, here.kernels.ops), config, 10, here.dtype)
class Same:
    rows = staticmethod(lambda step, rows: batches)
for step in range(2):
    stepper(step, Same())
print(plan(config, here).peak / (devices.memory_in_use(CPU) - held))
"""


@pytest.mark.slow
def test_a_process_grows_by_the_plan_when_what_is_freed_goes_back() -> None:
    """Above the threshold glibc gives freed blocks back at once; by default it learns to keep ever larger ones."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(1, abs=0.1)
