"""Triton and its language, or stand-ins that let the kernel files be imported (not launched) where Triton is not installed."""

from types import SimpleNamespace
from typing import Any

triton: Any
tl: Any

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # macOS and Windows have no wheel
    triton = SimpleNamespace(jit=lambda kernel: kernel)
    tl = SimpleNamespace(constexpr=lambda value: value)


INSTALLED = hasattr(triton, "compile")
# Triton reads TRITON_INTERPRET where a kernel is defined, so the answer cannot change after the import.
INTERPRETING = INSTALLED and bool(triton.knobs.runtime.interpret)
