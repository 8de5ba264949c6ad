"""Where an optimizer step's time goes: the profiler's events become rows of part, operation, time, work and bound.

Every event's own time (without what it calls) is given to one row, so that the rows add up to the step. Backward operations
belong to the part whose forward operation made their autograd node: both carry the node's sequence number.

With kernels in the trace (a GPU) an operation's time is that of the kernels it launched, and the rest is the GPU's idle time.
"""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from smallgpt.application.recorded_costs import recorded_bytes, recorded_flops
from smallgpt.application.trace_events import Event, nest, outwards, time_by_kernels

STEP = "smallgpt: step"
PART = "smallgpt: part: "
"""Names of the ranges that mark a step, and what in it belongs to a part of the model."""

REST, CLIPPING = "rest of the step", "norm, check and clipping"
PYTHON, IDLE = "(python)", "(GPU idle)"
_BACKWARD = "autograd::engine::evaluate_function: "
_COMPILED = "Torch-Compiled Region"
_CALLED_OUT = {
    "aten::dropout": "dropout",
    "_Dropout": "dropout",
    "aten::embedding": "embedding",
    "_Tied": "embedding",
    "aten::gelu": "GELU",
    "aten::to": "casts and copies",
    "aten::_to_copy": "casts and copies",
}


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached with nothing else to do."""

    flops_per_second: float
    """Of a large matrix product in the run's precision."""
    bytes_per_second: float
    """Of a large copy, read and write counted."""


@dataclass(frozen=True)
class Row:
    """Some operations of a part in one direction; every count and time is a step's."""

    part: str
    direction: str
    """forward, backward, or update: what follows the backward pass."""
    operation: str | None
    """None: all of them."""
    calls: float
    milliseconds: float
    share: float
    """Of the step."""
    flops: float
    """Of matrix products; other arithmetic is not counted."""
    bytes: float
    """Operands and results once each, from recorded shapes: an estimate of the least traffic."""
    flops_per_second: float
    bytes_per_second: float
    of_matmul_ceiling: float
    of_copy_ceiling: float
    bound: str
    """compute, memory or overhead: the one whose least time is the largest."""


@dataclass(frozen=True)
class StepProfile:
    """Some steps of a run, taken apart. The parts' milliseconds add up to the step's."""

    steps: int
    step_milliseconds: float
    """Mean, while the profiler recorded."""
    clock: str
    """What rows are timed with: "operations" on a CPU, "kernels" on a GPU."""
    call_microseconds: float
    """What a call costs that moves nothing: the median of this trace's views, or of its ten shortest kernels."""
    ceilings: Ceilings
    parts: list[Row]
    operations: list[Row]


def analyse(events: list[Event], ceilings: Ceilings) -> StepProfile:
    """Rows for the events (in read_events' order) inside STEP ranges. Raises ValueError when there is no such range."""
    kernels = [e for e in events if e.is_kernel]
    events = [e for e in events if not e.is_kernel]
    nest(events)
    steps = [e for e in events if e.name == STEP]
    if not steps:
        raise ValueError("the trace has no complete training step")
    inside = [e for e in events if _within(e, steps)]
    if kernels:
        time_by_kernels(inside, kernels, steps)
    places = _Places(inside, steps)
    total = sum(s.duration for s in steps)
    call = _call_cost(inside, kernels)
    sums: dict[tuple[str, str, str], _Sum] = defaultdict(_Sum)
    for event in inside:
        part, direction = places.of(event)
        sums[part, direction, _label(event)].add(event)
    if kernels:
        sums[REST, "forward", IDLE].own += total - sum(e.own for e in inside)

    def row(key: tuple[str, str, str | None], work: _Sum) -> Row:
        return _row(key, work, len(steps), total, call, ceilings)

    operations = [row(key, work) for key, work in sums.items()]
    parts = [row((*key, None), work) for key, work in _by_part(sums).items()]
    return StepProfile(
        steps=len(steps),
        step_milliseconds=total / len(steps) / 1e3,
        clock="kernels" if kernels else "operations",
        call_microseconds=call,
        ceilings=ceilings,
        parts=sorted(parts, key=lambda r: -r.milliseconds),
        operations=sorted(operations, key=lambda r: -r.milliseconds),
    )


