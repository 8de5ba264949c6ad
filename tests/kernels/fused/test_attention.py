"""The Triton attention kernels against a float64 formula: single tile and two stages, forwards, backwards and with dropout."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from smallgpt.domain.errors import HardwareError
from smallgpt.kernels import launching, tiles
from smallgpt.kernels.attention import fused
from tests.kernels.fused.parity import DTYPES, assert_as_good_as_eager
from tests.kernels.memory import Memory

SHAPES = [  # (B, T, H, D)
    (1, 1, 1, 16),  # the first token of a text; every count is 1, which Triton compiles as a constant
    (2, 7, 3, 16),  # nothing is a multiple of anything
    (1, 64, 2, 32),  # exactly the smaller single tile
    (2, 65, 1, 48),  # one token more, and a head size that is no power of two
    (1, 100, 1, 128),  # the larger tile, part of it empty, and the largest head
    (1, 128, 2, 64),  # all of it: the seed's context and head size
    (1, 129, 1, 64),  # two stages, the second block with a single query
    (2, 200, 2, 16),  # a masked tail in the last block
    (1, 256, 1, 80),  # whole blocks and a padded head
    (1, 300, 1, 96),  # several blocks before the diagonal one
]
SMALL_TILES = {  # a single tile in two steps; blocks of which the owned side holds several taken ones
    "one_tile_forward_64": {"BLOCK_M": 32, "num_warps": 4, "num_stages": 1},
    "one_tile_backward_64": {"BLOCK_M": 32, "num_warps": 4, "num_stages": 1},
    "one_tile_forward_128": {"BLOCK_M": 64, "num_warps": 4, "num_stages": 1},
    "one_tile_backward_128": {"BLOCK_M": 32, "num_warps": 4, "num_stages": 1},
    "two_stage_forward": {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1},
    "two_stage_backward": {
        "BLOCK_M1": 16, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 16, "num_warps": 4, "num_stages": 1,
    },
}  # fmt: skip


@contextmanager
def small_tiles() -> Iterator[None]:
    with ExitStack() as stack:
        for kernel, entry in SMALL_TILES.items():
            for suffix in ("", "_dropout"):
                stack.enter_context(tiles.forced("attention", kernel + suffix, entry))
        yield


def formula(qkv: Tensor, weights_kept: Tensor | None = None) -> Tensor:
    """Softmax attention under a causal mask in qkv's dtype; weights_kept (B, H, T, T) multiplies the softmax."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
    future = torch.ones(q.size(2), q.size(2), dtype=torch.bool, device=q.device).triu(1)
    p = (q @ k.transpose(-2, -1) / sqrt(q.size(-1))).masked_fill(future, -torch.inf).softmax(-1)
    p = p if weights_kept is None else p * weights_kept.to(p.dtype)
    y: Tensor = p @ v
    return y.transpose(1, 2)


