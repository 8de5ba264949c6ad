"""A run's memory on its machine: the plan, the micro-batch that fits, and what to do when there is not enough."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from smallgpt.application.memory_plan import KernelBytes, MemoryPlan, even_splits, largest_micro_batch, plan_memory
from smallgpt.application.memory_shares import ONE_PROCESS, Sharing
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError, is_out_of_memory
from smallgpt.domain.processes import ALONE, Processes
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
    """What a process of a run will take, and what was there before it."""

    plan: MemoryPlan
    available: int | None
    """Bytes that each process could take before the model was built; None where nothing tells."""
    held: int
    """Bytes that the process held then."""
    reason: str | None
    """Why the micro-batch is what it is, when it was chosen here."""
    sharing: Sharing = ONE_PROCESS
    parallel: str | None = None
    """How several processes share the state, and why."""
    remedy: str = "--training.micro-batch auto takes what fits"
    """What to do when the plan does not fit."""

    @property
    def warning(self) -> str | None:
        """What to say when the plan does not fit."""
        if self.available is None or self.plan.peak <= self.available:
            return None
        whose = "" if self.sharing.count == 1 else f" in each of {self.sharing.count} processes"
        return (
            f"the plan needs {_words(self.plan.peak)} of memory{whose} and {_words(self.available)} are available; "
            f"{self.remedy}"
        )

    def reasons(self) -> dict[str, str]:
        """What was chosen here, each choice with why."""
        chosen = {"parallel": self.parallel, "micro_batch": self.reason}
        return {name: words for name, words in chosen.items() if words is not None}

    def event(self) -> dict[str, Any]:
        """For the start of a run's record."""
        return {
            "memory_plan": self.plan.components,
            "memory_plan_moment": self.plan.moment,
            "memory_available": self.available,
            "memory_before": self.held,
        }


def settle(
    config: RunConfig, machine: Machine, token_bytes: int = 0, processes: Processes = ALONE
) -> tuple[RunConfig, RunMemory]:
    """The configuration with a number for `micro_batch auto`, and its memory, whose `sharing` tells replicas or shards.

    token_bytes is the size of the training tokens, which a GPU may hold. Several processes all call this and settle on the
    same. Raises HardwareError when nothing fits.
    """
    available, held = _available(machine.device, token_bytes, processes), devices.memory_held(machine.device)
    sharing, parallel = _choose_sharing(config, machine, available, processes)
    reason = None
    if config.training.micro_batch == "auto":
        micro_batch = min(processes.of_all(_largest(config, machine, available, sharing) or 0))
        if micro_batch == 0:
            assert available is not None, "without a figure everything fits"
            raise HardwareError(_too_much(config, machine, available, sharing, "one sequence at a time does not fit"))
        config = _with(config, micro_batch=micro_batch)
        reason = _reason(config, machine, available, sharing)
    memory = RunMemory(plan(config, machine, sharing=sharing), available, held, reason, sharing, parallel)
    shards = Sharing(sharing.count, shards=True)
    if sharing.replicas and _can_shard(config) and _fits(config, machine, available, shards):
        memory = replace(memory, remedy="--training.parallel fsdp2 fits")
    return config, memory


def _available(device: torch.device, token_bytes: int, processes: Processes) -> int | None:
    """The least that any of the processes may take."""
    available = devices.memory_available(device)
    if available is not None and device.type == "cuda" and is_resident(token_bytes, device):
        available -= token_bytes
    return min((known for known in processes.of_all(available) if known is not None), default=None)


def _choose_sharing(
    config: RunConfig, machine: Machine, available: int | None, processes: Processes
) -> tuple[Sharing, str | None]:
    """Replicas or shards, and why: replicas exchange less, as long as they fit."""
    wish, replicas, shards = config.training.parallel, Sharing(processes.count), Sharing(processes.count, shards=True)
    if processes.count == 1:
        return ONE_PROCESS, None
    if wish != "auto":
        return shards if wish == "fsdp2" else replicas, f"{wish}: asked for"
    if not _can_shard(config):
        return replicas, f"ddp: {config.optimizer.name} needs whole matrices"
    if available is None:
        return replicas, "ddp: nothing here tells how much memory is free"
    need, usable = _least(config, machine, replicas), int(USABLE[machine.device.type] * available)
    fit = all(processes.of_all(need <= usable))
    words = f"replicas need {_words(need)} each, {_words(usable)} usable"
    return (replicas, f"ddp: {words}") if fit else (shards, f"fsdp2: {words}")


def _least(config: RunConfig, machine: Machine, sharing: Sharing) -> int:
    """The peak of the plan; with `micro_batch auto`, of the micro-batch that takes least. A step in several passes keeps the
    gradients of earlier ones, so that is not always the smallest.
    """
    sizes = even_splits(sharing.rows(config.training.batch_size))
    ways = [_with(config, micro_batch=size) for size in sizes] if config.training.micro_batch == "auto" else [config]
    return min(plan(way, machine, sharing=sharing).peak for way in ways)


