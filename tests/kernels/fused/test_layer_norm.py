"""(Residual add +) layer norm in Triton: forward and every gradient against float64, and what must hold bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.domain import ops as eager
from smallgpt.domain.errors import HardwareError
from smallgpt.kernels import launching
from smallgpt.kernels.layer_norm import fused
from tests.kernels.fused.layer_norms import (
    add_and_gradients,
    assert_parity,
    assert_same,
    dtype_of,
    numbers,
)
from tests.kernels.fused.parity import DTYPES, STRIDED, assert_as_good_as_eager
from tests.kernels.memory import Memory

SHAPES = [  # (..., C)
    (1, 32),  # one row: less than a tile; and one program, a count that Triton makes a constant of
    (300, 32),  # more tiles than the backward pass has programs (4 on the CPU), the last one not full
    (5, 1),  # variance 0: the norm is the bias, and no gradient goes back
    (3, 2),  # the smallest width that has a variance
    (4, 3),  # rows that no vector load is aligned to
    (37, 65),  # one past a power of two: half of the tile is beyond the row
    (2, 35, 256),  # the seed's width, with a batch dimension
    (9, 1023),  # one short of a power of two
    (6, 1600),  # GPT-2 XL's width, no power of two
    (5, 8192),  # the widest; a program takes two rows in turn
]
NARROW = [shape for shape in SHAPES if shape[-1] <= 1023]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_and_norm_and_every_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, memory: Memory
) -> None:
    sizes = [shape, shape, shape[-1:], shape[-1:]]
    inputs: list[Tensor | None] = [memory.guard(numbers(*s, device=device, dtype=dtype)) for s in sizes]
    upstream = memory.guard(numbers(*shape, device=device).detach()), numbers(*shape, device=device).detach()
    found = add_and_gradients(fused.add_layer_norm, inputs, upstream)
    assert_parity(found, inputs, upstream, inputs)


@pytest.mark.parametrize("shape", NARROW, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_alone_without_a_bias(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, memory: Memory
) -> None:
    x, weight = (memory.guard(numbers(*s, device=device, dtype=dtype)) for s in (shape, shape[-1:]))
    upstream = memory.guard(numbers(*shape, device=device, dtype=dtype).detach())
    results = []
    for layer_norm, wide in ((fused.layer_norm, False), (eager.layer_norm, False), (eager.layer_norm, True)):
        leaves = [(t.double() if wide else t).detach().requires_grad_() for t in (x, weight)]
        y = layer_norm(leaves[0], leaves[1], None, 1e-5)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))])
    for name, found, rough, exact in zip(("y", "dx", "dweight"), *results, strict=True):
        assert_as_good_as_eager(found, rough, exact, dtype, name)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float16, torch.float32),  # what autocast makes: an fp32 stream, fp16 branches
        (torch.float16, torch.float32, torch.float16),  # the other way round the sum is fp32 too
        (torch.float16, torch.float16, torch.float32),  # fp32 weights for fp16 rows
    ],
    ids=["fp32 residual", "fp32 delta", "fp32 weights"],
)
def test_dtypes_may_differ(
    dtypes: tuple[torch.dtype, ...], with_bias: bool, device: torch.device, memory: Memory
) -> None:
    of_rows = torch.promote_types(dtypes[0], dtypes[1])
    sizes = [(20, 48), (20, 48), (48,), (48,)]
    inputs: list[Tensor | None] = [
        memory.guard(numbers(*size, device=device, dtype=dtype))
        for size, dtype in zip(sizes, (*dtypes, dtypes[2]), strict=True)
    ]
    if not with_bias:
        inputs[3] = None
    upstream = numbers(20, 48, device=device).detach(), numbers(20, 48, device=device).detach()
    found = add_and_gradients(fused.add_layer_norm, inputs, upstream)
    assert dtype_of(found["total"]) == dtype_of(found["y"]) == of_rows
    yardstick = [None if x is None else x if x.dim() > 1 else x.to(of_rows) for x in inputs]  # torch mixes none
    assert_parity(found, inputs, upstream, yardstick)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_offsets_change_no_bit(
    view: Callable[[Tensor], Tensor], offset: int, dtype: torch.dtype, device: torch.device, memory: Memory
) -> None:
    dense: list[Tensor] = [numbers(3, 5, 40, device=device, dtype=dtype).detach() for _ in range(4)]
    vectors = [numbers(40, device=device, dtype=dtype).detach() for _ in range(2)]
    strided = [memory.guard(view(x), offset) for x in dense]
    apart = [memory.guard(torch.stack([v, v], -1)[:, 0], offset) for v in vectors]
    expected = add_and_gradients(fused.add_layer_norm, [*dense[:2], *vectors], (dense[2], dense[3]))
    found = add_and_gradients(fused.add_layer_norm, [*strided[:2], *apart], (strided[2], strided[3]))
    assert_same(found, expected)


def test_upstream_gradients_that_are_broadcast(device: torch.device) -> None:
    """What sum() and a row's mean send back: strides of 0."""
    inputs: list[Tensor | None] = [numbers(*s, device=device) for s in [(7, 24), (7, 24), (24,), (24,)]]
    row = torch.randn(24, device=device)
    for up in (torch.ones((), device=device).expand(7, 24), row.expand(7, 24), row[:7, None].expand(7, 24)):
        found = add_and_gradients(fused.add_layer_norm, inputs, (up, up))
        assert_same(found, add_and_gradients(fused.add_layer_norm, inputs, (up.contiguous(), up.contiguous())))