def normal(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


def compare(qkv: Tensor, found: Tensor, upstream: Tensor, kept: Tensor | None = None) -> None:
    """found came from fused on qkv: hold it and the gradient against eager and float64."""
    torch.autograd.backward(found, upstream)
    results = []
    for dtype in (qkv.dtype, torch.float64):
        leaf = qkv.detach().to(dtype).requires_grad_()
        y = formula(leaf, kept)
        results.append((y, *torch.autograd.grad(y, leaf, upstream.to(dtype))))
    (eager, eager_gradient), (exact, exact_gradient) = results
    assert_as_good_as_eager(found, eager, exact, qkv.dtype, "y")
    assert qkv.grad is not None
    for part, name in enumerate(("dq", "dk", "dv")):
        ours, eager, exact = (gradient.select(2, part) for gradient in (qkv.grad, eager_gradient, exact_gradient))
        assert_as_good_as_eager(ours, eager, exact, qkv.dtype, name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients_are_as_good_as_eager(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, memory: Memory
) -> None:
    B, T, H, D = shape
    qkv = memory.guard(normal(device, dtype, B, T, 3, H, D).requires_grad_())
    upstream = memory.guard(normal(device, dtype, B, T, H, D))
    compare(qkv, fused.causal_attention(qkv, 0.0), upstream)


@pytest.mark.parametrize("shape", [(1, 50, 1, 16), (2, 97, 1, 32), (1, 128, 1, 64), (1, 147, 1, 48)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_other_tiles_give_the_same_function(
    shape: tuple[int, ...], dtype: torch.dtype, dropout: float, device: torch.device
) -> None:
    """fp32 takes two stages at every length by the tables; here also the single tile, and by steps."""
    B, T, H, D = shape
    qkv = normal(device, dtype, B, T, 3, H, D).requires_grad_()
    seed = torch.tensor([2**40 + 3], device=device) if dropout else None
    kept = kept_weights(B, T, H, dropout, seed) if seed is not None else None
    with small_tiles():
        compare(qkv, attend(qkv, seed, dropout), normal(device, dtype, B, T, H, D), kept)


def attend(qkv: Tensor, seed: Tensor | None, dropout: float) -> Tensor:
    y: Tensor = fused._CausalAttention.apply(qkv, seed, dropout)  # type: ignore[no-untyped-call]
    return y


def kept_weights(B: int, T: int, H: int, dropout: float, seed: Tensor) -> Tensor:
    """(B, H, T, T): what the kernel multiplies each weight by, read off by attending to one-hot values.

    With q = k = 0 the weights of query t are equal, and a value that is 1 at one key shows whether that key's stayed.
    """
    stayed = torch.zeros(B, H, T, T, dtype=torch.bool, device=seed.device)
    for start in range(0, T, 128):
        width = min(128, T - start)
        qkv = torch.zeros(B, T, 3, H, 128, dtype=torch.float16, device=seed.device)
        qkv[:, start : start + width, 2, :, :width] = torch.eye(width, device=seed.device)[:, None]
        y, _ = fused.launch_forward(qkv, seed, dropout)  # (B, T, H, 128)
        stayed[..., start : start + width] = y[..., :width].transpose(1, 2) > 0
    return stayed * (256 / fused.keep_of_256(dropout))


@pytest.mark.parametrize("T", [40, 128, 150])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_is_the_same_in_forward_and_backward(T: int, dtype: torch.dtype, device: torch.device) -> None:
    qkv = normal(device, dtype, 1, T, 3, 2, 32).requires_grad_()
    seed = torch.tensor([7], device=device)
    kept = kept_weights(1, T, 2, 0.3, seed)
    assert (kept == 0).any()
    compare(qkv, attend(qkv, seed, 0.3), normal(device, dtype, 1, T, 2, 32), kept)


def test_the_mask_does_not_depend_on_tiles_batch_or_dtype(device: torch.device) -> None:
    seed = torch.tensor([11], device=device)
    kept = kept_weights(2, 140, 1, 0.4, seed)
    with small_tiles():
        assert torch.equal(kept > 0, kept_weights(2, 140, 1, 0.4, seed) > 0)
    assert torch.equal(kept[:1, :, :90, :90] > 0, kept_weights(1, 90, 1, 0.4, seed) > 0), "nor on what follows"


def test_as_many_weights_stay_as_were_asked_for(device: torch.device) -> None:
    kept = kept_weights(1, 160, 4, 0.25, torch.tensor([5], device=device))
    past = torch.ones(160, 160, dtype=torch.bool, device=device).tril()
    seen = kept[..., past]  # (1, 4, pairs)
    n, p = seen.numel(), 0.75
    assert abs((seen > 0).sum().item() - n * p) < 5 * sqrt(n * p * (1 - p))
    heads = (seen > 0).flatten(0, 1).double()  # every head its own mask
    agreement = (heads[:, None] == heads[None]).double().mean(-1)
    assert agreement[~torch.eye(4, dtype=torch.bool, device=device)].max() < 0.75**2 + 0.25**2 + 0.03


@pytest.mark.parametrize(("dropout", "n"), [(0.001, 256), (0.1, 230), (0.5, 128), (0.9999, 1)])
def test_the_probability_is_rounded_to_a_256th_and_survivors_scaled_by_it(
    dropout: float, n: int, device: torch.device
) -> None:
    assert fused.keep_of_256(dropout) == n
    qkv = torch.zeros(1, 64, 3, 4, 16, device=device)
    qkv[:, :, 2] = 1
    y, _ = fused.launch_forward(qkv, torch.tensor([1], device=device), dropout)  # sums of weights that stayed
    kept = kept_weights(1, 64, 4, dropout, torch.tensor([1], device=device)).sum(-1)  # (1, 4, 64)
    torch.testing.assert_close(y[..., 0].transpose(1, 2), kept / torch.arange(1, 65, device=device))


def test_dropout_repeats_with_torchs_seed_and_changes_without(device: torch.device) -> None:
    qkv = normal(device, torch.float32, 1, 40, 3, 1, 16)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append([fused.causal_attention(qkv, 0.5) for _ in range(2)])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[0][1])
    assert not torch.equal(results[0][0], results[2][0])
    before = torch.get_rng_state()
    fused.causal_attention(qkv, 0.0)
    assert torch.equal(torch.get_rng_state(), before), "without dropout nothing is drawn"


@pytest.mark.parametrize("T", [90, 170])
def test_the_future_is_not_seen(T: int, device: torch.device) -> None:
    qkv = normal(device, torch.float32, 1, T, 3, 1, 32)
    changed = qkv.clone()
    changed[:, T // 2 :] = 1e4 * normal(device, torch.float32, 1, T - T // 2, 3, 1, 32)
    before, after = fused.causal_attention(qkv, 0.0), fused.causal_attention(changed, 0.0)
    assert torch.equal(before[:, : T // 2], after[:, : T // 2])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("T", [70, 140])
def test_a_sequence_does_not_depend_on_the_batch_and_results_repeat(T: int, device: torch.device) -> None:
    qkv, upstream = normal(device, torch.float16, 3, T, 3, 2, 16), normal(device, torch.float16, 3, T, 2, 16)

    def both(rows: slice) -> tuple[Tensor, Tensor]:
        leaf = qkv[rows].clone().requires_grad_()
        y = fused.causal_attention(leaf, 0.0)
        return y.detach(), torch.autograd.grad(y, leaf, upstream[rows])[0]

    together = both(slice(0, 3))
    assert all(torch.equal(a, b) for a, b in zip(together, both(slice(0, 3)), strict=True))
    for row in range(3):
        alone = both(slice(row, row + 1))
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together, alone, strict=True))


def strided_views(device: torch.device) -> dict[str, Tensor]:
    """(2, 30, 3, 2, 16) in unusual places."""
    return {
        "transposed": torch.randn(30, 2, 3, 2, 16, device=device).transpose(0, 1),
        "heads first": torch.randn(2, 2, 3, 30, 16, device=device).permute(0, 3, 2, 1, 4),
        "gaps": torch.randn(2, 60, 3, 2, 20, device=device)[:, ::2, :, :, :16],
        "expanded": torch.randn(1, 30, 3, 2, 16, device=device).expand(2, -1, -1, -1, -1),
        "columns apart": torch.randn(2, 30, 3, 2, 32, device=device)[..., ::2],
        "parts apart": torch.randn(3, 2, 30, 2, 16, device=device).permute(1, 2, 0, 3, 4),
    }


@pytest.mark.parametrize("name", list(strided_views(torch.device("cpu"))))
def test_strides_do_not_matter(name: str, device: torch.device, memory: Memory) -> None:
    qkv = strided_views(device)[name]
    upstream = torch.randn(2, 2, 30, 16, device=device).transpose(1, 2)
    plain_leaf = qkv.contiguous().requires_grad_()
    expected = fused.causal_attention(plain_leaf, 0.0)
    torch.autograd.backward(expected, upstream.contiguous())
    leaf = qkv.detach().requires_grad_() if name == "expanded" else memory.guard(qkv.requires_grad_(), offset=1)
    y = fused.causal_attention(leaf, 0.0)
    torch.autograd.backward(y, upstream)
    assert torch.equal(y, expected)
    assert leaf.grad is not None
    assert plain_leaf.grad is not None
    assert torch.equal(leaf.grad, plain_leaf.grad)


@pytest.mark.parametrize("shape", [(0, 5, 2, 16), (2, 0, 2, 16)], ids=str)
def test_nothing_gives_nothing(shape: tuple[int, ...], device: torch.device) -> None:
    B, T, H, D = shape
    qkv = torch.randn(B, T, 3, H, D, device=device, requires_grad=True)
    y = fused.causal_attention(qkv, 0.0)
    assert y.shape == (B, T, H, D)
    torch.autograd.backward(y.sum())
    assert qkv.grad is not None
    assert qkv.grad.shape == qkv.shape


def test_large_scores_neither_overflow_nor_lose_the_largest(device: torch.device) -> None:
    qkv = normal(device, torch.float32, 1, 140, 3, 1, 32) * 100
    y = fused.causal_attention(qkv, 0.0)
    assert (y.double() - formula(qkv.double())).abs().max() < 0.05  # of values around 100


@pytest.mark.parametrize("T", [33, 150])
def test_a_compiled_graph_has_no_breaks_and_the_same_results(T: int, device: torch.device) -> None:
    qkv, upstream = normal(device, torch.float32, 1, T, 3, 2, 16), normal(device, torch.float32, 1, T, 2, 16)
    compiled = torch.compile(fused.causal_attention, fullgraph=True, backend="aot_eager")
    results = []
    for function in (fused.causal_attention, compiled):
        leaf = qkv.clone().requires_grad_()
        y = function(leaf, 0.0)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, upstream)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    compiled(qkv.clone().requires_grad_(), 0.1)  # the seed is drawn in the graph
    torch._dynamo.reset()


@pytest.mark.parametrize("T", [33, 150])
def test_the_operators_are_what_they_are_declared_to_be(
    T: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # opcheck compares storage offsets, which guards move
    qkv = normal(device, torch.float16, 2, T, 3, 2, 16)
    seed = torch.tensor([3], device=device)
    permuted = normal(device, torch.float16, T, 2, 3, 2, 16).transpose(0, 1)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # the fourth is the compiled test above
    for x in (qkv, permuted):
        opcheck(fused.FORWARD, (x, seed, 0.5), test_utils=tests)
        y, lse = fused.FORWARD(x, seed, 0.5)
        saved = (y, lse) if lse.numel() else (None, None)
        opcheck(fused.BACKWARD, (y, x, *saved, seed, 0.5), test_utils=tests)


def test_autocast_decides_the_dtype(device: torch.device) -> None:
    qkv = normal(device, torch.float32, 1, 20, 3, 1, 16).requires_grad_()
    with torch.autocast(device.type, torch.float16):
        y = fused.causal_attention(qkv, 0.0)
    assert y.dtype == torch.float16
    torch.autograd.backward(y.sum())
    assert qkv.grad is not None
    assert qkv.grad.dtype == torch.float32


def test_a_second_derivative_is_refused(device: torch.device) -> None:
    qkv = normal(device, torch.float32, 1, 8, 3, 1, 16).requires_grad_()
    y = fused.causal_attention(qkv, 0.0)
    with pytest.raises(RuntimeError, match=r'attention: .* no second derivative .*kernels="reference"'):
        torch.autograd.grad(y.pow(2).sum(), qkv, create_graph=True)


@pytest.mark.parametrize(
    ("make", "dropout", "words"),
    [
        (lambda d: torch.randn(2, 8, 2, 16, device=d), 0.0, r"attention: qkv is \(2, 8, 2, 16\); give .*\(B, T, 3, H, D\)"),
        (lambda d: torch.randn(2, 8, 2, 2, 16, device=d), 0.0, r"attention: qkv is \(2, 8, 2, 2, 16\)"),
        (lambda d: torch.randn(1, 8, 3, 1, 129, device=d), 0.0, "head size of 129 .*--model.n-head"),
        (lambda d: torch.randn(1, 8, 3, 1, 16, device=d).double(), 0.0, "qkv is float64.*reference"),
        (lambda d: torch.randn(1, 8, 3, 1, 16, device=d), 1.0, "dropout is 1.0; give a probability"),
        (lambda d: torch.randn(1, 8, 3, 1, 16, device=d), -0.1, "dropout is -0.1"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_value_and_a_remedy(
    make: Any, dropout: float, words: str, device: torch.device
) -> None:
    with pytest.raises(ValueError, match=words):
        fused.causal_attention(make(device), dropout)


def test_a_cpu_without_the_interpreter_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "INTERPRETING", False)
    with pytest.raises(HardwareError, match=r"attention: .*need a GPU, and .*TRITON_INTERPRET=1"):
        fused.causal_attention(torch.randn(1, 4, 3, 1, 16), 0.0)
