"""The compile gate: every launch of every operation, compiled ahead of time for every architecture, without a GPU.

The host code of an operation runs on meta tensors and says what it would launch; Triton, told that a GPU of the target
architecture is there, specialises and compiles exactly that; the compiler's own figures are read off the result.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.resources import files
from json import loads
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.kernels.compile_report import Report, Row
from smallgpt.kernels.kernel_source import source_of
from smallgpt.kernels.language import INSTALLED, INTERPRETING, triton
from smallgpt.kernels.launching import Launch, Variant, recording


@dataclass(frozen=True)
class Job:
    """One distinct launch to compile."""

    row: Row
    """What is known before compiling."""
    index: int
    """Which of its variant's launches it is."""


def check_compiler() -> None:
    """Raise HardwareError without Triton, ConfigError where its kernels were defined for the interpreter."""
    if not INSTALLED:
        raise HardwareError("Triton is not installed here, and with it the compiler; on Linux: pip install triton")
    if INTERPRETING:
        raise ConfigError(
            "TRITON_INTERPRET is set, so there is nothing to compile: the kernels belong to the interpreter\n"
            "run it as: env -u TRITON_INTERPRET smallgpt kernels compile"
        )


def version() -> str:
    """The compiler's: another one may make other code of the same kernel."""
    return str(triton.__version__)


def up_to_date(jobs: Iterable[Job], report: Report) -> tuple[list[Row], list[Job]]:
    """(rows of the launches that the report knows from this compiler, the jobs that are left)."""
    known = report.rows if report.triton == version() else {}
    rows, changed = [], []
    for job in jobs:
        if job.row.key in known:
            # Names and citations are not in the key.
            rows.append(replace(known[job.row.key], variant=job.row.variant, measured=job.row.measured))
        else:
            changed.append(job)
    return rows, changed


def jobs(operation: str, target: str) -> list[Job]:
    """Every distinct launch of an operation on a target, each under the first variant that asks for it."""
    found: dict[str, Job] = {}
    excuses = _measured(operation, target)
    with _gpu_pretended(target):
        for variant in _variants(operation).values():
            for index, launch in enumerate(_launches(variant, target)):
                row = _identify(operation, target, variant.name, launch)
                found.setdefault(row.key, Job(replace(row, measured=_excuse(excuses, launch)), index))
    return list(found.values())


def compile_job(job: Job) -> Row:
    """Compile one launch, past all caches; a failure to compile is a finding too."""
    row = job.row
    launch = _launches(_variants(row.operation)[row.variant], row.target)[job.index]
    return replace(row, **compile_launch(launch, row.target))


def compile_launch(launch: Launch, target: str) -> dict[str, Any]:
    """Fields of a Row: what the compiler made of a launch; only `error`, if it made nothing."""
    with _gpu_pretended(target) as device, TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        try:
            compiled = launch.kernel.run(grid=(1,), warmup=True, **launch.arguments)
        except Exception as error:  # whatever kind the compiler raises
            return {"error": f"{type(error).__name__}: {_last_line(error)}"}
        finally:
            launch.kernel.device_caches.pop(device, None)  # thousands would fill the memory
    return figures(compiled.asm, compiled.metadata) | {"error": ""}


def figures(asm: Mapping[str, Any], metadata: Any) -> dict[str, Any]:
    """What the compiler's products say, as fields of a Row."""
    machine_code = asm["ptx"] if "ptx" in asm else asm["amdgcn"]
    registers, spill_bytes = _cubin_usage(asm["cubin"]) if "cubin" in asm else amdgcn_usage(machine_code)
    return {
        "dots": dots(asm["ttir"]),
        "instruction": instruction(asm["ttgir"], machine_code),
        "registers": registers,
        "spill_bytes": spill_bytes,
        "shared_bytes": metadata.shared,
        "tensor_memory": getattr(metadata, "tmem_size", None) or 0,  # AMD's metadata has no such field
    }


def dots(ttir: str) -> str:
    """The operand types of the matrix products in Triton's IR, joined by "+": "bf16", "f32" (exact), "tf32"; "" for none."""
    found = set()
    for attributes, dtype in re.findall(r"= tt\.dot (.*?) : tensor<[\dx]+x(\w+)[,>]", ttir):
        precision = re.search(r"inputPrecision = (\w+)", attributes)
        found.add(precision[1] if dtype == "f32" and precision else dtype)
    return "+".join(sorted(found))


