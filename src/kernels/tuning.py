"""The offline tuner: what an operation's tile table shall hold (`make tune` writes it).

For each entry it takes the operation's candidates in their order, compiles each for the architecture, and drops those that
spill registers or do not fit shared memory. On a GPU of that architecture the fastest of the rest is taken, and the entry
says how fast it was; elsewhere the first, so that the order of the candidates is the knowledge that counts.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any

import torch

from smallgpt.kernels import tiles, timing
from smallgpt.kernels.compile_report import Row, faults
from smallgpt.kernels.compiling import compile_launch
from smallgpt.kernels.launching import Launch, Tunable, architecture, recording
from smallgpt.kernels.launching import launch as run_launch
from smallgpt.kernels.tiles import Tile


def tune(operation: str, name: str) -> Iterator[dict[str, Any]]:
    """The entries of an operation's table for an architecture, one at a time; entries that nothing fits are left out."""
    variants = import_module(f"smallgpt.kernels.{operation}.variants")
    candidates: Callable[[str, str, int, int], list[Tile]] = variants.candidates
    tunables: list[Tunable] = list(variants.tunables())
    for tunable in tunables:
        found = []
        options = {t.kernel: candidates(t.kernel, name, tunable.size, tunable.bits) for t in tunables}
        smallest = {kernel: own[-1] for kernel, own in options.items() if own}  # the kernels beside it only have to run
        for candidate in options[tunable.kernel]:
            with ExitStack() as stack:
                for kernel, entry in (smallest | {tunable.kernel: candidate}).items():
                    stack.enter_context(tiles.forced(operation, kernel, entry))
                evidence = _judge(tunable, name)
            if evidence is not None:
                found.append((evidence[0], candidate, evidence[1]))
            if found and not _is_here(name):
                break
        if found:
            _, best, words = min(found, key=lambda item: item[0])
            yield {
                "kernel": tunable.kernel,
                "architecture": name,
                "size": tunable.size,
                "bits": tunable.bits,
                "tile": best,
                "evidence": words,
            }


def _judge(tunable: Tunable, name: str) -> tuple[float, str] | None:
    """(milliseconds or 0, the words for the table) of the tile in force; None when it spills or does not fit."""
    launch = _launch(partial(tunable.run, "meta"), tunable.index, name)
    options = {option: launch.arguments[option] for option in ("num_warps", "num_stages")}
    row = Row("", name, tunable.kernel, "", "", "", **options, **compile_launch(launch, name))
    # The gate lets products on sm_75 pass, which are not the kernels' to make there; but whoever asks for them must fit.
    if faults(row) or row.shared_bytes > row.shared_limit:
        return None
    spill = f"{row.spill_bytes} bytes spilled" if row.spill_bytes else "no spill"
    if not _is_here(name):
        return 0.0, f"compiled: {row.registers} registers, {spill}"
    device = torch.device("cuda")
    real = _launch(partial(tunable.run, "cuda"), tunable.index, name)
    again = partial(run_launch, real.kernel, real.grid, **real.arguments)
    milliseconds = median(timing.measure(lambda: again, device).milliseconds)
    return milliseconds, f"measured: {milliseconds:.4f} ms on {torch.cuda.get_device_name(device)}"


def _launch(run: Callable[[], object], index: int, name: str) -> Launch:
    with recording(name) as launches:
        run()
    return launches[index]


def _is_here(name: str) -> bool:
    return torch.cuda.is_available() and architecture(torch.device("cuda")) == name
