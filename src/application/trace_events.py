"""The events of a torch.profiler trace, as `export_chrome_trace` writes it: nested, each with the time that is its own."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Event:
    """One event of a trace; the profiler's times are microseconds."""

    name: str
    start: float
    duration: float
    thread: object = 0
    sequence: int = -1
    """The autograd node that a forward operation makes, or that a backward one runs; -1 for neither."""
    shapes: list[Any] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    id: int | None = None
    """Kernels carry the id of the operation that launched them."""
    is_kernel: bool = False
    parent: "Event | None" = None
    own: float = 0.0
    """Duration without the events inside; with kernels, the time of those that it launched."""
    works: bool = True
    """Does it do the work itself, instead of calling another operation?"""

    def spans(self, other: "Event") -> bool:
        """Does the other start while this one lasts?"""
        return self.start <= other.start < self.start + self.duration

    @property
    def is_operation(self) -> bool:
        """Of a library (aten::mm), not a range or a node of the autograd graph."""
        return "::" in self.name and not self.name.startswith(("autograd::", "torch::autograd::", "smallgpt: "))


def read_events(trace: dict[str, Any]) -> list[Event]:
    """The timed events of a trace, in order of their start, an outer one before those inside."""
    kinds = {"cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset"}
    timed = [e for e in trace["traceEvents"] if e.get("ph") == "X" and e.get("cat") in kinds]
    return sorted(map(_event, timed), key=lambda e: (e.start, -e.duration))


def _event(record: dict[str, Any]) -> Event:
    details = record.get("args", {})
    return Event(
        name=record["name"],
        start=float(record["ts"]),
        duration=float(record.get("dur", 0)),
        thread=(record["pid"], record["tid"]),
        sequence=int(details.get("Sequence number", -1)),
        shapes=details.get("Input Dims", []),
        types=details.get("Input type", []),
        id=details.get("External id"),
        is_kernel=record["cat"] in ("kernel", "gpu_memcpy", "gpu_memset"),
    )


def outwards(event: Event | None) -> Iterator[Event]:
    """The event, its parent, its parent's parent, ..."""
    while event is not None:
        yield event
        event = event.parent


def nest(events: list[Event]) -> None:
    """Find each event's parent, the innermost one around it on its thread, and its own time. In read_events' order."""
    open_events: dict[object, list[Event]] = defaultdict(list)
    for event in events:
        around = open_events[event.thread]
        while around and not around[-1].spans(event):
            around.pop()
        event.own = event.duration
        if around:
            event.parent = around[-1]
            event.parent.own -= event.duration
        around.append(event)
    for event in events:
        event.works = 2 * event.own >= event.duration


def time_by_kernels(inside: list[Event], kernels: list[Event], steps: list[Event]) -> None:
    """Give each operation inside the steps the time of its kernels instead; kernels that nothing launched are added."""
    by_id = {e.id: e for e in inside if e.id is not None}
    for event in inside:
        event.own = 0.0
    for kernel in kernels:
        launcher = by_id.get(kernel.id) if kernel.id is not None else None
        if launcher is not None:
            launcher.own += kernel.duration
        elif any(step.spans(kernel) for step in steps):  # such as a replayed graph's
            kernel.own = kernel.duration
            inside.append(kernel)
    for event in inside:
        event.works = event.own > 0
