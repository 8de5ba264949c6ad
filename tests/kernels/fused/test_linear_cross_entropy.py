"""Both designs of linear + cross-entropy in Triton: loss and gradients against float64, and what must hold bit for bit.

Tiles are made small where a case needs several of them: the interpreter's own are as large as a GPU's.
"""

from contextlib import ExitStack

import pytest
import torch

from smallgpt.domain import ops as eager
from smallgpt.domain.ops import LinearCrossEntropy, Reduction
from smallgpt.kernels.linear_cross_entropy import chunked, flash, fused
from tests.kernels.fused.cross_entropies import (
    SMALL,
    assert_parity,
    assert_same,
    each_design,
    each_dtype,
    problem,
    results,
    small_tiles,
)
from tests.kernels.fused.parity import FLOOR, STRIDED
from tests.kernels.memory import Memory

SHAPES = [  # (N, C, V)
    (1, 16, 1),  # counts that Triton makes constants of; one id has probability 1
    (1, 8, 5),  # a single prediction, from half a tile of columns
    (33, 32, 101),  # nothing is a multiple of anything
    (16, 64, 64),  # everything is
    (17, 96, 257),  # a padded width; one id past a power of two
    (5, 40, 1000),  # far more ids than rows
    (13, 256, 90),  # the widest single part of a row
    (9, 384, 70),  # two parts, 256 and 128
    (9, 270, 40),  # two parts, the second nearly empty and no row aligned
]
OPTIONS = {  # (label_smoothing, z_loss, reduction)
    "plain": (0.0, 0.0, "mean"),
    "smoothed": (0.1, 0.0, "sum"),
    "only smooth": (1.0, 0.0, "mean"),
    "z-loss": (0.0, 0.02, "mean"),
    "rows": (0.0, 0.0, "none"),
    "everything": (0.1, 0.02, "none"),
}


@each_design
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(
    op: LinearCrossEntropy, dtype: torch.dtype, shape: tuple[int, int, int], device: torch.device, memory: Memory
) -> None:
    x, weight, targets = (memory.guard(t) for t in problem(shape, device, dtype))
    assert_parity(op, x, weight, targets, 0.1, -100, 0.02, "mean")


@each_design
@each_dtype
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_in_many_small_tiles(
    op: LinearCrossEntropy,
    dtype: torch.dtype,
    options: tuple[float, float, str],
    device: torch.device,
    memory: Memory,
) -> None:
    smoothing, z_loss, reduction = options
    x, weight, targets = (memory.guard(t) for t in problem((19, 32, 70), device, dtype))
    with small_tiles():
        assert_parity(op, x, weight, targets, smoothing, -100, z_loss, reduction)


@pytest.mark.parametrize("V", [16, 33, 80, 81])
def test_splits_of_the_vocabulary_that_are_not_equal(V: int, device: torch.device) -> None:
    """One block for one split; 3 blocks for 3; 5 for 4, of which one has none; 6 for 4, of which one has none."""
    with small_tiles():
        assert_parity(fused.linear_cross_entropy_flash, *problem((5, 16, V), device), 0.1, -100, 0.02, "mean")


@pytest.mark.parametrize("V", [32, 33, 95, 96])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_passes_over_a_row_that_are_not_full(V: int, smoothing: float, device: torch.device) -> None:
    with small_tiles():
        assert_parity(fused.linear_cross_entropy_chunked, *problem((3, 16, V), device), smoothing)


def test_uneven_tiles(device: torch.device) -> None:
    tiles = {**SMALL, "BLOCK_ROWS": 32}, {**SMALL, "BLOCK_V": 64, "BLOCK_ROWS": 32}
    with small_tiles(*tiles):
        for shape in ((32, 270, 48), (33, 48, 130)):
            assert_parity(fused.linear_cross_entropy_flash, *problem(shape, device), 0.1, -100, 0.0, "none")


def test_widths_that_flash_does_not_take_are_chunked(device: torch.device) -> None:
    operands = problem((4, 400, 31), device)
    assert_parity(fused.linear_cross_entropy, *operands)
    with pytest.raises(ValueError, match=r"^linear_cross_entropy: width 400 is over the 384 .* triton-chunked$"):
        fused.linear_cross_entropy_flash(*operands)


