"""Every kernel timed beside the best that torch has, at the shapes that the targets name. Code shared with `smallgpt bench`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from smallgpt.application.benchmarking import Ceilings
from smallgpt.domain.errors import SmallGPTError
from smallgpt.interfaces.operation_benchmarks import Settings, bench, measure_ceilings
from smallgpt.interfaces.operation_systems import Attention, Case, CrossEntropy, LayerNorm
from tests.gpu_check import targets

WIDTHS = (256, 768, 2048, 4096, 8192)
CASES: dict[str, Sequence[Case]] = {
    "attention": [
        *(Attention(16, 128, 16, 64, dropout) for dropout in (0.0, 0.1)),
        *(Attention(16, T, 16, 64) for T in (512, 1024, 2048)),
    ],
    "layer_norm": [
        *(LayerNorm(32768, C) for C in WIDTHS),
        LayerNorm(32768, 256, add=True),
        LayerNorm(32768, 768, add=True),
    ],
    "linear_cross_entropy": [CrossEntropy(8192, 50304, 256)],
}


def of(operation: str) -> Callable[[], dict[str, Any]]:
    """The section that times an operation."""
    return partial(run, CASES[operation])


def run(cases: Sequence[Case], device: torch.device | None = None) -> dict[str, Any]:
    """passed (nothing of ours is wrong or refused), ceilings, rows as of `smallgpt bench`, targets, and what was left out."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    half = (
        torch.float16 if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) else torch.bfloat16
    )
    limits = measure_ceilings(device, half)
    ceilings = _ceilings(device, limits)
    print("ceilings  ", ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in ceilings.items()))
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        for case in cases:
            rows += bench([case], Settings(device, half, seconds=0.05), limits, notes.append, lambda *_: None)
    except SmallGPTError as error:
        notes.append(str(error))
        passed = False
    else:
        ours = {(row["direction"], *_shape(row)) for row in rows if row["system"] == targets.OURS}
        passed = ours == {(row["direction"], *_shape(row)) for row in rows}  # it ran at every shape
    judged = _judge(cases[0].operation, rows, ceilings)
    _print(rows, judged, notes)
    return {"passed": passed, "ceilings": ceilings, "rows": rows, "targets": judged, "notes": notes}


def _ceilings(device: torch.device, limits: Ceilings) -> dict[str, float]:
    """Measured: a large copy (bytes/s) and a large product (FLOP/s); and the data sheet's bandwidth, where torch knows it."""
    found = {"copy_bytes_per_second": limits.bytes, "matmul_flops": limits.flops}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        clock, width = getattr(properties, "memory_clock_rate", 0), getattr(properties, "memory_bus_width", 0)
        if clock and width:
            found["memory_bytes_per_second"] = 2 * 1e3 * clock * width / 8  # kHz, bits, two transfers a clock
    return found


def _judge(operation: str, rows: list[dict[str, Any]], ceilings: dict[str, float]) -> list[targets.Target]:
    if operation == "layer_norm":  # of the data sheet's bandwidth: the stricter of the two
        return list(
            targets.layer_norm(rows, ceilings.get("memory_bytes_per_second", ceilings["copy_bytes_per_second"]))
        )
    return list(targets.attention(rows) if operation == "attention" else targets.linear_cross_entropy(rows))


def _shape(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("batch_size", "seq_len", "n_head", "head_size", "dropout", "rows", "vocab_size", "width", "add")
    return tuple(row.get(name) for name in names)


def _print(rows: list[dict[str, Any]], judged: list[targets.Target], notes: list[str]) -> None:
    for note in notes:
        print(note)
    for row in rows:
        shape = " ".join(f"{value}" for value in _shape(row) if value is not None)
        memory = row["extra_memory_bytes"]
        print(
            f"{shape:28} {row['direction']:8} {row['system']:30} {row['milliseconds']:9.4f} ms "
            f"({row['fastest']:.4f}-{row['slowest']:.4f}, {row['how']}) {row['ceiling_fraction']:6.1%}"
            + (f" {memory / targets.MEGABYTE:,.0f} MB" if memory is not None else "")
        )
    for target in judged:
        found = "not timed" if target["found"] is None else f"{target['found']:.2f}"
        print(f"{'met   ' if target['met'] else 'MISSED'} {target['what']}: {found} (wanted {target['wanted']:.2f})")
