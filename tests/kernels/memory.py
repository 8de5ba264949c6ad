"""Memory for kernel tests: what was never written reads as nan, and what lies around a tensor must stay as it was."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

BAND = 4096  # elements before and after; a multiple of every alignment that a kernel may count on
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ALLOCATORS = (
    *[(torch, name, False) for name in ("empty", "empty_like", "empty_strided")],
    *[(torch, name, True) for name in ("zeros", "zeros_like")],
    (Tensor, "new_empty", False),
    (Tensor, "new_zeros", True),
)


@dataclass(frozen=True)
class _Place:
    """A tensor handed out: its storage, that as it was then, and which part of it is the kernel's to write."""

    storage: Tensor
    before: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    writable: bool

    def changed(self) -> Tensor:
        """Where something was written that should not have been, counted from the tensor's start."""
        expected = self.before.clone()
        if self.writable:
            self.of(expected).copy_(self.of(self.storage))
        return (_bits(self.storage) != _bits(expected)).nonzero().flatten() - self.start

    def of(self, storage: Tensor) -> Tensor:
        return storage.as_strided(self.shape, self.strides, self.start)


class Memory:
    """Hands out tensors that lie within larger storages, and finds what was written to the rest of those."""

    def __init__(self) -> None:
        self._places: list[_Place] = []

    def guard(self, tensor: Tensor, offset: int = 0) -> Tensor:
        """A copy of an input, with its strides, that nobody may write to; `offset` elements off its alignment."""
        return self._place(tensor, offset, contents=tensor, writable=False)

    def guarding(self, allocate: Callable[..., Tensor], keep: bool) -> Callable[..., Tensor]:
        """`allocate` (torch.empty, ...) with guard bands; `keep` what it has written, as torch.zeros does."""

        def guarded(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if _is_traced(tensor) or "out" in kwargs:
                return tensor
            with _disable_current_modes():  # a test that counts allocations counts the one above
                return self._place(tensor, 0, contents=tensor if keep else None, writable=True)

        return guarded

    def check(self) -> None:
        """Fail if anything was written beside the tensors handed out, or to one that was only to be read."""
        for place in self._places:
            changed = place.changed()
            assert changed.numel() == 0, (
                f"{changed.numel()} elements were written that are not the kernel's to write, the first at {int(changed[0])} "
                f"from the start of a {place.shape} {place.storage.dtype} with strides {place.strides}"
            )

    def _place(self, like: Tensor, offset: int, contents: Tensor | None, writable: bool) -> Tensor:
        steps = zip(like.shape, like.stride(), strict=True)
        span = 1 + sum((n - 1) * stride for n, stride in steps) if like.numel() else 0
        storage = _poison(span + 2 * BAND + offset, like.dtype, 41 * len(self._places), like.device)
        inside = storage.as_strided(like.shape, like.stride(), BAND + offset)
        if contents is not None:
            inside.copy_(contents.detach())
        self._places.append(_Place(storage, storage.clone(), tuple(like.shape), like.stride(), BAND + offset, writable))
        return inside.requires_grad_(like.requires_grad)


def _is_traced(tensor: Tensor) -> bool:
    """Is it none that a kernel is about to write: a fake one, or one of a CUDA graph?"""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or tensor.is_meta:
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _poison(count: int, dtype: torch.dtype, salt: int, device: torch.device) -> Tensor:
    """nan, or for integers negative numbers: each another, so that one copied from elsewhere is told apart."""
    payload = torch.arange(salt, salt + count, device=device)
    if not dtype.is_floating_point:
        return (-1 - payload).to(dtype)
    nan = torch.full((1,), torch.nan, dtype=dtype, device=device).view(_BITS[dtype.itemsize])
    payloads = int(0.5 / torch.finfo(dtype).eps)  # below the bit that makes it a quiet nan
    return (nan + (payload % payloads).to(nan.dtype)).view(dtype)


def _bits(x: Tensor) -> Tensor:
    return x.view(_BITS[x.dtype.itemsize])


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """torch.empty, torch.zeros and their kin hand out guarded, poisoned memory, checked when the test is over."""
    made = Memory()
    for owner, name, keep in _ALLOCATORS:
        monkeypatch.setattr(owner, name, made.guarding(getattr(owner, name), keep))
    yield made
    monkeypatch.undo()
    made.check()
