"""Operations beside torch's own, forward and backward, at the sizes of the CPU presets and the seed.

`make bench` compares their ratios with a baseline: ratios.py.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from smallgpt.domain.ops import TORCH_OPS
from smallgpt.kernels.select import BACKENDS

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("implementation", ["torch's SDPA", "torch", "reference"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("batch", "block"), [(32, 128), (8, 256), (4, 512)])
def test_attention(benchmark: BenchmarkFixture, batch: int, block: int, dropout: float, implementation: str) -> None:
    ops = TORCH_OPS if implementation == "torch's SDPA" else BACKENDS[implementation]
    qkv = torch.randn(batch, block, 3, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(batch, block, 4, 64, dtype=torch.bfloat16)
    benchmark.extra_info["implementation"] = implementation
    benchmark.group = f"attention {batch} x {block} x 4 heads x 64, bf16, dropout {dropout}"
    benchmark(lambda: torch.autograd.backward(ops.causal_attention(qkv, dropout), upstream))


@pytest.mark.parametrize("implementation", ["full logits", "torch", "reference"])
@pytest.mark.parametrize("vocabulary", [2048, 50304])
def test_linear_cross_entropy(benchmark: BenchmarkFixture, vocabulary: int, implementation: str) -> None:
    ops = TORCH_OPS if implementation == "full logits" else BACKENDS[implementation]
    x = torch.randn(2048, 256, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, 256)).requires_grad_()
    targets = torch.randint(vocabulary, (2048,))
    benchmark.extra_info["implementation"] = implementation
    benchmark.group = f"linear cross-entropy 2048 x 256 x {vocabulary}, bf16 products"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = ops.linear_cross_entropy(x, weight, targets, 0.0, -100)
        torch.autograd.backward(loss)

    benchmark.pedantic(step, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
