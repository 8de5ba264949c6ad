"""From a trace to rows: every microsecond of a step lands in one row, of the right part and direction."""

from typing import Any

import pytest

from smallgpt.application.step_profile import IDLE, PART, PYTHON, STEP, Ceilings, Row, analyse
from smallgpt.application.trace_events import read_events

CEILINGS = Ceilings(flops_per_second=1e9, bytes_per_second=1e9)  # a FLOP and a byte take a nanosecond
NODE = "autograd::engine::evaluate_function: "


def event(name: str, start: float, duration: float, category: str = "cpu_op", **details: Any) -> dict[str, Any]:
    arguments = {key.replace("_", " "): value for key, value in details.items()}
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": start, "dur": duration} | {
        "args": arguments
    }


def of_part(name: str, start: float, duration: float) -> dict[str, Any]:
    return event(f"{PART}{name}", start, duration, "user_annotation")


MM: dict[str, Any] = {"Input Dims": [[10, 10], [10, 10]], "Input type": ["float", "float"]}  # 2,000 FLOPs, 1,200 bytes

TRACE = [
    event("ProfilerStep#3", 0, 1010, "user_annotation"),
    event(STEP, 0, 1000, "user_annotation"),
    of_part("data loading", 10, 50),
    of_part("MLP linear layers", 100, 100),
    event("aten::linear", 110, 80, Sequence_number=7),
    event("aten::mm", 120, 60, Sequence_number=7, **MM),
    of_part("MLP", 200, 100),
    event("aten::gelu", 210, 50, Sequence_number=8),
    event("aten::dropout", 265, 30, Sequence_number=9),
    event("aten::mul", 270, 20, Sequence_number=9),
    event(f"{NODE}MulBackward0", 310, 20, Sequence_number=9),
    event("aten::mul", 315, 10),
    event(f"{NODE}GeluBackward0", 340, 60, Sequence_number=8),
    event("aten::gelu_backward", 345, 50),
    event(f"{NODE}MmBackward0", 410, 200, Sequence_number=7),
    event("aten::mm", 420, 90, **MM),
    event("aten::mm", 515, 90, **MM),
    event(f"{NODE}torch::autograd::AccumulateGrad", 620, 30),
    event("aten::add_", 625, 20),
    event("aten::_foreach_norm", 700, 40),
    event("Optimizer.step#AdamW.step", 750, 200, "user_annotation"),
    event("aten::_fused_adamw_", 800, 100),
    event("aten::add", 1005, 3),  # after the step
    {"ph": "f", "cat": "fwdbwd", "name": "fwdbwd", "pid": 1, "tid": 1, "ts": 5},
]


def rows_of(trace: list[dict[str, Any]]) -> tuple[dict[tuple[str, str], Row], dict[tuple[str, str, str], Row]]:
    found = analyse(read_events({"traceEvents": list(reversed(trace))}), CEILINGS)
    parts = {(row.part, row.direction): row for row in found.parts}
    return parts, {(row.part, row.direction, str(row.operation)): row for row in found.operations}


def microseconds(parts: dict[tuple[str, str], Row]) -> dict[tuple[str, str], float]:
    return {key: round(1000 * row.milliseconds, 3) for key, row in parts.items()}


def test_every_microsecond_of_a_step_is_in_one_part() -> None:
    parts, operations = rows_of(TRACE)
    assert microseconds(parts) == {
        ("data loading", "forward"): 50,
        ("MLP linear layers", "forward"): 100,
        ("MLP linear layers", "backward"): 200,
        ("MLP", "forward"): 20,
        ("GELU", "forward"): 50,
        ("GELU", "backward"): 60,
        ("dropout", "forward"): 30,
        ("dropout", "backward"): 20,
        ("gradient accumulation", "backward"): 30,
        ("norm, check and clipping", "update"): 40,
        ("optimizer", "update"): 200,
        ("rest of the step", "forward"): 200,
    }
    assert sum(row.share for row in parts.values()) == pytest.approx(1)
    assert sum(row.milliseconds for row in operations.values()) == pytest.approx(1)


