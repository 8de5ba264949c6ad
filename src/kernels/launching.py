"""Every Triton launch goes through here: on which hardware, with what checks, and, for the compile gate, without a GPU."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.errors import HardwareError
from smallgpt.kernels.language import INSTALLED, INTERPRETING

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What the tile tables know. Capabilities in between take the entry below them: 8.7 is tiled as 8.6.
CUDA_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ARCHITECTURES = (*CUDA_ARCHITECTURES, "gfx942")
INTERPRETED = "sm_80"  # whose tiles the interpreter takes


@dataclass(frozen=True)
class Launch:
    """One kernel launch, as asked for."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    """By the kernel's own parameter names; also num_warps and num_stages."""


@dataclass(frozen=True)
class Variant:
    """Something the compile gate compiles: host code that, on meta tensors under recording(), asks for launches."""

    name: str
    """What is special about it: "width 256 bf16"."""
    run: Callable[[], object]


@dataclass(frozen=True)
class Tunable:
    """One entry of a table, and host code that launches its kernel."""

    kernel: str
    size: int
    bits: int
    run: Callable[[str], object]
    """Given a device ("meta", "cuda"), does one representative piece of work."""
    index: int
    """Which of the launches is the kernel's."""


_forced_architecture: str | None = None
_recorded: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run `kernel` over `grid`, its arguments by name, num_warps and num_stages among them."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments))
        return
    device = next((value.device for value in arguments.values() if isinstance(value, Tensor)), None)
    if device is None or device.type != "cuda":
        kernel[grid](**arguments)
        return
    architecture(device)  # an error with a remedy, where Triton's own would have none
    with torch.cuda.device(device):  # Triton launches on the current one
        kernel[grid](**arguments)


@contextmanager
def recording(architecture: str) -> Iterator[list[Launch]]:
    """Collect what would be launched on `architecture` instead of launching it: host code may then run on meta tensors."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        with tiled_for(architecture):
            yield _recorded
    finally:
        _recorded = previous


@contextmanager
def tiled_for(architecture: str) -> Iterator[None]:
    """Take the tiles of `architecture`, whatever the device is."""
    global _forced_architecture
    previous, _forced_architecture = _forced_architecture, architecture
    try:
        yield
    finally:
        _forced_architecture = previous


def architecture(device: torch.device) -> str:
    """The tile tables' name for a device, "sm_90" or "gfx942". Raises HardwareError for one that Triton does not serve."""
    if _forced_architecture is not None:
        return _forced_architecture
    if device.type == "cuda":
        return _architecture_of(device.index if device.index is not None else torch.cuda.current_device())
    return INTERPRETED


@cache
def _architecture_of(index: int) -> str:
    if torch.version.hip is not None:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        if name != "gfx942":
            raise HardwareError(f"there are no tiles for AMD's {name}, only for gfx942; torch's operations need none")
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(index)
    known = [name for name in CUDA_ARCHITECTURES if int(name[3:]) <= 10 * major + minor]
    if not known:
        raise HardwareError(
            f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, and Triton needs 7.5 or more; "
            "torch's operations run there"
        )
    return known[-1]


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once, at least; 2 where nothing is known."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def check(operation: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for dtypes or devices that the kernels do not take, HardwareError where they cannot run at all."""
    first: Tensor | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{operation}: {name} is {_word(tensor.dtype)}; the Triton kernel takes float32, float16 and bfloat16 "
                "(float64: --kernels.backend reference)"
            )
        if first is not None and tensor.device != first.device:
            raise ValueError(
                f"{operation}: {name} is on {tensor.device} and the rest on {first.device}; move one of them"
            )
        first = first if first is not None else tensor
    if first is not None and _recorded is None:
        _check_runs(operation, first.device.type, first.dtype)


def _check_runs(operation: str, device: str, dtype: torch.dtype) -> None:
    if not INSTALLED:
        raise HardwareError(f"{operation}: Triton is not installed here; torch's operations need none")
    if device != "cpu":
        return
    if not INTERPRETING:
        raise HardwareError(
            f"{operation}: the Triton kernels need a GPU, and the tensors are on the CPU; "
            "TRITON_INTERPRET=1 in the environment runs them there, slowly, in Triton's interpreter"
        )
    if dtype == torch.bfloat16:
        raise HardwareError(
            f"{operation}: Triton's interpreter cannot do bfloat16 arithmetic; it can do float32 and float16"
        )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def define(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register smallgpt::`name` with torch, so that torch.compile and CUDA graphs see one opaque call; returns it."""
    qualified = f"smallgpt::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("CUDA", "CPU"), implementation)
    torch.library.register_fake(qualified, fake)
    return getattr(torch.ops.smallgpt, name).default
