"""Output head with its loss: every implementation against a float64 formula and against torch's own loss."""

import subprocess
import sys
from math import isnan, log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from smallgpt.domain import ops as plain
from smallgpt.domain.ops import LinearCrossEntropy, Reduction
from smallgpt.kernels.linear_cross_entropy import native, reference

IMPLEMENTATIONS: dict[str, LinearCrossEntropy] = {
    name: module.linear_cross_entropy
    for name, module in {"reference": reference, "native": native, "plain": plain}.items()
}
SHAPES = [  # (N, C, V)
    (1, 8, 5),  # a single prediction
    (33, 32, 101),  # nothing is a multiple of anything
    (17, 24, 1000),  # far more classes than rows
    (64, 48, 257),  # one class past a power of two
]
WHOLE = 2**40
CASES = {  # and the rows of a chunk of the native form; seven divides none of the N
    **{name: (op, WHOLE) for name, op in IMPLEMENTATIONS.items()},
    "native, seven rows": (native.linear_cross_entropy, 7),
    "native, one row": (native.linear_cross_entropy, 1),
}

implementation = pytest.mark.parametrize("op", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def formula(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    smoothing: float,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy against (1-ε)·onehot + ε/V, row by row, with z_loss·(log of the softmax's denominator)² for each."""
    V = weight.size(0)
    losses = []
    for row, target in zip(x, targets.tolist(), strict=True):
        if target == ignore_index:
            losses.append((0 * row).sum())
            continue
        scores = weight @ row
        log_z = scores.max() + (scores - scores.max()).exp().sum().log()
        wanted = torch.full((V,), smoothing / V, dtype=x.dtype)
        wanted[target] += 1 - smoothing
        losses.append((wanted * (log_z - scores)).sum() + z_loss * log_z**2)
    of_rows = torch.stack(losses)
    if reduction == "none":
        return of_rows
    return of_rows.sum() / ((targets != ignore_index).sum() if reduction == "mean" else 1)


def problem(N: int, C: int, V: int, ignored: str = "some") -> tuple[Tensor, Tensor, Tensor]:
    x, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (N,))
    targets[-1] = V - 1  # the last class, where an off-by-one falls out
    if ignored == "some":
        targets[: N // 2] = -100
    return x, weight, targets


def in_float64(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()


def gradients(loss: Tensor, x: Tensor, weight: Tensor, upstream: float) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [x, weight], torch.tensor(upstream, dtype=loss.dtype), retain_graph=True)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm() + 1e-9


@pytest.mark.parametrize(("op", "rows"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("ignored", ["some", "none"])
def test_loss_and_gradients_are_the_formulas_and_torchs(
    op: LinearCrossEntropy,
    rows: int,
    shape: tuple[int, int, int],
    smoothing: float,
    ignored: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "CHUNK_BYTES", rows * 4 * shape[2])
    x, weight, targets = problem(*shape, ignored)
    loss = op(x, weight, targets, smoothing, -100)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    exact = in_float64(x, weight)
    for oracle in (
        formula(*exact, targets, smoothing, -100),
        F.cross_entropy(exact[0] @ exact[1].T, targets, label_smoothing=smoothing),
    ):
        assert_near(loss, oracle, 2e-6)
        for upstream in (1.0, -2.7):
            expected = gradients(oracle, *exact, upstream)
            for found, wanted in zip(gradients(loss, x, weight, upstream), expected, strict=True):
                assert_near(found, wanted, 5e-6)


@pytest.mark.parametrize(("op", "rows"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_z_loss(
    op: LinearCrossEntropy,
    rows: int,
    smoothing: float,
    z_loss: float,
    reduction: Reduction,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "CHUNK_BYTES", rows * 4 * 101)
    x, weight, targets = problem(33, 32, 101)
    loss = op(x, weight, targets, smoothing, -100, z_loss, reduction)
    assert loss.dtype == torch.float32
    exact = in_float64(x, weight)
    expected = formula(*exact, targets, smoothing, -100, z_loss, reduction)
    assert_near(loss, expected, 2e-6)
    assert not loss[targets == -100].any() if reduction == "none" else loss.dim() == 0
    for scale in (1.0, 1e-30, -1e6):  # the second backward pass through the same graph, and the third
        upstream = scale * torch.randn(loss.shape)
        found = torch.autograd.grad(loss, [x, weight], upstream, retain_graph=True)
        wanted = torch.autograd.grad(expected, exact, upstream.double(), retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            assert (a.double() - b).norm() <= 1e-5 * b.norm()


@implementation
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("N", [0, 6])
def test_rows_that_do_not_count_get_no_gradient(op: LinearCrossEntropy, reduction: Reduction, N: int) -> None:
    x, weight = torch.randn(N, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    loss = op(x, weight, torch.full((N,), -100), 0.1, -100, 0.03, reduction)
    for gradient in torch.autograd.grad(loss, [x, weight], torch.randn(loss.shape)):
        assert not gradient.any(), "0, and not nan, whatever the mean is"


@implementation
def test_a_row_without_a_slope_gets_no_gradient(op: LinearCrossEntropy) -> None:
    x, weight, targets = problem(6, 8, 5, "none")
    losses = op(x, weight, targets, 0.1, -100, 0.03, "none")
    dx, dweight = torch.autograd.grad(losses, [x, weight], torch.zeros(6), retain_graph=True)
    assert not dx.any()
    assert not dweight.any()
    (dx,) = torch.autograd.grad(losses[2], x)
    assert dx.any(1).tolist() == [False, False, True, False, False, False]


@implementation
def test_any_id_can_mean_no_target(op: LinearCrossEntropy) -> None:
    x, weight, targets = problem(40, 16, 9, "none")
    targets[::3] = 4
    exact = in_float64(x, weight)
    loss, expected = op(x, weight, targets, 0.1, 4), formula(*exact, targets, 0.1, 4)
    assert_near(loss, expected, 2e-6)
    for found, wanted in zip(gradients(loss, x, weight, 1.0), gradients(expected, *exact, 1.0), strict=True):
        assert_near(found, wanted, 5e-6)
    assert gradients(loss, x, weight, 1.0)[0][::3].abs().max() == 0


@implementation
@pytest.mark.parametrize("N", [0, 6])
def test_with_every_target_ignored_the_mean_is_nan_as_in_torch(op: LinearCrossEntropy, N: int) -> None:
    targets = torch.full((N,), -100)
    weight = torch.randn(5, 8)
    assert isnan(F.cross_entropy(torch.randn(N, 5), targets))
    assert isnan(op(torch.randn(N, 8), weight, targets, 0.1, -100))


@implementation
def test_uniform_predictions_cost_the_logarithm_of_the_vocabulary(op: LinearCrossEntropy) -> None:
    for smoothing in (0.0, 0.3):
        loss = op(torch.randn(9, 16), torch.zeros(77, 16), torch.randint(77, (9,)), smoothing, -100)
        assert loss.item() == pytest.approx(log(77), rel=1e-6)


@implementation
def test_logits_in_the_thousands_stay_finite(op: LinearCrossEntropy) -> None:
    x, weight, targets = problem(33, 32, 101)
    with torch.no_grad():
        x *= 1000
    exact = in_float64(x, weight)
    loss, expected = op(x, weight, targets, 0.1, -100), formula(*exact, targets, 0.1, -100)
    assert_near(loss, expected, 1e-5)
    for found, wanted in zip(gradients(loss, x, weight, 1.0), gradients(expected, *exact, 1.0), strict=True):
        assert_near(found, wanted, 1e-4)


@implementation
def test_adding_a_constant_to_every_logit_changes_nothing(op: LinearCrossEntropy) -> None:
    """So the slopes of a row's logits sum to zero; with equal rows of weights, x gets no gradient at all."""
    x, _, targets = problem(20, 16, 30)
    weight = torch.randn(1, 16).expand(30, 16).clone().requires_grad_()
    dx, dw = gradients(op(x, weight, targets, 0.1, -100), x, weight, 1.0)
    assert dx.abs().max() < 1e-6
    assert dw.sum(0).abs().max() < 1e-6
    assert dw.norm() > 0.01


@implementation
def test_order_does_not_matter(op: LinearCrossEntropy) -> None:
    x, weight, targets = problem(33, 32, 101)
    rows, classes = torch.randperm(33), torch.randperm(101)
    renamed = torch.where(targets == -100, targets, classes.argsort()[targets.clamp_min(0)])
    loss, shuffled = op(x, weight, targets, 0.1, -100), op(x[rows], weight[classes], renamed[rows], 0.1, -100)
    assert_near(shuffled, loss, 1e-6)
    for found, wanted in zip(gradients(shuffled, x, weight, 1.0), gradients(loss, x, weight, 1.0), strict=True):
        assert_near(found, wanted, 1e-5)


@implementation
@pytest.mark.parametrize("chunked", [False, True])
def test_strides_do_not_matter(op: LinearCrossEntropy, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        monkeypatch.setattr(native, "CHUNK_BYTES", 5 * 4 * 101)
    x, weight, targets = problem(33, 32, 101)
    wide_x = torch.cat([x, x], 1)[:, :32]
    across = weight.T.contiguous().T
    spaced = torch.stack([targets, targets], 1)[:, 0]
    loss, strided = op(x, weight, targets, 0.1, -100), op(wide_x, across, spaced, 0.1, -100)
    assert_near(strided, loss, 1e-6)
    for found, wanted in zip(gradients(strided, x, weight, 1.0), gradients(loss, x, weight, 1.0), strict=True):
        assert_near(found, wanted, 1e-5)


@implementation
@pytest.mark.parametrize("learned", ["x", "weight", "both", "nothing"])
def test_gradients_go_where_they_are_wanted(op: LinearCrossEntropy, learned: str) -> None:
    x, weight, targets = problem(33, 32, 101)
    expected = gradients(F.cross_entropy(x @ weight.T, targets), x, weight, 1.0)
    x, weight = x.detach().requires_grad_(learned in ("x", "both")), weight.detach()
    weight.requires_grad_(learned in ("weight", "both"))
    loss = op(x, weight, targets, 0.0, -100)
    assert loss.requires_grad == (learned != "nothing")
    if loss.requires_grad:
        torch.autograd.backward(loss)
    for tensor, wanted in zip((x, weight), expected, strict=True):
        assert (tensor.grad is not None) == tensor.requires_grad
        if tensor.grad is not None:
            assert_near(tensor.grad, wanted, 5e-6)


@implementation
def test_backward_can_be_repeated_and_accumulates(op: LinearCrossEntropy) -> None:
    x, weight, targets = problem(33, 32, 101)
    loss = op(x, weight, targets, 0.1, -100)
    first, second = gradients(loss, x, weight, 1.0), gradients(loss, x, weight, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.backward(loss + op(x, weight, targets, 0.1, -100))
    assert x.grad is not None
    assert weight.grad is not None
    assert_near(x.grad, 2 * first[0], 1e-6)
    assert_near(weight.grad, 2 * first[1], 1e-6)


# products rounded to 8 or 11 bits; what is summed stays in fp32
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)], ids=str)
@pytest.mark.parametrize("x_dtype", ["fp32", "low"])
@pytest.mark.parametrize("op", [native.linear_cross_entropy, plain.linear_cross_entropy], ids=["native", "plain"])
def test_under_autocast_only_the_products_are_rounded(
    op: LinearCrossEntropy, dtype: torch.dtype, tolerance: float, x_dtype: str
) -> None:
    """x arrives in fp32 from a layer norm or in the low type from elsewhere; the gradients have their tensors' types."""
    x, weight, targets = problem(64, 48, 257)
    x = x.detach().to(dtype if x_dtype == "low" else torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype):
        loss = op(x, weight, targets, 0.1, -100)
    assert loss.dtype == torch.float32
    exact = in_float64(x, weight)
    expected = formula(*exact, targets, 0.1, -100)
    assert_near(loss, expected, tolerance)
    for found, wanted, tensor in zip(
        gradients(loss, x, weight, 1.0), gradients(expected, *exact, 1.0), (x, weight), strict=True
    ):
        assert found.dtype == tensor.dtype
        assert_near(found, wanted, 2 * tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_reference_rounds_nothing(dtype: torch.dtype) -> None:
    x, weight, targets = problem(9000, 16, 5000)  # whose sum is beyond fp16
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = reference.linear_cross_entropy(x, weight, targets, reduction="sum")
        results.append((loss, *gradients(loss, x, weight, 1.0)))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*results, strict=True))
    assert torch.isfinite(results[1][0])


def test_fp16_keeps_gradients_that_the_mean_over_many_rows_would_flush_to_zero() -> None:
    """Divided by N before the backward pass, slopes of 1e-5 fall under fp16's smallest number (Liger-Kernel #512)."""
    N, V, scale = 4096, 4000, 65536.0
    x, weight = (0.01 * torch.randn(N, 8)).requires_grad_(), torch.randn(V, 8, requires_grad=True)
    targets = torch.zeros(N, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        loss = native.linear_cross_entropy(x, weight, targets, 0.0, -100)
    (dw,) = torch.autograd.grad(loss * scale, weight)
    exact = weight.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy(x.detach().double() @ exact.T, targets), exact)
    rare = slice(1, None)  # every class that is never a target: slopes of about 1/V
    assert_near(dw[rare] / scale, wanted[rare], 0.02)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_references_gradients_are_those_of_finite_differences(reduction: Reduction) -> None:
    x, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((6, 5), (11, 5)))
    targets = torch.tensor([0, 10, -100, 3, 3, -100])
    assert torch.autograd.gradcheck(
        lambda a, b: reference.linear_cross_entropy(a, b, targets, 0.1, -100, 0.03, reduction), (x, weight)
    )


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest tensor that any operation inside makes, and how many matrix products it takes."""

    elements = products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm)
        return result


def test_no_tensor_of_all_logits_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CHUNK_BYTES", 10 * 4 * 300)
    x, weight, targets = problem(100, 16, 300)
    with Largest() as seen:  # type: ignore[no-untyped-call]
        torch.autograd.backward(native.linear_cross_entropy(x, weight, targets, 0.1, -100))
    assert seen.elements == max(10 * 300, 300 * 16)
    with Largest() as seen:  # type: ignore[no-untyped-call]
        torch.autograd.backward(reference.linear_cross_entropy(x, weight, targets, 0.1, -100))
    assert seen.elements == 100 * 300, "the measurement sees logits where there are some"


def test_a_loss_without_gradients_takes_one_product_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CHUNK_BYTES", 10 * 4 * 300)
    x, weight, targets = problem(100, 16, 300)
    with torch.no_grad(), Largest() as seen:  # type: ignore[no-untyped-call]
        native.linear_cross_entropy(x, weight, targets, 0.1, -100)
    assert seen.products == 10


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_frozen_weight_spares_the_product_of_its_gradient(
    reduction: Reduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "CHUNK_BYTES", 10 * 4 * 300)
    x, weight, targets = problem(100, 16, 300)
    counts = []
    for learned in (True, False):
        with Largest() as seen:  # type: ignore[no-untyped-call]
            loss = native.linear_cross_entropy(x, weight.requires_grad_(learned), targets, reduction=reduction)
            torch.autograd.backward(loss.sum())
        counts.append(seen.products)
    assert counts[0] - counts[1] == 10, "one a chunk"


MEMORY = """
import resource, torch
from smallgpt.kernels.linear_cross_entropy import native
torch.set_num_threads(1)
native.CHUNK_BYTES = 8 * 2**20
def step(N, V=8192, C=32):
    x, w = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    native.linear_cross_entropy(x, w, torch.zeros(N, dtype=torch.int64), 0.1, -100).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = step(16)
print(step(4096) - before)
"""


def test_the_process_never_holds_all_logits() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    logits = 4 * 4096 * 8192
    assert int(done.stdout) < 0.4 * logits, "two chunks of 8 MiB, gradients and inputs, beside logits of 128 MiB"
