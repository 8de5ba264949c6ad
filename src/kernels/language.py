"""Triton and its language, or stand-ins that let the kernel files be imported (not launched) where Triton is not installed."""

from types import SimpleNamespace
from typing import Any

try:
    import triton as _triton
    import triton.language as _language
except ModuleNotFoundError:  # macOS and Windows have no wheel
    _triton = SimpleNamespace(jit=lambda kernel: kernel)
    _language = SimpleNamespace(constexpr=lambda value: value)

triton: Any = _triton
tl: Any = _language


INSTALLED = hasattr(triton, "compile")
# Triton reads TRITON_INTERPRET where a kernel is defined, so the answer cannot change after the import.
INTERPRETING = INSTALLED and bool(triton.knobs.runtime.interpret)