@pytest.mark.parametrize("used", ["total", "y"])
def test_an_output_that_is_not_used(used: str, device: torch.device) -> None:
    results = []
    upstream = torch.randn(9, 33, device=device)
    residual, delta, weight, bias = (numbers(*s, device=device) for s in [(9, 33), (9, 33), (33,), (33,)])
    for add_layer_norm in (fused.add_layer_norm, eager.add_layer_norm):
        total, y = add_layer_norm(residual, delta, weight, bias, 1e-5)
        output = total if used == "total" else y
        results.append(torch.autograd.grad(output, [residual, delta, weight, bias], upstream, allow_unused=True))
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if used == "total":
        assert torch.equal(results[0][0], upstream)
        assert results[0][2] is None


@pytest.mark.parametrize("learned", range(4))
def test_one_input_alone_may_be_learned(learned: int, device: torch.device) -> None:
    inputs = [numbers(*s, device=device) for s in [(9, 33), (9, 33), (33,), (33,)]]
    upstream = torch.randn(9, 33, device=device), torch.randn(9, 33, device=device)
    every = add_and_gradients(fused.add_layer_norm, list(inputs), upstream)
    leaves = [x.detach().requires_grad_(at == learned) for at, x in enumerate(inputs)]
    residual, delta, weight, bias = leaves
    total, y = fused.add_layer_norm(residual, delta, weight, bias, 1e-5)
    torch.autograd.backward([y] if learned > 1 else [total, y], [upstream[1]] if learned > 1 else list(upstream))
    names = ("dresidual", "ddelta", "dweight", "dbias")
    found = {name: x.grad for name, x in zip(names, leaves, strict=True)}
    assert_same(found, {name: every[name] if at == learned else None for at, name in enumerate(names)})


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (3, 0)], ids=str)
def test_no_rows_and_rows_of_nothing(shape: tuple[int, ...], device: torch.device) -> None:
    inputs: list[Tensor | None] = [numbers(*s, device=device) for s in [shape, shape, shape[-1:], shape[-1:]]]
    upstream = torch.randn(shape, device=device), torch.randn(shape, device=device)
    found = add_and_gradients(fused.add_layer_norm, inputs, upstream)
    for name in ("total", "y", "dresidual", "ddelta"):
        assert found[name] is not None
        assert found[name].shape == shape  # type: ignore[union-attr]
    for name in ("dweight", "dbias"):
        assert torch.equal(found[name], torch.zeros(shape[-1:], device=device))  # type: ignore[arg-type]


def test_a_large_mean_does_not_drown_the_variance(device: torch.device) -> None:
    """E[x²] - E[x]² would lose every digit here."""
    x, weight = 3000 + torch.randn(4, 256, device=device), torch.ones(256, device=device)
    exact = eager.layer_norm(x.double(), weight.double(), None, 1e-5)
    torch.testing.assert_close(fused.layer_norm(x, weight, None, 1e-5).double(), exact, rtol=1e-3, atol=2e-3)


def test_a_constant_row_gives_the_bias_and_finite_gradients(device: torch.device) -> None:
    x = torch.full((2, 48), 7.0, device=device, requires_grad=True)
    weight, bias = numbers(48, device=device), numbers(48, device=device)
    y = fused.layer_norm(x, weight, bias, 1e-5)
    torch.autograd.backward(y, torch.randn(2, 48, device=device))
    assert torch.equal(y, bias.expand(2, 48))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert torch.equal(weight.grad, torch.zeros(48, device=device))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(dtype: torch.dtype, device: torch.device) -> None:
    inputs: list[Tensor | None] = [
        numbers(*s, device=device, dtype=dtype) for s in [(150, 70), (150, 70), (70,), (70,)]
    ]
    upstream = torch.randn(150, 70, device=device), torch.randn(150, 70, device=device)
    first = add_and_gradients(fused.add_layer_norm, inputs, upstream)
    for _ in range(2):
        assert_same(add_and_gradients(fused.add_layer_norm, inputs, upstream), first)


