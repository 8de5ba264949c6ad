"""The least work of an operation, against counts made by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smallgpt.application.operation_costs import (
    Direction,
    Work,
    attention_bytes,
    attention_flops,
    layer_norm_bytes,
    layer_norm_flops,
    linear_cross_entropy_bytes,
    linear_cross_entropy_flops,
)


def test_attention_is_half_of_what_the_unmasked_products_are() -> None:
    B, T, H, D = 2, 24, 3, 8
    q, k, v = (torch.randn(B, H, T, D) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        (q @ k.transpose(-2, -1)).softmax(-1) @ v
    assert attention_flops(B, T, H, D, "forward") == counter.get_total_flops() / 2
    assert attention_flops(B, T, H, D, "backward") == 2.5 * counter.get_total_flops() / 2


def test_cross_entropy_is_the_three_products() -> None:
    x, weight = torch.randn(10, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        logits = x @ weight.T
        forward = counter.get_total_flops()
        torch.autograd.backward(logits, torch.ones_like(logits))
    assert linear_cross_entropy_flops(10, 8, 50, "forward") == forward
    assert linear_cross_entropy_flops(10, 8, 50, "both") == counter.get_total_flops()


@pytest.mark.parametrize(
    ("add", "tensors"), [(False, {"forward": 2, "backward": 3}), (True, {"forward": 4, "backward": 4})]
)
def test_layer_norm_moves_every_tensor_once(add: bool, tensors: dict[str, int]) -> None:
    assert layer_norm_bytes(100, 64, 2, "forward", add=add) == tensors["forward"] * 100 * 64 * 2
    assert layer_norm_bytes(100, 64, 4, "backward", add=add) == tensors["backward"] * 100 * 64 * 4


def test_both_is_forward_and_backward() -> None:
    ways: list[Direction] = ["forward", "backward", "both"]
    for forward, backward, both in (
        [attention_flops(2, 24, 3, 8, way) for way in ways],
        [linear_cross_entropy_flops(10, 8, 50, way) for way in ways],
        [layer_norm_bytes(100, 64, 2, way, add=True) for way in ways],
        [attention_bytes(2, 24, 3, 8, 2, way) for way in ways],
        [linear_cross_entropy_bytes(10, 8, 50, 2, way) for way in ways],
        [layer_norm_flops(100, 64, way, add=True) for way in ways],
    ):
        assert both == forward + backward


def test_attention_moves_no_scores_and_cross_entropy_no_logits() -> None:
    one = 2 * 24 * 3 * 8 * 4  # a (B, T, H, D) tensor
    assert attention_bytes(2, 24, 3, 8, 4, "forward") == 4 * one
    assert attention_bytes(2, 24, 3, 8, 4, "backward") == 8 * one
    assert linear_cross_entropy_bytes(10, 8, 50, 2, "forward") == (10 + 50) * 8 * 2
    assert linear_cross_entropy_bytes(10, 8, 50, 2, "backward") == 2 * (10 + 50) * 8 * 2


def test_layer_norm_counts_the_additions_and_products_of_the_formula() -> None:
    assert layer_norm_flops(10, 8, "forward") == 7 * 80
    assert layer_norm_flops(10, 8, "backward", add=True) == 14 * 80


def test_intensity_is_flops_a_byte() -> None:
    assert Work(flops=12.0, bytes=3.0).intensity == 4.0
