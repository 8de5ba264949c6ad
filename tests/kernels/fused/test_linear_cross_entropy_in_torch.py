"""Both designs of linear + cross-entropy in Triton, in torch: precision, memory, autocast, torch.compile, and bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smallgpt.domain import ops as eager
from smallgpt.domain.errors import HardwareError
from smallgpt.domain.ops import LinearCrossEntropy, Reduction
from smallgpt.kernels.launching import recording
from smallgpt.kernels.linear_cross_entropy import chunked, flash, fused, reference
from tests.kernels.fused.cross_entropies import (
    DESIGNS,
    assert_same,
    each_design,
    gradients,
    problem,
    results,
    small_tiles,
)
from tests.kernels.fused.parity import FLOOR, largest_error


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can")
def test_the_interpreter_refuses_bf16_from_autocast() -> None:
    x, weight, targets = problem((3, 16, 9), torch.device("cpu"))
    for op in (fused.linear_cross_entropy, *DESIGNS.values()):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(HardwareError, match="cannot do bfloat16 arithmetic"):
            op(x, weight, targets)


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
        with pytest.raises(RuntimeError, match=r'^linear-cross-entropy: .* no second derivative .*kernels="reference"'):
            torch.autograd.grad(loss, tensor, create_graph=True, retain_graph=True)


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