@pytest.mark.parametrize("width", [32, 65, 1600])
def test_a_row_does_not_depend_on_the_rows_around_it(width: int, device: torch.device) -> None:
    residual, delta, *upstream = (torch.randn(70, width, device=device) for _ in range(4))
    vectors = [torch.randn(width, device=device) for _ in range(2)]
    together = add_and_gradients(fused.add_layer_norm, [residual, delta, *vectors], (upstream[0], upstream[1]))
    for part in (slice(0, 1), slice(13, 15), slice(60, 70)):
        inputs: list[Tensor | None] = [residual[part], delta[part], *vectors]
        alone = add_and_gradients(fused.add_layer_norm, inputs, (upstream[0][part], upstream[1][part]))
        for name in ("total", "y", "dresidual", "ddelta"):
            assert torch.equal(alone[name], together[name][part]), name  # type: ignore[index, arg-type]


def test_autocast_rounds_the_norm_and_keeps_the_stream(device: torch.device) -> None:
    residual, weight, bias = (numbers(*s, device=device) for s in [(20, 48), (48,), (48,)])
    delta = numbers(20, 48, device=device, dtype=torch.float16)
    wide = fused.add_layer_norm(residual, delta, weight, bias, 1e-5)
    with torch.autocast(device.type, torch.float16):
        total, y = fused.add_layer_norm(residual, delta, weight, bias, 1e-5)
        alone = fused.layer_norm(residual, weight, bias, 1e-5)
    assert torch.equal(total, wide[0])
    assert torch.equal(y, wide[1].half())
    assert alone.dtype == torch.float16
    torch.autograd.backward([total, y, alone], [torch.randn_like(x) for x in (total, y, alone)])
    for x in (residual, delta, weight, bias):
        assert x.grad is not None
        assert x.grad.dtype == x.dtype
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("used", ["both", "total", "y"])
def test_compiled_it_is_one_graph_and_the_same_bits(used: str, device: torch.device) -> None:
    def pick(*inputs: Any) -> tuple[Tensor, Tensor]:
        total, y = fused.add_layer_norm(*inputs)
        return {"both": (total, y), "total": (total, total), "y": (y, y)}[used]

    inputs: list[Tensor | None] = [numbers(*s, device=device) for s in [(2, 5, 24), (2, 5, 24), (24,), (24,)]]
    upstream = torch.randn(2, 5, 24, device=device), torch.randn(2, 5, 24, device=device)
    compiled = torch.compile(pick, fullgraph=True, backend="aot_eager")
    expected = add_and_gradients(pick, inputs, upstream)
    found = add_and_gradients(compiled, inputs, upstream)
    torch._dynamo.reset()
    if used == "total":  # a compiled graph makes zeros where torch makes none
        for name in ("dweight", "dbias"):
            assert expected.pop(name) is None
            assert found[name] is None or found[name].count_nonzero() == 0  # type: ignore[union-attr]
    assert_same(found, expected)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"contiguous": lambda x: x, **STRIDED}


