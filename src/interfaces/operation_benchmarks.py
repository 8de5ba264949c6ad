"""Operations timed side by side: each system is compared with the formula first, then all are timed in turn."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from smallgpt.application.benchmarking import Ceilings, OperationRow, OperationTimes, rank
from smallgpt.application.operation_costs import Direction
from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.infrastructure.allocations import peak_bytes
from smallgpt.infrastructure.devices import matmul_peak
from smallgpt.interfaces.operation_competitors import Outputs
from smallgpt.interfaces.operation_inputs import InputSets, Operands
from smallgpt.interfaces.operation_systems import Case, System, why_not
from smallgpt.kernels.proof import TOLERANCE, distance, first_line
from smallgpt.kernels.select import LOSS_BACKENDS
from smallgpt.kernels.timing import Prepare, Samples, copy_bandwidth, measure

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
Say = Callable[[str], None]
"""Told what is worth keeping on the screen: input sets, and systems that are left out."""
Tell = Callable[[int, int | None, str], None]
"""Told how far it is: done, of how many, what."""


@dataclass(frozen=True)
class Settings:
    """How cases are timed."""

    device: torch.device
    dtype: torch.dtype
    directions: Sequence[Direction] = DIRECTIONS
    rounds: int = 3
    seconds: float = 0.1
    """Of repeats in a round, for each system and direction."""
    systems: Sequence[str] = ()
    """Names to time; empty for all that run here."""

    def unfit(self, system: System) -> str | None:
        """The reason why a system is not timed at any shape, or None."""
        reason = why_not(system, self.device) or (None if system.name in self.systems else system.not_unless_named)
        if reason is None and not system.backward and set(self.directions) != {"forward"}:
            return f"it has no backward pass on {self.device}; use --direction forward"
        return reason


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Of a large matrix product in dtype, and of a large copy."""
    return Ceilings(flops=matmul_peak(device, dtype), bytes=copy_bandwidth(device))


def bench(cases: Sequence[Case], settings: Settings, ceilings: Ceilings, say: Say, tell: Tell) -> list[dict[str, Any]]:
    """One row for each case, direction and system: the fields of the case and of OperationRow, dtype and input_sets.

    Raises HardwareError, before anything of a case is timed, if a backend of ours is wrong on the device; and what
    check_systems() raises.
    """
    check_systems(cases, settings)
    for name, system in _systems(cases, settings).items():
        if not settings.systems and (reason := settings.unfit(system)):
            say(f"{name} is left out: {reason}")
    return [row for case in cases for row in _bench(case, settings, ceilings, say, tell)]


def check_systems(cases: Sequence[Case], settings: Settings) -> None:
    """Raise ConfigError for the name of a system that does not exist, HardwareError for one that does not run here."""
    systems = _systems(cases, settings)
    for name in settings.systems:
        if name not in systems:
            raise ConfigError(f"unknown system {name!r}; use {', '.join(systems)}")
        if reason := settings.unfit(systems[name]):
            raise HardwareError(f"{cases[0].operation}: {name} cannot be timed: {reason}")


def _systems(cases: Sequence[Case], settings: Settings) -> dict[str, System]:
    return {system.name: system for case in cases for system in case.systems(settings.device)}


def parity(case: Case, system: System, device: torch.device, dtype: torch.dtype) -> float:
    """Largest ‖difference‖/‖exact‖ of outputs and gradients from the formula in float64, at the case's small shape."""
    small = case.small()
    operands = small.operands(torch.Generator().manual_seed(0))
    formula, cpu = _named("reference", small, torch.device("cpu")), torch.device("cpu")
    exact = _results(formula, operands.placed(cpu, torch.float64))
    found = _results(_named(system.name, small, device), operands.placed(device, dtype))
    return max(distance(a, b) for a, b in zip(found, exact[: len(found)], strict=True))


def _named(name: str, case: Case, device: torch.device) -> System:
    return next(system for system in case.systems(device) if system.name == name)


def _results(system: System, operands: Operands) -> Outputs:
    """Outputs and gradients, the latter for the case's own operands also where the system takes them apart."""
    leaves = operands.leaves if system.backward else tuple(x.detach() for x in operands.leaves)
    outputs = system.call(*(leaves if system.split is None else system.split(*leaves)), *operands.fixed)
    if not system.backward:
        return outputs
    return *outputs, *torch.autograd.grad(outputs, leaves, operands.upstream)


def _bench(case: Case, settings: Settings, ceilings: Ceilings, say: Say, tell: Tell) -> Iterator[dict[str, Any]]:
    torch.compiler.reset()  # compiled forms are specialised to a shape, and only so many shapes are kept
    generator = torch.Generator(settings.device).manual_seed(0)
    inputs = InputSets(lambda: case.operands(generator).placed(settings.device, settings.dtype), settings.device)
    say(f"{words(case)}: {inputs.words}")
    systems = list(_runnable(case, inputs, settings, say, tell))
    turns = [(turn, system) for turn in range(settings.rounds) for system in systems]
    rounds: dict[str, list[dict[Direction, Samples]]] = {system.name: [] for system in systems}
    for done, (_, system) in enumerate(turns):
        tell(done, len(turns), words(case))
        rounds[system.name].append(_round(case, system, inputs, settings))
    memory = {system.name: _extra_memory(case, system, inputs, settings.device) for system in systems}
    timings = []
    for direction in settings.directions:
        for name, own in rounds.items():
            samples = [each[direction] for each in own]
            repeats = [each.milliseconds for each in samples]
            timings.append(OperationTimes(name, direction, repeats, samples[0].how, memory[name]))
    work = {way: case.work(way, settings.dtype) for way in settings.directions}
    for row in rank(timings, work, case.bound, ceilings):
        yield _flat(case, settings.dtype, row) | {"input_sets": len(inputs.sets)}