def _can_shard(config: RunConfig) -> bool:
    return config.optimizer.name != "muon"


def plan(config: RunConfig, machine: Machine, *, evaluates: bool = True, sharing: Sharing = ONE_PROCESS) -> MemoryPlan:
    """The memory plan of one process, for a configuration whose micro-batch is a number or the whole batch."""
    model, backends, device, dtype = config.model, machine.kernels.chosen, machine.device, machine.dtype
    micro_batch, rows = config.training.micro_batch, sharing.rows(config.training.batch_size)
    B = min(micro_batch, rows) if isinstance(micro_batch, int) else rows
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
    captured, on_host = machine.graphs.value == "on", device.type == "cpu"
    return plan_memory(
        config, B, dtype.itemsize, kernels, evaluates=evaluates, captured=captured, sharing=sharing, on_host=on_host
    )


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
        raise HardwareError(_too_much(config, machine, limit, memory.sharing, what, memory)) from error


def _too_much(
    config: RunConfig, machine: Machine, limit: int, sharing: Sharing, what: str, memory: RunMemory | None = None
) -> str:
    peak = memory.plan.peak if memory else _least(config, machine, sharing)
    available = memory.available if memory else limit
    there = f", {_words(available)} were available" if available is not None else ""
    whose = "" if sharing.count == 1 else " in each process"
    return (
        f"out of memory: {what}; the plan needs {_words(peak)}{whose}{there}.\n"
        f"{_remedies(config, machine, limit, sharing)}"
    )


def _remedies(config: RunConfig, machine: Machine, available: int, sharing: Sharing) -> str:
    """Flags under which the plan fits, the cheapest first."""
    options = _flags_that_fit(config, machine, available, sharing)
    if options:
        return f"These fit: {', or '.join(options)}."
    config = _with(config, activation_checkpointing=True)
    if _can_shard(config):
        for count in (n for n in range(2, config.training.batch_size + 1) if n > sharing.count > 1):
            if _largest(config, machine, available, Sharing(count, shards=True)) is not None:
                return (
                    f"{count} processes with as much memory each fit, with --training.parallel fsdp2 "
                    "--training.micro-batch auto --training.activation-checkpointing."
                )
    tokens = config.model.block_size // 2
    while tokens:
        shorter = config.model_copy(update={"model": config.model.model_copy(update={"block_size": tokens})})
        if _largest(shorter, machine, available, sharing) is not None:
            return (
                f"A smaller --model.block-size {tokens} fits, with --training.micro-batch 1 "
                "--training.activation-checkpointing; or make the model smaller."
            )
        tokens //= 2
    return "No micro-batch and no --model.block-size fits: lower --model.n-layer, --model.n-embd or the vocabulary."


def _flags_that_fit(config: RunConfig, machine: Machine, available: int, sharing: Sharing) -> list[str]:
    rows = sharing.rows(config.training.batch_size)
    current = config.training.micro_batch
    current = min(current, rows) if isinstance(current, int) else rows
    best = _largest(config, machine, available, sharing) or 0
    options = [f"--training.micro-batch {best}"] if 0 < best < current else []
    again, shards = _with(config, activation_checkpointing=True), Sharing(sharing.count, shards=True)
    ways = [] if config.training.activation_checkpointing else [("--training.activation-checkpointing", again, sharing)]
    if sharing.replicas and _can_shard(config):
        ways += [("--training.parallel fsdp2", config, shards)]
        if ways[0][1] is again:
            ways += [("--training.parallel fsdp2 --training.activation-checkpointing", again, shards)]
    for flags, changed, shared in ways:
        largest = _largest(changed, machine, available, shared) or 0
        if largest > best:
            options.append(flags + (f" --training.micro-batch {largest}" if largest < current else ""))
            best = largest
    return options


def _fits(config: RunConfig, machine: Machine, available: int | None, sharing: Sharing) -> bool:
    usable = None if available is None else USABLE[machine.device.type] * available
    return usable is None or plan(config, machine, sharing=sharing).peak <= usable


def _largest(config: RunConfig, machine: Machine, available: int | None, sharing: Sharing) -> int | None:
    def fits(micro_batch: int) -> bool:
        return _fits(_with(config, micro_batch=micro_batch), machine, available, sharing)

    return largest_micro_batch(sharing.rows(config.training.batch_size), fits)


def _reason(config: RunConfig, machine: Machine, available: int | None, sharing: Sharing) -> str:
    micro_batch, whole = config.training.micro_batch, "the whole batch"
    if sharing.count > 1:
        whole = "a process's whole part of the batch"
    if available is None:
        return f"{micro_batch}: {whole}; nothing here tells how much memory is free"
    fits_whole = micro_batch == sharing.rows(config.training.batch_size)
    which = f"{whole} fits" if fits_whole else "the largest that fits"
    peak = plan(config, machine, sharing=sharing).peak
    return f"{micro_batch}: {which}: {_words(peak)} planned, {USABLE[machine.device.type]:.0%} of {_words(available)} usable"


def _with(config: RunConfig, **training: object) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def _words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