def instruction(ttgir: str, machine_code: str) -> str:
    """What computes the matrix products, as compile_report.Row has it, from Triton's GPU IR and PTX or AMD assembly."""
    found = set(re.findall(r"\b(mma\.sync|wgmma(?=\.mma_async)|tcgen05\.mma)\b", machine_code))
    found |= {f"v_mfma_{dtype}" for dtype in re.findall(r"\bv_mfma_f32_\d+x\d+x\d+_?(\w*?f\d+)", machine_code)}
    # A product that no matrix unit takes keeps the layout of ordinary arithmetic.
    if re.search(r"= tt\.dot .*-> tensor<[^>]*#blocked\d*>", ttgir):
        found.add("fma")
    return "+".join(sorted(found)) or "none"


def amdgcn_usage(assembly: str) -> tuple[int, int]:
    """(registers, spilled bytes) of a thread, from the metadata of AMD assembly; scratch memory counts as spilled."""
    registers, scratch = (
        int(re.findall(rf"^ *\.{name}: +(\d+)", assembly, re.MULTILINE)[0])
        for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, scratch


def cuobjdump_usage(printed: str) -> tuple[int, int]:
    """(registers, spilled bytes) of a thread, from `cuobjdump --dump-resource-usage`; the stack holds what is spilled."""
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", printed)[0]
    return int(registers), int(stack)


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    with TemporaryDirectory() as folder:
        path = f"{folder}/kernel.cubin"
        with open(path, "wb") as file:
            file.write(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
        return cuobjdump_usage(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _last_line(error: Exception) -> str:
    """The point of a compiler's message, which follows an excerpt of the source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


@cache
def _variants(operation: str) -> dict[str, Variant]:
    listed = list(import_module(f"smallgpt.kernels.{operation}.variants").variants())
    by_name = {variant.name: variant for variant in listed}
    if len(by_name) < len(listed):
        raise ValueError(f"{operation}: two variants have the same name")
    return by_name


def _launches(variant: Variant, target: str) -> list[Launch]:
    with recording(target) as launches:
        variant.run()
    return launches


class _PretendedDriver:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, device: object, target: object) -> None:
        self._device, self._target = device, target

    def get_current_device(self) -> object:
        return self._device

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> object:
        return self._target


@contextmanager
def _gpu_pretended(target: str) -> Iterator[object]:
    """Make Triton see a GPU of `target`; yields the device, a key that no real GPU and no other call has."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    named = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    device = object()
    try:
        before = driver.active
    except RuntimeError:  # no GPU here
        before = None
    driver.set_active(_PretendedDriver(device, named))
    try:
        yield device
    finally:
        driver.set_active(before)


def _identify(operation: str, target: str, variant: str, launch: Launch) -> Row:
    """The row of a launch that is not compiled yet."""
    kernel, arguments = launch.kernel, launch.arguments
    tile = [_word(p.name, arguments[p.name]) for p in kernel.params if p.is_constexpr and p.name in arguments]
    name = f"{kernel.__module__}.{kernel.__name__}".removeprefix(f"smallgpt.kernels.{operation}.")
    parts = (operation, target, name, source_of(kernel), _specialisation(launch))
    return Row(
        operation=operation,
        target=target,
        kernel=name.removeprefix("kernels."),
        variant=variant,
        key=sha256(repr(parts).encode()).hexdigest()[:12],
        tile=" ".join(filter(None, tile)),
        num_warps=arguments["num_warps"],
        num_stages=arguments["num_stages"],
    )


def _word(name: str, value: object) -> str:
    """BLOCK_M, 64 -> "M=64"; flags appear where they are set."""
    if value is None or value is False:
        return ""
    return name if value is True else f"{name.removeprefix('BLOCK_')}={value}"


def _specialisation(launch: Launch) -> str:
    """What Triton would compile this launch for: types, constants, which numbers are divisible by 16, and options."""
    keys: list[str] = []

    def note_and_stop(*, key: str, **_: object) -> bool:
        keys.append(key)
        return True

    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = note_and_stop
        launch.kernel.run(grid=(1,), warmup=True, **launch.arguments)
    return keys[0]


def _measured(operation: str, target: str) -> list[dict[str, Any]]:
    """The entries of an operation's tile table that cite a measurement, if it has a table."""
    table = files("smallgpt.kernels").joinpath(operation, "tiles.json")
    entries = loads(table.read_text(encoding="utf-8")) if table.is_file() else []
    return [entry for entry in entries if entry["architecture"] == target and "measured" in entry]


def _excuse(entries: list[dict[str, Any]], launch: Launch) -> str:
    """The measurement cited by the table entry that this launch came from; "" without one."""
    arguments = launch.arguments
    bits = {8 * value.element_size() for value in arguments.values() if isinstance(value, Tensor)}
    for entry in entries:
        constants = entry["tile"].items() <= arguments.items() and entry["size"] in map(_number, arguments.values())
        if constants and entry["bits"] in bits:
            return str(entry["measured"])
    return ""


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
