"""Operations timed side by side: each system is compared with the formula first, then all are timed in turn."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from smallgpt.application.benchmarking import OperationRow, OperationTimes, rank
from smallgpt.application.operation_costs import Direction
from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.infrastructure.devices import matmul_peak
from smallgpt.interfaces.operation_systems import Case, Operands, Outputs, System, why_not
from smallgpt.kernels.proof import TOLERANCE, distance, first_line
from smallgpt.kernels.select import LOSS_BACKENDS
from smallgpt.kernels.timing import Prepare, Samples, copy_bandwidth, measure

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "both")
Say = Callable[[str], None]
"""Told what is worth keeping on the screen: ceilings, and systems that are left out."""
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


def bench(cases: Sequence[Case], settings: Settings, say: Say, tell: Tell) -> list[dict[str, Any]]:
    """One row for each case, direction and system: the fields of the case and of OperationRow, and dtype.

    Raises HardwareError, before anything of a case is timed, if a backend of ours is wrong on the device, or if a system
    that was asked for by name does not run; ConfigError for an unknown name.
    """
    for case in cases:
        known = [system.name for system in case.systems(settings.device)]
        for name in settings.systems:
            if name not in known:
                raise ConfigError(f"unknown system {name!r}; use {', '.join(known)}")
    ceilings: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for case in cases:
        if case.ceiling not in ceilings:
            ceilings[case.ceiling] = _ceiling(case.ceiling, settings, say)
        found = _bench(case, settings, ceilings[case.ceiling], say, tell)
        rows += [_flat(case, settings.dtype, row) for row in found]
    return rows


def parity(case: Case, system: System, device: torch.device, dtype: torch.dtype) -> float:
    """Largest ‖difference‖/‖exact‖ of outputs and gradients from the formula in float64, at the case's small shape."""
    small = case.small()
    operands = small.operands(torch.Generator().manual_seed(0))
    formula, cpu = _named("reference", small, torch.device("cpu")), torch.device("cpu")
    exact = _results(formula, operands.placed(cpu, torch.float64))
    found = _results(_named(system.name, small, device), operands.placed(device, dtype))
    return max(distance(a, b) for a, b in zip(found, exact, strict=True))


def _named(name: str, case: Case, device: torch.device) -> System:
    return next(system for system in case.systems(device) if system.name == name)


def _results(system: System, operands: Operands) -> Outputs:
    """Outputs and gradients, the latter for the case's own operands also where the system takes them apart."""
    leaves = operands.leaves
    outputs = system.call(*(leaves if system.split is None else system.split(*leaves)), *operands.fixed)
    return *outputs, *torch.autograd.grad(outputs, leaves, operands.upstream)


def _bench(case: Case, settings: Settings, ceiling: float, say: Say, tell: Tell) -> list[OperationRow]:
    torch.compiler.reset()  # compiled forms are specialised to a shape, and only so many shapes are kept
    generator = torch.Generator(settings.device).manual_seed(0)
    operands = case.operands(generator).placed(settings.device, settings.dtype)
    systems = list(_runnable(case, operands, settings, say, tell))
    turns = [(turn, system) for turn in range(settings.rounds) for system in systems]
    rounds: dict[str, list[dict[Direction, Samples]]] = {system.name: [] for system in systems}
    for done, (_, system) in enumerate(turns):
        tell(done, len(turns), words(case))
        rounds[system.name].append(_round(case, system, operands, settings))
    memory = {system.name: _extra_memory(case, system, operands, settings.device) for system in systems}
    timings = []
    for direction in settings.directions:
        for name, own in rounds.items():
            samples = [each[direction] for each in own]
            repeats = [each.milliseconds for each in samples]
            timings.append(OperationTimes(name, direction, repeats, samples[0].how, memory[name]))
    ideal = {way: 1e3 * case.work(way, settings.dtype) / ceiling for way in settings.directions}
    return rank(timings, ideal)


def _round(case: Case, system: System, operands: Operands, settings: Settings) -> dict[Direction, Samples]:
    directions: Sequence[Direction] = settings.directions if case.backward_alone else ("forward", "both")
    timed: dict[Direction, Samples] = {}
    for direction in directions:
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()  # what the graph before held
        timed[direction] = measure(_prepare(case, system, operands, direction), settings.device, settings.seconds)
    if not case.backward_alone:
        loss_alone, training = median(timed["forward"].milliseconds), timed["both"]
        rest = [max(milliseconds - loss_alone, 1e-6) for milliseconds in training.milliseconds]
        timed["backward"] = Samples(rest, training.how)
    return timed


def _runnable(case: Case, operands: Operands, settings: Settings, say: Say, tell: Tell) -> Iterator[System]:
    everything = list(case.systems(settings.device))
    wanted = [system for system in everything if system.name in settings.systems or not settings.systems]
    for done, system in enumerate(wanted):
        tell(done, len(wanted), f"{words(case)}: comparing with the formula")
        fault = why_not(system, settings.device) or _fault(case, operands, system, settings)
        if fault is None:
            yield system
        elif settings.systems:
            raise HardwareError(f"{case.operation}: {system.name} cannot be timed: {fault}")
        else:
            say(f"{words(case)}: {system.name} is left out: {fault}")


def _fault(case: Case, operands: Operands, system: System, settings: Settings) -> str | None:
    """Why the system cannot be timed, or None. Raises HardwareError for a backend of ours that gives wrong results."""
    allowed = TOLERANCE[settings.dtype]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refused SDPA backend gives its reasons as warnings
            error = parity(case, system, settings.device, settings.dtype)
            _prepare(case, system, operands, "both")()()  # does it fit at the whole shape?
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


def _prepare(case: Case, system: System, operands: Operands, direction: Direction) -> Prepare:
    """The forward pass is that of training; but where gradients may be made in it, one without any."""
    leaves = operands.leaves
    if system.split is not None:
        leaves = tuple(part.detach().requires_grad_() for part in system.split(*leaves))

    def forward() -> Outputs:
        return system.call(*leaves, *operands.fixed)

    def forward_alone() -> Outputs:
        with torch.set_grad_enabled(case.backward_alone):
            return forward()

    def both() -> Outputs:
        return torch.autograd.grad(forward(), leaves, operands.upstream)

    def backward() -> Callable[[], Outputs]:
        outputs = forward()
        return lambda: torch.autograd.grad(outputs, leaves, operands.upstream)

    return {"forward": lambda: forward_alone, "both": lambda: both, "backward": backward}[direction]


def _extra_memory(case: Case, system: System, operands: Operands, device: torch.device) -> int | None:
    """Peak bytes of a forward and backward pass above the operands and their gradients; None on a CPU."""
    if device.type != "cuda":
        return None
    run = _prepare(case, system, operands, "both")()
    run()  # libraries take their workspaces at the first call
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    peak = torch.cuda.max_memory_allocated(device)
    return peak - before - sum(x.numel() * x.element_size() for x in operands.leaves)


def _ceiling(kind: str, settings: Settings, say: Say) -> float:
    if kind == "bytes":
        bandwidth = copy_bandwidth(settings.device)
        say(f"ceiling    {bandwidth / 1e9:,.1f} GB/s, a large copy on {settings.device}")
        return bandwidth
    peak = matmul_peak(settings.device, settings.dtype)
    say(f"ceiling    {peak / 1e12:,.3g} TFLOP/s, a large matrix product on {settings.device}")
    return peak


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
