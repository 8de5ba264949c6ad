"""FLOPs and bytes of a call from what a profiler records of it."""

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from smallgpt.application.recorded_costs import recorded_bytes, recorded_flops

F32, BF16, IDS = "float", "c10::BFloat16", "long int"


@pytest.mark.parametrize(
    ("name", "shapes", "flops"),
    [
        ("aten::mm", [[3, 5], [5, 7]], 2 * 3 * 5 * 7),
        ("aten::addmm", [[7], [3, 5], [5, 7], [], []], 2 * 3 * 5 * 7),  # alpha and beta have no shape
        ("aten::addmm_", [[3, 7], [3, 5], [5, 7], [], []], 2 * 3 * 5 * 7),
        ("aten::bmm", [[4, 3, 5], [4, 5, 7]], 4 * 2 * 3 * 5 * 7),
        ("aten::mul", [[3, 5], [3, 5]], 0),
        ("aten::mm", [], 0),  # shapes were not recorded
        ("smallgpt::something", [[3, 5], [5, 7]], 0),
    ],
)
def test_flops_are_those_of_the_products(name: str, shapes: list[Any], flops: int) -> None:
    assert recorded_flops(name, shapes) == flops


@pytest.mark.parametrize(
    ("name", "shapes", "types", "expected"),
    [
        ("aten::mm", [[3, 5], [5, 7]], [BF16, BF16], 2 * (15 + 35 + 21)),
        ("aten::addmm", [[7], [3, 5], [5, 7], [], []], [F32, F32, F32, "Scalar", "Scalar"], 4 * (7 + 15 + 35 + 21)),
        ("aten::mul", [[8, 16], [8, 16]], [F32, F32], 4 * 3 * 128),
        ("aten::mul", [[8, 16], []], [F32, "double"], 4 * 2 * 128),
        ("aten::mul_", [[8, 16], [1, 16]], [F32, F32], 4 * (128 + 16 + 128)),
        ("aten::copy_", [[8, 16], [8, 16], []], [BF16, F32, "Scalar"], (2 + 4) * 128),
        ("aten::zero_", [[8, 16]], [F32], 4 * 128),
        ("aten::bernoulli_", [[8, 16], [], []], [F32, "Scalar", ""], 4 * 128),
        ("aten::sum", [[8, 16], [], [], []], [F32, "ScalarList", "Scalar", ""], 4 * 128),
        ("aten::view", [[8, 16], []], [F32, "ScalarList"], 0),
        ("aten::embedding", [[1000, 16], [2, 8]], [F32, IDS], 2 * 4 * 16 * 16 + 16 * 8),
        ("aten::gather", [[8, 1000], [], [8, 1]], [F32, "Scalar", IDS], 2 * 4 * 8 + 8 * 8),
        ("aten::_fused_adamw_", [[[8], [2, 3]], [[8], [2, 3]], []], ["TensorList", "TensorList", ""], 4 * 3 * 14),
        (
            "aten::_foreach_norm",
            [[], [], []],
            ["TensorList", "Scalar", ""],
            0,
        ),  # a long list is recorded without shapes
    ],
)
def test_bytes_are_operands_and_results_once_each(
    name: str, shapes: list[Any], types: list[str], expected: int
) -> None:
    assert recorded_bytes(name, shapes, types) == expected


def test_the_costs_are_those_of_what_torch_records() -> None:
    a, b = torch.randn(16, 32), torch.randn(32, 24)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        torch.addmm(torch.randn(24), a, b)
    (event,) = [e for e in recorded.events() or [] if e.name == "aten::addmm"]
    assert recorded_flops(event.name, event.input_shapes) == 2 * 16 * 32 * 24