def test_a_row_says_what_was_done_and_how_near_to_the_ceilings() -> None:
    _, operations = rows_of(TRACE)
    row = operations["MLP linear layers", "backward", "mm"]
    assert (row.calls, row.flops, row.bytes) == (2, 4000, 2400)
    assert row.milliseconds == pytest.approx(0.18)
    assert row.flops_per_second == pytest.approx(4000 / 180e-6)
    assert row.of_matmul_ceiling == pytest.approx(4000 / 180e-6 / 1e9)
    assert row.of_copy_ceiling == pytest.approx(2400 / 180e-6 / 1e9)
    assert row.bound == "compute"
    assert operations["optimizer", "update", PYTHON].bound == "overhead"


def test_the_nearest_bound_is_the_one_with_the_longest_least_time() -> None:
    copy: dict[str, Any] = {
        "Input Dims": [[1000], [1000]],
        "Input type": ["float", "float"],
    }  # 8 µs at a byte a nanosecond
    view = [event("aten::view", 200 + 10 * n, 5) for n in range(3)]  # a call costs 5 µs
    trace = [event(STEP, 0, 300), event("aten::copy_", 10, 50, **copy), event("aten::exp", 100, 50), *view]
    _, operations = rows_of(trace)
    bounds = {name: row.bound for (_, _, name), row in operations.items()}
    assert bounds == {"copy_": "memory", "exp": "overhead", "view": "overhead", PYTHON: "overhead"}


def test_numbers_are_means_over_the_steps() -> None:
    later = [{**e, "ts": e["ts"] + 2000} for e in TRACE]
    for e in later:
        if "Sequence number" in e.get("args", {}):
            e["args"] = {**e["args"], "Sequence number": e["args"]["Sequence number"] + 10}
    parts, operations = rows_of([*TRACE, *later])
    assert microseconds(parts) == microseconds(rows_of(TRACE)[0])
    assert operations["MLP linear layers", "backward", "mm"].calls == 2


def test_what_a_custom_function_does_is_its_parts_whatever_it_calls() -> None:
    trace = [
        event(STEP, 0, 200),
        of_part("attention", 10, 100),
        event("_BlockwiseAttention", 20, 80, Sequence_number=5),
        event("aten::to", 30, 20),
        event("aten::to", 105, 5),
        event(f"{NODE}_BlockwiseAttentionBackward", 130, 50, Sequence_number=5),
        event("aten::to", 140, 20),
    ]
    parts = microseconds(rows_of(trace)[0])
    assert parts["attention", "forward"] == 95
    assert parts["casts and copies", "forward"] == 5
    assert parts["casts and copies", "backward"] == 20
    assert parts["attention", "backward"] == 30


def test_the_maker_of_a_node_is_the_last_to_start_with_its_number() -> None:
    """An operation that makes no node shows the number of the next one."""
    trace = [
        event(STEP, 0, 200),
        of_part("embedding", 10, 30),
        event("aten::arange", 15, 10, Sequence_number=5),
        of_part("layer norm", 50, 30),
        event("aten::layer_norm", 55, 20, Sequence_number=5),
        event(f"{NODE}NativeLayerNormBackward0", 100, 50, Sequence_number=5),
    ]
    parts = rows_of(trace)[0]
    assert ("layer norm", "backward") in parts
    assert ("embedding", "backward") not in parts


def test_kernels_count_where_there_are_any_and_the_rest_is_idle() -> None:
    trace = [
        event(STEP, 0, 1000),
        of_part("MLP linear layers", 10, 100),
        event("aten::mm", 20, 30, External_id=42, **MM),
        event("sm90_gemm", 60, 400, "kernel", External_id=42),
        event("replayed", 500, 100, "kernel"),
        event("sm90_gemm", 2000, 100, "kernel", External_id=99),
    ]
    found = analyse(read_events({"traceEvents": trace}), CEILINGS)
    rows = {(row.part, row.operation): row for row in found.operations}
    assert found.clock == "kernels"
    assert rows["MLP linear layers", "mm"].milliseconds == pytest.approx(0.4)
    assert rows["MLP linear layers", "mm"].flops == 2000
    assert rows["rest of the step", "replayed"].milliseconds == pytest.approx(0.1)
    assert rows["rest of the step", IDLE].milliseconds == pytest.approx(0.5)
    assert sum(row.milliseconds for row in found.parts) == pytest.approx(1)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no complete training step"):
        analyse(read_events({"traceEvents": [event("aten::mm", 0, 1)]}), CEILINGS)
