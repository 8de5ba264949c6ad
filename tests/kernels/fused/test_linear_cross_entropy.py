"""Both designs of linear + cross-entropy in Triton: loss and gradients against float64, and what must hold bit for bit.

Tiles are made small where a case needs several of them: the interpreter's own are as large as a GPU's.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smallgpt.domain import ops as eager
from smallgpt.domain.ops import LinearCrossEntropy, Reduction
from smallgpt.kernels.launching import recording
from smallgpt.kernels.linear_cross_entropy import chunked, flash, fused, reference
from smallgpt.kernels.tiles import forced
from tests.kernels.fused.parity import DTYPES, FLOOR, STRIDED, assert_as_good_as_eager, largest_error
from tests.kernels.memory import Memory

DESIGNS: dict[str, LinearCrossEntropy] = {
    "chunked": fused.linear_cross_entropy_chunked,
    "flash": fused.linear_cross_entropy_flash,
}
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
SMALL = {"BLOCK_ROWS": 16, "BLOCK_V": 16, "num_warps": 4, "num_stages": 1}

each_design = pytest.mark.parametrize("op", DESIGNS.values(), ids=DESIGNS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@contextmanager
def small_tiles(forward: dict[str, int] = SMALL, weight_gradient: dict[str, int] = SMALL) -> Iterator[None]:
    """Several programs, blocks, chunks and launches at the sizes of these tests."""
    with ExitStack() as stack:
        stack.enter_context(forced("linear_cross_entropy", "forward", forward))
        stack.enter_context(forced("linear_cross_entropy", "weight_gradient", weight_gradient))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(chunked, "row_tile", lambda *_: (False, {"BLOCK_V": 32, "num_warps": 1, "num_stages": 1}))
        patch.setattr(chunked, "CHUNK_BYTES", 2048)
        patch.setattr(flash, "PARTIAL_BYTES", 0)
        yield


def problem(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype = torch.float32, ignored: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    N, C, V = shape
    x, weight = torch.randn(N, C, device=device), torch.randn(V, C, device=device) / C**0.5
    targets = torch.randint(V, (N,), device=device)
    targets[-1] = V - 1  # the last id, where an off-by-one falls out
    if ignored:
        targets[: N // 3] = -100
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def gradients(loss: Tensor, x: Tensor, weight: Tensor, upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, weight], upstream.to(loss.dtype), retain_graph=True))


def results(
    op: LinearCrossEntropy, x: Tensor, weight: Tensor, targets: Tensor, *options: Any, upstream: Tensor | None = None
) -> list[Tensor]:
    """The loss and its gradients, under a random upstream gradient unless one is given."""
    loss = op(x, weight, targets, *options)
    upstream = torch.randn(loss.shape, device=loss.device) if upstream is None else upstream
    return [loss.detach(), *gradients(loss, x, weight, upstream)]


def assert_parity(op: LinearCrossEntropy, x: Tensor, weight: Tensor, targets: Tensor, *options: Any) -> None:
    torch.manual_seed(1)
    loss = op(x, weight, targets, *options)
    upstream = torch.randn(loss.shape, device=loss.device)
    wide_x, wide_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = results(reference.linear_cross_entropy, wide_x, wide_weight, targets, *options, upstream=upstream)
    rough = results(eager.linear_cross_entropy, x, weight, targets, *options, upstream=upstream)
    for _ in range(2):  # retain_graph: the second time around as the first
        found = [loss, *gradients(loss, x, weight, upstream)]
        for name, a, b, c in zip(("loss", "dx", "dweight"), found, rough, exact, strict=True):
            assert_as_good_as_eager(a, b, c, torch.float32 if name == "loss" else x.dtype, name)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for name, a, b in zip(("loss", "dx", "dweight"), found, expected, strict=True):
        assert torch.equal(a, b), f"{name} differs by {(a - b).abs().max()}"


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


@each_design
def test_evaluation_makes_no_gradient(op: LinearCrossEntropy, device: torch.device) -> None:
    operands = problem((9, 32, 33), device)
    with recording("sm_90") as learning:
        op(*operands)
    with torch.no_grad(), recording("sm_90") as evaluating:
        assert not op(*operands).requires_grad
    for launches, made in ((learning, True), (evaluating, False)):
        arguments = {name: value for launch in launches for name, value in launch.arguments.items()}
        assert arguments.get("WRITES", made) == made
        assert (arguments.get("mix_ptr") is not None) == (made and "mix_ptr" in arguments)
        assert (arguments.get("dx_ptr") is not None) == (made and "dx_ptr" in arguments)


def launched(architecture: str, shape: tuple[int, int, int], dtype: torch.dtype) -> set[str]:
    N, C, V = shape
    x, weight = torch.zeros(N, C, dtype=dtype), torch.zeros(V, C, dtype=dtype)
    with recording(architecture) as launches:
        fused.linear_cross_entropy(x, weight, torch.zeros(N, dtype=torch.int64))
    return {launch.kernel.__name__ for launch in launches}


@pytest.mark.parametrize(
    ("architecture", "shape", "dtype", "design"),
    [
        ("sm_90", (8, 256, 50304), torch.bfloat16, "flash"),  # the seed's head on an H100
        ("sm_75", (8, 256, 50304), torch.float16, "chunked"),  # no tensor cores for Triton there
        ("sm_90", (8, 512, 50304), torch.bfloat16, "chunked"),  # too wide
        ("sm_90", (8, 256, 4096), torch.bfloat16, "chunked"),  # too few ids to fill the GPU
        ("sm_90", (8, 256, 50304), torch.float32, "chunked"),  # exact products
        ("sm_80", (8, 256, 50304), torch.bfloat16, "chunked"),  # more bandwidth for its arithmetic
        ("sm_80", (8, 128, 50304), torch.bfloat16, "flash"),
    ],
    ids=str,
)
def test_the_design_follows_from_gpu_and_shape(
    architecture: str, shape: tuple[int, int, int], dtype: torch.dtype, design: str
) -> None:
    kernels = {"flash": {"forward", "finish"}, "chunked": {"in_two_passes"}}
    if shape[2] == 4096:
        kernels["chunked"] = {"in_registers"}
    assert launched(architecture, shape, dtype) == kernels[design]


class Kept(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every storage that is made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.tensors.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return result

    def bytes_beside(self, *others: Tensor) -> int:
        given = {tensor.untyped_storage().data_ptr() for tensor in others}
        return sum(t.untyped_storage().nbytes() for at, t in self.tensors.items() if at not in given)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_flash_needs_less_than_64_mb_at_the_seeds_size(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """8,192 rows, 50,304 ids, width 256, bf16: all that is ever allocated beside operands and gradients, freed or not.

    E[W] of the four splits of as many rows as are in flight, dx before and after it is scaled, vectors; the logits
    would be 824 MB, and their gradient as much again.
    """
    monkeypatch.undo()  # guards have a size of their own
    monkeypatch.setattr(flash, "FLASH", flash.launch_flash)  # what an operator allocates inside is not seen
    monkeypatch.setattr(flash, "FLASH_DWEIGHT", flash.launch_flash_dweight)
    monkeypatch.setattr(flash, "multiprocessors", lambda device: 132)
    x, weight = (torch.zeros(n, 256, dtype=torch.bfloat16, requires_grad=True) for n in (8192, 50304))
    targets = torch.zeros(8192, dtype=torch.int64)
    with recording("sm_90"), Kept() as kept:
        loss = fused.linear_cross_entropy_flash(x, weight, targets, smoothing)
        dx, dweight = torch.autograd.grad(loss, [x, weight])
    found = kept.bytes_beside(x, weight, targets, dx, dweight)
    assert 132 * 128 * 256 * 4 < found < 64e6, "at least E[W] of one wave of programs"


def test_weights_are_summed_in_fp32(device: torch.device) -> None:
    """1000 and then small numbers: 11 bits would drop most of what the later chunks add."""
    N, C, V = 33, 16, 32
    x = torch.full((N, C), 0.3, device=device)
    x[0] = 1000
    weight = torch.zeros(V, C, device=device, requires_grad=True)  # probabilities of 1/32, exact in fp16
    targets = torch.zeros(N, dtype=torch.int64, device=device)
    exact = (1 / V - torch.eye(V)[0].double())[:, None] * x.half().double().sum(0).cpu()
    for op in DESIGNS.values():
        with small_tiles(), torch.autocast(device.type, torch.float16):
            loss = op(x, weight, targets, 0.0, -100, 0.0, "sum")
        (dweight,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(dweight.cpu().double(), exact, rtol=1e-6, atol=0)


@each_design
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_fp16_keeps_what_a_mean_over_many_rows_would_flush_to_zero(
    op: LinearCrossEntropy, reduction: Reduction, device: torch.device
) -> None:
    """Slopes of 3e-7 that the upstream gradient, as of a mean over 8,192 rows, makes 4e-11: fp16 ends at 6e-8."""
    N, C, V = 5, 16, 2000
    x = torch.randn(N, C, device=device)
    weight = 0.1 * torch.randn(V, C, device=device)
    weight[0] += 15 * (x.T @ (x @ x.T).inverse()).sum(1)  # the target, e^15 times as probable as the others
    weight.requires_grad_()
    targets = torch.zeros(N, dtype=torch.int64, device=device)
    with torch.autocast(device.type, torch.float16):
        loss = op(x, weight, targets, 0.0, -100, 0.0, reduction)
    upstream = torch.full(loss.shape, 2.0**-13, device=device)
    (dweight,) = torch.autograd.grad(loss, weight, upstream)
    wide = weight.detach().half().double().requires_grad_()
    exact = reference.linear_cross_entropy(x.half().double(), wide, targets, 0.0, -100, 0.0, reduction)
    (wanted,) = torch.autograd.grad(exact, wide, upstream.double())
    rare = slice(1, None)
    assert wanted[rare].abs().max() < 1e-8
    assert (dweight[rare] - wanted[rare]).norm() < 5e-3 * wanted[rare].norm()


@each_design
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float16], ids=str)
def test_under_autocast_only_the_products_are_rounded(
    op: LinearCrossEntropy, x_dtype: torch.dtype, device: torch.device
) -> None:
    """x comes in fp32 or, from our layer norm, in the low type already; weights are fp32, and so is what they get."""
    x, weight, targets = problem((9, 48, 70), device)
    x = x.detach().to(x_dtype).requires_grad_()
    found = []
    for function in (op, eager.linear_cross_entropy):
        with torch.autocast(device.type, torch.float16):
            loss = function(x, weight, targets, 0.1, -100, 0.02)
        found.append([loss, *gradients(loss, x, weight, torch.tensor(1.7, device=device))])
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = results(reference.linear_cross_entropy, *wide, targets, 0.1, -100, 0.02, upstream=torch.tensor(1.7))
    for name, dtype, a, b, c in zip(
        ("loss", "dx", "dweight"), (torch.float32, x_dtype, torch.float32), *found, exact, strict=True
    ):
        assert a.dtype == b.dtype == dtype
        assert largest_error(a, c) <= 2 * largest_error(b, c) + FLOOR[torch.float16], name


@each_design
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")  # torch.compile's own
def test_compiled_it_is_one_graph_and_the_same_bits(
    op: LinearCrossEntropy, reduction: Reduction, device: torch.device
) -> None:
    x, weight, targets = problem((5, 32, 33), device)
    upstream = torch.randn(5 if reduction == "none" else (), device=device)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    expected = results(op, x, weight, targets, 0.1, -100, 0.02, reduction, upstream=upstream)
    found = results(compiled, x, weight, targets, 0.1, -100, 0.02, reduction, upstream=upstream)
    torch._dynamo.reset()
    assert_same(found, expected)


@pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
def test_the_choice_of_a_design_compiles(device: torch.device) -> None:
    x, weight, targets = problem((5, 32, 33), device)
    compiled = torch.compile(fused.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    found = compiled(x, weight, targets, 0.1)
    torch._dynamo.reset()
    assert torch.equal(found, fused.linear_cross_entropy(x, weight, targets, 0.1))


def test_the_operators_are_what_they_declare(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # opcheck compares storage offsets, which guards move
    x, weight, targets = (t.detach() for t in problem((5, 32, 33), device))
    share, scale = torch.rand(5, device=device), torch.ones((), device=device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for wanted in (True, False):
        for operator, operands in (
            (flash.FLASH, (x, weight, targets, 0.1, -100, 0.0, wanted)),
            (chunked.CHUNKED, (x, weight, targets, share, 0.1, -100, 0.0, wanted, not wanted)),
        ):
            torch.library.opcheck(operator, operands, test_utils=tests)
    _, highest, log_sum, _ = flash.FLASH(x, weight, targets, 0.1, -100, 0.0, False)
    for dtype in (torch.float32, torch.float16):
        of_weight = (x, weight, targets, highest, log_sum, scale, share, 0.1, -100, 0.0, dtype)
        torch.library.opcheck(flash.FLASH_DWEIGHT, of_weight, test_utils=tests)


@each_design
@pytest.mark.parametrize("loss_of", [lambda y: y, lambda y: y**2], ids=["linear", "square"])
def test_a_second_derivative_is_refused(
    op: LinearCrossEntropy, loss_of: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    x, weight, targets = problem((4, 16, 9), device)
    loss = loss_of(op(x, weight, targets))
    for tensor in (x, weight):
        (gradient,) = torch.autograd.grad(loss, tensor, create_graph=True)
        with pytest.raises(
            RuntimeError, match=r"^linear-cross-entropy: .* use --kernels.linear-cross-entropy reference"
        ):
            torch.autograd.grad(gradient.sum(), tensor, retain_graph=True)


ROWS, IDS, TARGETS = torch.zeros(4, 8), torch.zeros(9, 8), torch.zeros(4, dtype=torch.int64)
BAD_INPUT: dict[str, tuple[tuple[Any, ...], str]] = {
    "a batch": ((ROWS[None], IDS, TARGETS), r"x, weight and targets have 3, 2 and 1 dimensions; give \(N, C\), "),
    "one-hot targets": ((ROWS, IDS, ROWS.long()), r"x, weight and targets have 2, 2 and 2 dimensions; give \(N, C\), "),
    "another width": ((ROWS, IDS[:, :7], TARGETS), r"x is \(4, 8\), weight \(9, 7\) and targets \(4,\); give "),
    "other rows": ((ROWS, IDS, TARGETS[:3]), r"x is \(4, 8\), weight \(9, 8\) and targets \(3,\); give "),
    "no ids": ((ROWS, IDS[:0], TARGETS), r"weight is \(0, 8\); there must be an id and a column"),
    "two dtypes": (
        (ROWS.half(), IDS, TARGETS),
        r"x is torch.float16 and weight torch.float32; cast .* or use autocast",
    ),
    "float64": ((ROWS.double(), IDS.double(), TARGETS), "x is float64; the Triton kernel takes float32"),
    "int32 targets": ((ROWS, IDS, TARGETS.int()), "targets are torch.int32; give int64 ids"),
    "a weight elsewhere": ((ROWS, IDS.to("meta"), TARGETS), r"weight is on meta and the rest on (cpu|cuda:0); move "),
    "targets elsewhere": ((ROWS, IDS, TARGETS.to("meta")), r"targets are on meta and x on (cpu|cuda:0); move one"),
    "smoothing": ((ROWS, IDS, TARGETS, 1.1), r"label_smoothing is 1.1; give a number in \[0, 1\]"),
    "nan": ((ROWS, IDS, TARGETS, float("nan")), r"label_smoothing is nan; give a number in \[0, 1\]"),
    "reduction": ((ROWS, IDS, TARGETS, 0.0, -100, 0.0, "avg"), "reduction is 'avg'; give 'mean', 'sum' or 'none'"),
}


@pytest.mark.parametrize(("operands", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(operands: tuple[Any, ...], words: str, device: torch.device) -> None:
    given: list[Any] = [t if not isinstance(t, Tensor) or t.is_meta else t.to(device) for t in operands]
    for op in (fused.linear_cross_entropy, *DESIGNS.values()):
        with pytest.raises(ValueError, match=f"^linear_cross_entropy: {words}"):
            op(*given)
