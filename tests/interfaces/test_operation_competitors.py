"""Others' forms of the operations give the formula's results, as far as this machine can run them."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain import ops
from smallgpt.interfaces import operation_competitors
from smallgpt.interfaces.operation_competitors import apart, flex, flex_apart, liger_layer_norm, liger_loss, no_liger

QKV = (2, 33, 3, 2, 16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_competitors, "_compile", lambda operation: operation)
    qkv = torch.randn(QKV, generator=torch.Generator().manual_seed(0))
    expected = ops.causal_attention(qkv, 0.0)
    torch.testing.assert_close(flex(qkv, 0.0), expected)
    torch.testing.assert_close(flex_apart(0.0, *apart(qkv))[0], expected)


def test_flex_attention_says_that_it_has_no_dropout() -> None:
    with pytest.raises(NotImplementedError, match="FlexAttention has no dropout"):
        flex(torch.randn(QKV), 0.1)


def test_parts_are_those_of_the_packed_projection_and_contiguous() -> None:
    qkv = torch.randn(QKV)
    parts = apart(qkv)
    assert all(part.is_contiguous() for part in parts)
    assert torch.equal(torch.stack(parts), qkv.permute(2, 0, 3, 1, 4))


def test_liger_needs_its_package_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(operation_competitors, "find_spec", lambda name: None)
    assert no_liger(gpu) == no_liger(cpu) == "liger_kernel is not installed"
    monkeypatch.setattr(operation_competitors, "find_spec", lambda name: object())
    assert no_liger(cpu) == "it needs a GPU"
    assert no_liger(gpu) is None


class FakeLoss:
    """Takes what liger_kernel 0.6.4's function takes, in its order."""

    asked: dict[str, Any]

    @classmethod
    def apply(
        cls,
        x: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: None = None,
        ce_weight: None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, None, None]:
        cls.asked = {"gradients": x.requires_grad or weight.requires_grad, "sums": accum_dtype}
        assert (bias, ce_weight, lse_square_scale, label_smoothing, softcap, return_z_loss) == (
            None,
            None,
            0,
            0,
            None,
            False,
        )
        return F.cross_entropy(x @ weight.T, target, ignore_index=ignore_index, reduction=reduction), None, None


def test_ligers_loss_makes_gradients_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("fused_linear_cross_entropy")
    module.LigerFusedLinearCrossEntropyFunction = FakeLoss
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.fused_linear_cross_entropy", module)
    x, weight = (torch.randn(n, 8, requires_grad=True) for n in (5, 11))
    targets = torch.tensor([3, -100, 10, 0, 7])
    (loss,) = liger_loss(None, x, weight, targets)
    torch.testing.assert_close(loss, ops.linear_cross_entropy(x, weight, targets))
    assert FakeLoss.asked == {"gradients": True, "sums": None}
    with torch.no_grad():
        liger_loss(torch.float32, x, weight, targets)
    assert FakeLoss.asked == {"gradients": False, "sums": torch.float32}


def test_ligers_layer_norm_is_called_with_its_four_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeNorm:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
            return F.layer_norm(x, weight.shape, weight, bias, eps)

    module: Any = ModuleType("layer_norm")
    module.LigerLayerNormFunction = FakeNorm
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.layer_norm", module)
    x, delta, weight, bias = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8), torch.randn(8)
    torch.testing.assert_close(liger_layer_norm(x, weight, bias, 1e-5), ops.layer_norm(x, weight, bias, 1e-5))
    for found, expected in zip(
        operation_competitors.liger_add_layer_norm(x, delta, weight, bias, 1e-5),
        ops.add_layer_norm(x, delta, weight, bias, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
