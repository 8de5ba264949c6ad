"""A run's memory on its machine: the plan, the micro-batch that fits, and what to do when there is not enough."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smallgpt.application.memory_plan import KernelBytes, MemoryPlan, largest_micro_batch, plan_memory
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError, is_out_of_memory
from smallgpt.infrastructure import devices
from smallgpt.infrastructure.device_batches import is_resident
from smallgpt.interfaces.machine import Machine
from smallgpt.kernels.attention import memory as attention
from smallgpt.kernels.layer_norm import memory as layer_norm
from smallgpt.kernels.linear_cross_entropy import memory as linear_cross_entropy

# Of what is available. The plan is within a tenth of what is handed out; allocators lose some to gaps, and the C
# library's most: a process on a CPU grew by 1.22 to 1.45 times its plan, from run to run of one command.
USABLE = {"cuda": 0.85, "cpu": 0.6}


@dataclass(frozen=True)
class RunMemory:
    """What a run will take, and what was there before it."""

    plan: MemoryPlan
    available: int | None
    """Bytes that could be taken before the model was built; None where nothing tells."""
    held: int
    """Bytes that the process held then."""
    reason: str | None
    """Why the micro-batch is what it is, when it was chosen here."""

    @property
    def warning(self) -> str | None:
        """What to say when the plan does not fit."""
        if self.available is None or self.plan.peak <= self.available:
            return None
        return (
            f"the plan needs {_words(self.plan.peak)} of memory and {_words(self.available)} are available; "
            "--training.micro-batch auto takes what fits"
        )

    def event(self) -> dict[str, Any]:
        """For the start of a run's record."""
        return {
            "memory_plan": self.plan.components,
            "memory_plan_moment": self.plan.moment,
            "memory_available": self.available,
            "memory_before": self.held,
        }


def settle(config: RunConfig, machine: Machine, token_bytes: int = 0) -> tuple[RunConfig, RunMemory]:
    """The configuration with a number for `micro_batch auto`, and its memory. Raises HardwareError when nothing fits.

    token_bytes is the size of the training tokens, which a GPU may hold.
    """
    available, held = devices.memory_available(machine.device), devices.memory_held(machine.device)
    if machine.device.type == "cuda" and available is not None and is_resident(token_bytes, machine.device):
        available -= token_bytes
    reason = None
    if config.training.micro_batch == "auto":
        micro_batch = _largest(config, machine, available)
        if micro_batch is None:
            assert available is not None, "without a figure everything fits"
            raise HardwareError(_too_much(config, machine, available, "one sequence at a time does not fit"))
        config = _with(config, micro_batch=micro_batch)
        reason = _reason(config, machine, available)
    return config, RunMemory(plan(config, machine), available, held, reason)


def plan(config: RunConfig, machine: Machine, *, evaluates: bool = True) -> MemoryPlan:
    """The memory plan of a configuration whose micro-batch is a number or the whole batch."""
    model, backends, device, dtype = config.model, machine.kernels.chosen, machine.device, machine.dtype
    micro_batch = config.training.micro_batch
    B = micro_batch if isinstance(micro_batch, int) else config.training.batch_size
    T, H, V, C = model.block_size, model.n_head, model.vocab_size, model.n_embd
    attended = (backends["attention"], device, dtype, B, T, H, model.head_size, model.dropout)
    # our layer norm hands on what a product reads; torch's and the formula's stay fp32
    itemsize = dtype.itemsize if backends["layer_norm"] == "triton" else 4
    loss = linear_cross_entropy.loss_bytes(backends["linear_cross_entropy"], device, dtype, B * T, V, C, itemsize)
    kernels = KernelBytes(
        attention_kept=attention.kept_bytes(*attended),
        attention_backward=attention.backward_bytes(*attended),
        layer_norm_kept=layer_norm.kept_bytes(backends["layer_norm"], B * T, C),
        loss_forward=loss.forward,
        loss_backward=loss.backward,
    )
    captured = machine.graphs.value == "on"
    return plan_memory(config, B, dtype.itemsize, kernels, evaluates=evaluates, captured=captured)


@contextmanager
def explaining_shortage(config: RunConfig, machine: Machine, memory: RunMemory) -> Iterator[None]:
    """Turns running out of memory into a HardwareError that names the flags which would fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        tried = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
        what = f"tried to allocate {tried[1].replace('bytes', 'B')}" if tried else "an allocation failed"
        # What failed did not fit, whatever was available: advise well below it.
        limit = min(memory.available or memory.plan.peak, int(0.75 * memory.plan.peak / USABLE[machine.device.type]))
        raise HardwareError(_too_much(config, machine, limit, what, memory)) from error


def _too_much(config: RunConfig, machine: Machine, limit: int, what: str, memory: RunMemory | None = None) -> str:
    peak = (memory.plan if memory else plan(_with(config, micro_batch=1), machine)).peak
    available = memory.available if memory else limit
    there = f", {_words(available)} were available" if available is not None else ""
    return f"out of memory: {what}; the plan needs {_words(peak)}{there}.\n{_remedies(config, machine, limit)}"


def _remedies(config: RunConfig, machine: Machine, available: int) -> str:
    """Flags under which the plan fits, the cheapest first."""
    current = config.training.micro_batch
    current = current if isinstance(current, int) else config.training.batch_size
    options = []
    smaller = _largest(config, machine, available)
    if smaller is not None and smaller < current:
        options.append(f"--training.micro-batch {smaller}")
    if not config.training.activation_checkpointing:
        config = _with(config, activation_checkpointing=True)
        largest = _largest(config, machine, available)
        if largest is not None and largest > (smaller or 0):
            and_less = f" --training.micro-batch {largest}" if largest < current else ""
            options.append(f"--training.activation-checkpointing{and_less}")
    if options:
        return f"These fit: {', or '.join(options)}."
    tokens = config.model.block_size // 2
    while tokens:
        shorter = config.model_copy(update={"model": config.model.model_copy(update={"block_size": tokens})})
        if _largest(shorter, machine, available) is not None:
            return (
                f"A smaller --model.block-size {tokens} fits, with --training.micro-batch 1 "
                "--training.activation-checkpointing; or make the model smaller."
            )
        tokens //= 2
    return "No micro-batch and no --model.block-size fits: lower --model.n-layer, --model.n-embd or the vocabulary."


def _largest(config: RunConfig, machine: Machine, available: int | None) -> int | None:
    def fits(micro_batch: int) -> bool:
        return (
            available is None
            or plan(_with(config, micro_batch=micro_batch), machine).peak <= USABLE[machine.device.type] * available
        )

    return largest_micro_batch(config.training.batch_size, fits)


def _reason(config: RunConfig, machine: Machine, available: int | None) -> str:
    micro_batch = config.training.micro_batch
    if available is None:
        return f"{micro_batch}: the whole batch; nothing here tells how much memory is free"
    which = "the whole batch fits" if micro_batch == config.training.batch_size else "the largest that fits"
    peak = plan(config, machine).peak
    return f"{micro_batch}: {which}: {_words(peak)} planned, {USABLE[machine.device.type]:.0%} of {_words(available)} usable"


def _with(config: RunConfig, **training: object) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