@each_design
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("view", ["rows apart", "columns apart", "transposed"])
def test_strides_and_offsets_do_not_matter(
    op: LinearCrossEntropy, view: str, offset: int, device: torch.device, memory: Memory
) -> None:
    x, weight, targets = problem((19, 40, 33), device, torch.float16)
    expected = results(op, x, weight, targets, 0.1, upstream=torch.ones((), device=device))
    strided = [memory.guard(STRIDED[view](t.detach()).requires_grad_(), offset) for t in (x, weight)]
    spaced = memory.guard(torch.stack([targets, targets], 1)[:, 0], offset)
    found = results(op, *strided, spaced, 0.1, upstream=torch.ones((), device=device))
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=FLOOR[torch.float16])


@each_design
def test_one_row_for_all(op: LinearCrossEntropy, device: torch.device) -> None:
    """Strides of 0: an expanded x, and the upstream gradient of sum()."""
    x, weight, targets = problem((7, 24, 33), device, ignored=False)
    one = x.detach()[:1].expand(7, 24)
    losses = op(one, weight, targets, 0.0, -100, 0.0, "none")
    expected = op(one.contiguous(), weight, targets, 0.0, -100, 0.0, "sum")
    (found,), (wanted,) = (torch.autograd.grad(loss.sum(), weight) for loss in (losses, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@each_design
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("N", [0, 5])
def test_no_rows_and_only_ignored_ones(
    op: LinearCrossEntropy, reduction: str, N: int, device: torch.device, memory: Memory
) -> None:
    """The mean of nothing is nan and its gradients are 0, as in torch."""
    x, weight, _ = problem((N, 16, 9), device) if N else (*problem((1, 16, 9), device)[:2], None)
    x = x[:N].detach().requires_grad_()
    targets = torch.full((N,), -100, device=device)
    for function in (op, eager.linear_cross_entropy):
        loss, dx, dweight = results(function, x, weight, targets, 0.1, -100, 0.02, reduction)
        assert loss.shape == ((N,) if reduction == "none" else ())
        assert loss.isnan().all() if reduction == "mean" else not loss.any()
        assert dx.shape == x.shape
        assert not dx.any()
        assert not dweight.any()


@each_design
def test_any_id_can_mean_no_target(op: LinearCrossEntropy, device: torch.device) -> None:
    x, weight, targets = problem((10, 16, 9), device, ignored=False)
    targets[::3] = 4
    with small_tiles():
        assert_parity(op, x, weight, targets, 0.1, 4)
        losses, dx, _ = results(op, x, weight, targets, 0.1, 4, 0.02, "none")
    assert not losses[::3].any()
    assert not dx[::3].any()
    assert losses[1::3].all()


@each_design
def test_the_weights_row_of_an_ignored_target_is_not_read(op: LinearCrossEntropy, device: torch.device) -> None:
    x, weight, targets = problem((6, 16, 9), device)
    far = torch.where(targets == -100, -(10**13), targets)
    assert_same(
        results(op, x, weight, far, 0.1, -(10**13), upstream=torch.ones(())),
        results(op, x, weight, targets, 0.1, -100, upstream=torch.ones(())),
    )


@each_design
@pytest.mark.parametrize("wrong", [-1, 9, 10**13, -(10**13)])
def test_targets_that_are_no_ids(
    op: LinearCrossEntropy, wrong: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU nobody waits to look at them: what they touch is nan, and nothing is read that is not there."""
    x, weight, targets = problem((4, 16, 9), device, ignored=False)
    targets[2] = wrong
    if device.type == "cpu":
        with pytest.raises(ValueError, match=f"^linear_cross_entropy: target {wrong} is no row of a weight of 9; give"):
            op(x, weight, targets)
        for module in (chunked, flash):
            monkeypatch.setattr(module, "check_targets", lambda *_: None)
    for tiles in (ExitStack(), small_tiles()):
        with tiles:
            losses, dx, dweight = results(op, x, weight, targets, 0.1, -100, 0.0, "none")
            others = results(op, x[:2], weight, targets[:2], 0.1, -100, 0.0, "none")[0]
            assert op(x, weight, targets).isnan()
        assert losses.isnan().tolist() == [False, False, True, False]
        torch.testing.assert_close(losses[:2], others)
        assert dx[2].isnan().all()
        assert dweight.isnan().all()


@each_design
def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary(op: LinearCrossEntropy, device: torch.device) -> None:
    x, targets = torch.randn(3, 16, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    log_77 = torch.tensor(77.0, device=device).log()
    for smoothing, z_loss in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.5)):
        loss = op(x, torch.zeros(77, 16, device=device), targets, smoothing, -100, z_loss)
        torch.testing.assert_close(loss, log_77 + z_loss * log_77**2)


@each_design
def test_logits_in_the_thousands_stay_finite(op: LinearCrossEntropy, device: torch.device) -> None:
    x, weight, targets = problem((9, 32, 70), device)
    x = (1000 * x).detach().requires_grad_()
    with small_tiles():
        assert_parity(op, x, weight, targets, 0.1, -100, 0.0, "none")


@each_design
def test_a_constant_added_to_every_logit_changes_nothing(op: LinearCrossEntropy, device: torch.device) -> None:
    x, weight, targets = problem((9, 16, 30), device)
    shifted = (weight + torch.randn(16, device=device)).detach().requires_grad_()
    one = torch.ones((), device=device)
    expected = results(op, x, weight, targets, 0.1, upstream=one)
    for found, wanted in zip(results(op, x, shifted, targets, 0.1, upstream=one), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@each_design
def test_with_equal_rows_of_weights_x_gets_no_gradient(op: LinearCrossEntropy, device: torch.device) -> None:
    """Because the slopes of a row's logits sum to 0; so do the gradients of an id's weights over the ids."""
    x, weight, targets = problem((9, 16, 30), device)
    equal = weight.detach()[:1].expand(30, 16).contiguous().requires_grad_()
    _, dx, dweight = results(op, x, equal, targets, 0.1)
    assert dx.abs().max() < 1e-6
    assert dweight.sum(0).abs().max() < 1e-6
    assert dweight.norm() > 0.01


@each_design
def test_the_order_of_ids_does_not_matter(op: LinearCrossEntropy, device: torch.device) -> None:
    x, weight, targets = problem((9, 16, 70), device)
    order = torch.randperm(70, device=device)
    renamed = torch.where(targets == -100, targets, order.argsort()[targets.clamp_min(0)])
    shuffled = weight.detach()[order].requires_grad_()
    one = torch.ones((), device=device)
    with small_tiles():
        loss, dx, dweight = results(op, x, weight, targets, 0.1, upstream=one)
        found = results(op, x, shuffled, renamed, 0.1, upstream=one)
    for a, b in zip(found, (loss, dx, dweight[order]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_design
@each_dtype
def test_the_same_bits_every_time(op: LinearCrossEntropy, dtype: torch.dtype, device: torch.device) -> None:
    operands = problem((19, 32, 70), device, dtype)
    upstream = torch.randn(19, device=device)
    with small_tiles():
        first = results(op, *operands, 0.1, -100, 0.02, "none", upstream=upstream)
        for _ in range(100 if device.type == "cuda" else 1):
            assert_same(results(op, *operands, 0.1, -100, 0.02, "none", upstream=upstream), first)


@each_dtype
def test_a_row_of_flash_does_not_depend_on_the_rows_around_it(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, targets = problem((40, 32, 101), device, dtype, ignored=False)
    upstream = torch.randn(40, device=device)
    op = fused.linear_cross_entropy_flash
    with small_tiles():
        losses, dx, _ = results(op, x, weight, targets, 0.1, -100, 0.02, "none", upstream=upstream)
        for rows in (slice(3, 4), slice(7, 33)):
            part = x.detach()[rows].clone().requires_grad_()
            alone = results(op, part, weight, targets[rows], 0.1, -100, 0.02, "none", upstream=upstream[rows])
            assert torch.equal(alone[0], losses[rows])
            assert torch.equal(alone[1], dx[rows])


@each_design
@pytest.mark.parametrize("learned", ["x", "weight", "nothing"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_go_where_they_are_wanted(
    op: LinearCrossEntropy, learned: str, reduction: Reduction, device: torch.device
) -> None:
    x, weight, targets = problem((9, 32, 33), device)
    ones = torch.ones(9 if reduction == "none" else (), device=device)
    expected = results(op, x, weight, targets, 0.0, -100, 0.0, reduction, upstream=ones)
    x, weight = x.detach().requires_grad_(learned == "x"), weight.detach().requires_grad_(learned == "weight")
    loss = op(x, weight, targets, 0.0, -100, 0.0, reduction)
    assert loss.requires_grad == (learned != "nothing")
    torch.testing.assert_close(loss, expected[0])
    if learned != "nothing":
        torch.autograd.backward(loss.sum())
    for tensor, wanted in zip((x, weight), expected[1:], strict=True):
        assert (tensor.grad is not None) == tensor.requires_grad
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, wanted)