@pytest.mark.parametrize("layout", ["contiguous", "rows apart", "batch and tokens exchanged"])
def test_the_operators_are_what_they_declare(
    layout: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # opcheck compares storage offsets, which guards move
    x, up = (LAYOUTS[layout](torch.randn(3, 4, 40, device=device)) for _ in range(2))
    half, weight = up.half(), torch.randn(40, device=device)
    # without the slowest of the four tests, test_aot_dispatch_dynamic: the compiled test above is of its kind
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(fused.LAYER_NORM, (x, weight, None, 1e-5, torch.float16), test_utils=tests)
    torch.library.opcheck(fused.ADD_LAYER_NORM, (x, half, weight, weight, 1e-5, torch.float32), test_utils=tests)
    total, _, mean, rstd = fused.ADD_LAYER_NORM(x, up, weight, None, 1e-5, torch.float32)
    for dtotal in (up, None):
        torch.library.opcheck(fused.BACKWARD_OF_BOTH, (half, dtotal, total, weight, mean, rstd), test_utils=tests)


SECOND = 'layer-norm: .* no second derivative .* use the formulas: .*kernels="reference"'


@pytest.mark.parametrize("loss", [lambda y: y.sum(), lambda y: y.pow(2).sum()], ids=["linear", "square"])
def test_a_second_derivative_is_refused(loss: Callable[[Tensor], Tensor], device: torch.device) -> None:
    x, weight = numbers(4, 8, device=device), numbers(8, device=device)
    for y in (fused.layer_norm(x, weight, None, 1e-5), fused.add_layer_norm(x, x * 2, weight, None, 1e-5)[1]):
        with pytest.raises(RuntimeError, match=SECOND):
            torch.autograd.grad(loss(y), x, create_graph=True)


def test_nothing_is_recorded_when_nothing_is_learned(device: torch.device) -> None:
    x, weight = torch.randn(2, 8, device=device), torch.ones(8, device=device)
    assert not any(y.requires_grad for y in fused.add_layer_norm(x, x, weight, None, 1e-5))
    with torch.no_grad():
        assert not fused.layer_norm(x.requires_grad_(), weight, None, 1e-5).requires_grad


x, row = torch.zeros(4, 8), torch.zeros(8)
BAD_INPUT: dict[str, tuple[tuple[Tensor, Tensor | None, Tensor, Tensor | None], str]] = {
    "no dimension": (
        (torch.zeros(()), None, row, None),
        r"layer_norm: x has no dimension to normalise; give \(\.\.\., C\)",
    ),
    "too wide": (
        (torch.zeros(1, 8193), None, torch.zeros(8193), None),
        "layer_norm: rows of 8193 are wider than the kernel's 8192; use --kernels.layer-norm torch",
    ),
    "another delta": (
        (x, x[:3], row, None),
        r"layer_norm: residual is \(4, 8\) and delta \(3, 8\); they must be equal",
    ),
    "a delta of one row": (
        (x, x[:1], row, None),
        r"layer_norm: residual is \(4, 8\) and delta \(1, 8\); they must be equal",
    ),
    "weight too short": ((x, None, row[:7], None), r"layer_norm: weight is \(7,\); rows of 8 need \(8,\)"),
    "a matrix as weight": ((x, None, x, None), r"layer_norm: weight is \(4, 8\); rows of 8 need \(8,\)"),
    "bias too short": ((x, None, row, row[:1]), r"layer_norm: bias is \(1,\); rows of 8 need \(8,\)"),
    "float64": (
        (x.double(), None, row, None),
        "layer_norm: x is float64; the Triton kernel takes .*--kernels.backend reference",
    ),
    "weight and bias apart": (
        (x, None, row, row.half()),
        r"layer_norm: weight is torch\.float32 and bias torch\.float16; give both in one dtype",
    ),
    "integers": ((x.int(), None, row, None), "layer_norm: x is int32; the Triton kernel takes float32"),
    "a float64 bias": ((x, None, row, row.double()), "layer_norm: bias is float64; "),
    "two devices": (
        (x, None, row.to("meta"), None),
        "layer_norm: weight is on meta and the rest on (cpu|cuda:0); move one of them",
    ),
}


@pytest.mark.parametrize(("tensors", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input(
    tensors: tuple[Tensor, Tensor | None, Tensor, Tensor | None], words: str, device: torch.device
) -> None:
    rows, delta, *vectors = (t if t is None or t.is_meta else t.to(device) for t in tensors)
    call: Any = fused.layer_norm if delta is None else fused.add_layer_norm
    operands = [rows, *vectors] if delta is None else [rows, delta, *vectors]
    with pytest.raises(ValueError, match=f"^{words}"):
        call(*operands, 1e-5)


@pytest.mark.parametrize(
    ("installed", "interpreting", "dtype", "words"),
    [
        (True, False, torch.float32, r"need a GPU, and .*; TRITON_INTERPRET=1 in the environment runs them there"),
        (True, True, torch.bfloat16, r"cannot do bfloat16 arithmetic; it can do float32 and float16"),
        (False, False, torch.float32, r"Triton is not installed here; torch's operations need none"),
    ],
    ids=["no interpreter", "bf16 in the interpreter", "no triton"],
)
def test_a_cpu_that_cannot(
    installed: bool, interpreting: bool, dtype: torch.dtype, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "INSTALLED", installed)
    monkeypatch.setattr(launching, "INTERPRETING", interpreting)
    rows, weight = torch.randn(2, 8, dtype=dtype), torch.ones(8)
    for run in (
        lambda: fused.layer_norm(rows, weight, None, 1e-5),
        lambda: fused.add_layer_norm(rows, rows, weight, None, 1e-5),
    ):
        with pytest.raises(HardwareError, match=f"^layer_norm: .*{words}"):
            run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offsets_past_two_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # guards would double the 4 GB
    far = torch.zeros(2**31 + 64, dtype=torch.float16, device="cuda").as_strided((3, 64), (2**30, 1))
    near = torch.randn(3, 64, dtype=torch.float16, device="cuda")
    far.copy_(near)
    weight = torch.randn(64, device="cuda")
    inputs: list[list[Tensor | None]] = [[x, x.detach(), weight, None] for x in (far, near)]
    found, expected = (add_and_gradients(fused.add_layer_norm, i, (i[0], i[1])) for i in inputs)  # type: ignore[arg-type]
    assert_same(found, expected)
