"""The harness finds what it is there to find."""

import pytest
import torch

from smallgpt.kernels.language import tl, triton
from smallgpt.kernels.launching import launch
from tests.kernels.fused.parity import DTYPES, assert_as_good_as_eager
from tests.kernels.memory import Memory


@triton.jit
def fill(out_ptr, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.full([BLOCK], 1.0, tl.float32), at < n)


@pytest.mark.parametrize("written", [8, 9, 16])
def test_a_kernel_that_writes_past_its_output_is_found(device: torch.device, written: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        memory = Memory()
        patch.setattr(torch, "empty", memory.guarding(torch.empty, keep=False))
        out = torch.empty(8, device=device)
    launch(fill, (1,), out_ptr=out, n=written, BLOCK=16, num_warps=1, num_stages=1)
    assert torch.equal(out, torch.ones_like(out))
    if written == 8:
        memory.check()
    else:
        with pytest.raises(AssertionError, match=f"^{written - 8} elements were written .*, the first at 8 "):
            memory.check()


def test_writes_to_an_input_and_between_its_rows_are_found() -> None:
    for row in (slice(0, 4), slice(4, 5)):
        memory = Memory()
        x = memory.guard(torch.randn(3, 6)[:, :4], offset=1)
        memory.check()
        x.as_strided((3, 5), (6, 1))[1, row] = 0
        with pytest.raises(AssertionError, match=f"the first at {6 + row.start} "):
            memory.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64], ids=str)
def test_a_copy_of_poison_is_told_from_poison(dtype: torch.dtype) -> None:
    memory = Memory()
    empty = memory.guarding(torch.empty, keep=False)
    a, b = empty(4, dtype=dtype), empty(4, dtype=dtype)
    assert a.isnan().all() if dtype.is_floating_point else (a < 0).all()
    b.as_strided((1,), (1,), b.storage_offset() - 1).copy_(a.as_strided((1,), (1,), a.storage_offset() - 1))
    with pytest.raises(AssertionError, match="the first at -1 "):
        memory.check()


def test_the_tolerance_rule_can_fail() -> None:
    exact = torch.randn(5, dtype=torch.float64)
    eager = exact.float() + 1e-3
    for dtype in DTYPES:
        assert_as_good_as_eager(exact.to(dtype), exact.to(dtype), exact, dtype, "y")
    for wrong in (exact.float() + 3e-3, exact.float() + torch.nan, exact.half(), exact.float()[:4], None):
        with pytest.raises(AssertionError, match=r"^y: "):
            assert_as_good_as_eager(wrong, eager, exact, torch.float32, "y")