def _within(event: Event, steps: list[Event]) -> bool:
    """Is it part of a step: inside one, or on another thread (a GPU's backward pass) at the time of one?"""
    if event.thread == steps[0].thread:
        return any(around.name == STEP for around in outwards(event))
    return any(step.spans(event) for step in steps)


class _Places:
    """To which part and direction each event of a trace belongs."""

    def __init__(self, inside: list[Event], steps: list[Event]) -> None:
        self.last_backward = {step: float("inf") for step in steps}
        for node in (e for e in inside if e.name.startswith(_BACKWARD)):  # in order of their start
            self.last_backward[next(step for step in steps if step.spans(node))] = node.start
        # What makes a node is the last to start with its number: those before it ran without making one.
        self.makers = {e.sequence: e for e in inside if e.sequence >= 0 and not _is_backward(e)}

    def of(self, event: Event) -> tuple[str, str]:
        called_out: str | None = None
        for around in outwards(event):
            name = around.name
            if name in _CALLED_OUT:
                called_out = _CALLED_OUT[name]
            elif name.startswith(_BACKWARD):
                return called_out or self._of_node(around), "backward"
            elif name.startswith(PART):
                return called_out or name.removeprefix(PART), "forward"
            elif name.startswith(_COMPILED):
                return "compiled model", "forward"
            elif name.startswith("Optimizer."):
                return "optimizer", "update"
            elif name == STEP:
                after = event is not around and event.start > self.last_backward[around]
                return (CLIPPING, "update") if after else (called_out or REST, "forward")
            elif not around.is_operation:
                called_out = None  # within an autograd Function the casts and the dropout are its own
        return REST, "forward"

    def _of_node(self, node: Event) -> str:
        if node.name.endswith("AccumulateGrad"):
            return "gradient accumulation"
        maker = self.makers.get(node.sequence)
        return self.of(maker)[0] if maker is not None else REST


def _is_backward(event: Event) -> bool:
    return any(around.name.startswith(_BACKWARD) for around in outwards(event))


@dataclass
class _Sum:
    own: float = 0.0
    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0

    def add(self, event: Event) -> None:
        self.own += event.own
        if not event.is_operation:
            return
        self.calls += 1
        if event.parent is None or not recorded_flops(event.parent.name, event.parent.shapes):  # else counted there
            self.flops += recorded_flops(event.name, event.shapes)
        if event.works:
            self.bytes += recorded_bytes(event.name, event.shapes, event.types)

    def add_sum(self, other: "_Sum") -> None:
        self.own, self.calls = self.own + other.own, self.calls + other.calls
        self.flops, self.bytes = self.flops + other.flops, self.bytes + other.bytes


def _label(event: Event) -> str:
    if event.is_operation or event.is_kernel:
        return event.name.removeprefix("aten::")
    return PYTHON


def _by_part(sums: dict[tuple[str, str, str], _Sum]) -> dict[tuple[str, str], _Sum]:
    parts: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    for (part, direction, _), work in sums.items():
        parts[part, direction].add_sum(work)
    return parts


def _call_cost(inside: list[Event], kernels: list[Event]) -> float:
    """Microseconds; see StepProfile.call_microseconds."""
    if kernels:
        return median(sorted(k.duration for k in kernels)[:10])
    views = [e.own for e in inside if e.name in ("aten::view", "aten::transpose", "aten::as_strided")]
    return median(views) if views else 0.0


def _row(
    key: tuple[str, str, str | None], work: _Sum, steps: int, total: float, call: float, ceilings: Ceilings
) -> Row:
    seconds = work.own * 1e-6
    per_second = (lambda amount: amount / seconds) if seconds > 0 else (lambda amount: 0.0)
    least = {
        "overhead": work.calls * call * 1e-6,
        "compute": work.flops / ceilings.flops_per_second,
        "memory": work.bytes / ceilings.bytes_per_second,
    }
    part, direction, operation = key
    return Row(
        part=part,
        direction=direction,
        operation=operation,
        calls=work.calls / steps,
        milliseconds=work.own / steps / 1e3,
        share=work.own / total,
        flops=work.flops / steps,
        bytes=work.bytes / steps,
        flops_per_second=per_second(work.flops),
        bytes_per_second=per_second(work.bytes),
        of_matmul_ceiling=per_second(work.flops) / ceilings.flops_per_second,
        of_copy_ceiling=per_second(work.bytes) / ceilings.bytes_per_second,
        bound=max(least, key=lambda name: least[name]),
    )