def _round(case: Case, system: System, inputs: InputSets, settings: Settings) -> dict[Direction, Samples]:
    directions = settings.directions
    if "backward" in directions and not case.backward_alone:
        directions = ("forward", "both")
    timed: dict[Direction, Samples] = {}
    for direction in directions:
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()  # what the graph before held
        timed[direction] = measure(_prepare(case, system, inputs, direction), settings.device, settings.seconds)
    if "backward" in settings.directions and not case.backward_alone:
        loss_alone, training = median(timed["forward"].milliseconds), timed["both"]
        rest = [max(milliseconds - loss_alone, 1e-6) for milliseconds in training.milliseconds]
        timed["backward"] = Samples(rest, training.how)
    return timed


def _runnable(case: Case, inputs: InputSets, settings: Settings, say: Say, tell: Tell) -> Iterator[System]:
    everything = [system for system in case.systems(settings.device) if settings.unfit(system) is None]
    wanted = [system for system in everything if system.name in settings.systems or not settings.systems]
    for done, system in enumerate(wanted):
        tell(done, len(wanted), f"{words(case)}: comparing with the formula")
        fault = _fault(case, inputs, system, settings)
        if fault is None:
            yield system
        elif settings.systems:
            raise HardwareError(f"{case.operation}: {system.name} cannot be timed: {fault}")
        else:
            say(f"{words(case)}: {system.name} is left out: {fault}")


def _fault(case: Case, inputs: InputSets, system: System, settings: Settings) -> str | None:
    """Why the system cannot be timed, or None. Raises HardwareError for a backend of ours that gives wrong results."""
    allowed = TOLERANCE[settings.dtype]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refused SDPA backend gives its reasons as warnings
            error = parity(case, system, settings.device, settings.dtype)
            _prepare(case, system, inputs, "both" if system.backward else "forward")()()  # does the whole shape fit?
    except Exception as failure:  # Triton's, torch's and the driver's have no common base
        return f"it failed to run: {first_line(failure)}"
    if error <= allowed:
        return None
    wrong = f"its error is {error:.0e}, and {allowed:.0e} is allowed"
    if system.name in LOSS_BACKENDS:  # all of ours
        raise HardwareError(
            f"{case.operation}: {system.name} is wrong on {settings.device} at {words(case)}: {wrong}. Nothing was timed.\n"
            "See smallgpt kernels list, and name other systems with --system."
        )
    return wrong


def _prepare(case: Case, system: System, inputs: InputSets, direction: Direction) -> Prepare:
    """The forward pass is that of training; but where gradients may be made in it, or never are, one without any."""

    def forward() -> Callable[[], Outputs]:
        operands, leaves = _next(system, inputs)

        def run() -> Outputs:
            with torch.set_grad_enabled(case.backward_alone and system.backward):
                return system.call(*leaves, *operands.fixed)

        return run

    def both() -> Callable[[], Outputs]:
        operands, leaves = _next(system, inputs)
        return lambda: torch.autograd.grad(system.call(*leaves, *operands.fixed), leaves, operands.upstream)

    def backward() -> Callable[[], Outputs]:
        operands, leaves = _next(system, inputs)
        outputs = system.call(*leaves, *operands.fixed)
        inputs.evict(operands)
        return lambda: torch.autograd.grad(outputs, leaves, operands.upstream)

    return {"forward": forward, "both": both, "backward": backward}[direction]


def _next(system: System, inputs: InputSets) -> tuple[Operands, tuple[Tensor, ...]]:
    """The next operands, and those of them that are differentiated as the system takes them."""
    operands = inputs.next()
    if system.split is None:
        return operands, operands.leaves if system.backward else tuple(x.detach() for x in operands.leaves)
    parts = tuple(part.detach().requires_grad_(system.backward) for part in system.split(*operands.leaves))
    inputs.evict(operands)  # and with them the parts, just made
    return operands, parts


def _extra_memory(case: Case, system: System, inputs: InputSets, device: torch.device) -> int | None:
    """Peak bytes of a forward and backward pass above the operands and their gradients; None where there is no backward."""
    if not system.backward:
        return None
    prepare = _prepare(case, system, inputs, "both")
    prepare()()  # libraries take their workspaces at the first call
    gradients = sum(x.numel() * x.element_size() for x in inputs.sets[0].leaves)
    return max(0, peak_bytes(prepare(), device) - gradients)


def _flat(case: Case, dtype: torch.dtype, row: OperationRow) -> dict[str, Any]:
    result = asdict(row)
    names = {"system": result.pop("system"), "direction": result.pop("direction")}
    return {**names, "dtype": str(dtype).removeprefix("torch."), **shape_of(case), **result}


def shape_of(case: Case) -> dict[str, Any]:
    """The case's fields by name."""
    return asdict(case)


def words(case: Case) -> str:
    """The shape for people: "rows 32768, width 256"."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shape_of(case).items())
