"""What this machine offers: device, precision, threads and measured peak; each choice with the reason that is shown."""

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from smallgpt.domain.errors import HardwareError
from smallgpt.infrastructure import cpus
from smallgpt.infrastructure.hardware import available_memory, resident_memory
from smallgpt.infrastructure.launches import local_count

PROBED_MINUTES = 20  # compiling takes up to one, and gained 0 to 15 % of a step
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """A decision and, in a few words, why."""

    value: str
    reason: str


def choose_device(wanted: str) -> torch.device:
    """auto (the first GPU, else the CPU), cpu, cuda or cuda:N. Raises HardwareError for one that is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise HardwareError(f"unknown device {wanted!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise HardwareError(f"device {wanted!r} is not supported; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise HardwareError(
            f"device {wanted!r} is not there: torch {torch.__version__} sees {count} CUDA devices; use auto or cpu"
        )
    return device


def choose_precision(device: torch.device, wanted: str) -> Choice:
    """bf16 where the hardware computes it, else fp16 on a GPU and fp32 on a CPU. Raises HardwareError for a bad wish.

    `torch.cuda.is_bf16_supported()` is no guide: it says True on a T4, by emulation.
    """
    native, evidence = _bf16_evidence(device)
    if wanted == "auto":
        if native:
            return Choice("bf16", evidence)
        return (
            Choice("fp16", f"{evidence}; tensor cores take fp16") if device.type == "cuda" else Choice("fp32", evidence)
        )
    if wanted == "bf16" and not native and device.type == "cuda":
        raise HardwareError(f"bf16 cannot be used: {evidence}. Use --training.precision fp16 or auto.")
    if wanted == "bf16" and not native:
        raise HardwareError(f"bf16 would only be emulated: {evidence}. Use --training.precision fp32 or auto.")
    if wanted == "fp16" and device.type == "cpu":
        return Choice("fp16", "asked for; on a CPU it is slower than fp32 and good for tests only")
    return Choice(wanted, "asked for")


def _bf16_evidence(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor} {'has' if major >= 8 else 'has no'} bf16 arithmetic"
    capabilities = torch.cpu.get_capabilities()
    for name, key in (("AMX", "amx_tile"), ("AVX512-BF16", "avx512_bf16")):
        if capabilities.get(key, False):
            return True, f"the processor has {name}"
    return False, "the processor has neither AMX nor AVX512-BF16"


def choose_threads(wanted: int | None) -> Choice:
    """CPU threads for torch: as wished, else OMP_NUM_THREADS, else what this process may use.

    That is its cores, or less where its control group's quota allows less. With two hardware threads a core, one a core and
    all of them are timed on a matrix product.
    """
    if wanted is not None:
        return Choice(str(wanted), "asked for")
    variable, beside = os.environ.get("OMP_NUM_THREADS", ""), local_count()
    if beside > 1 and variable in ("", "1"):  # torchrun sets OMP_NUM_THREADS to 1 where the user did not
        share = max(1, cpus.cores() // beside)
        return Choice(str(share), f"{cpus.cores()} cores shared by {beside} processes")
    if variable.isdecimal() and int(variable) > 0:
        return Choice(variable, "OMP_NUM_THREADS")
    cores, quota = cpus.cores(), cpus.quota()
    usable = min(cpus.usable(), quota or cpus.usable())
    if usable < cores:
        return Choice(str(usable), f"the container may use {quota} of {cpus.usable()} processors")
    if cores == usable:
        return Choice(str(cores), f"{cores} cores are available to this process")
    times = {threads: _product_seconds(threads) for threads in (cores, usable)}
    words = ", ".join(f"{1e3 * seconds:.2g} ms with {threads}" for threads, seconds in times.items())
    return Choice(
        str(min(times, key=times.__getitem__)), f"{cores} cores of two hardware threads: a product takes {words}"
    )


def _product_seconds(threads: int) -> float:
    """The best of some matrix products."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, best = torch.randn(768, 768), float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return best


@lru_cache
def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of a square linear layer, the best of repeated runs: the ceiling that MFU is a share of."""
    n = size if device.type == "cpu" else 8 * size
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        _wait(device)
        start = time.perf_counter()
        a @ b.T  # as a linear layer has it: a CPU's fp16 kernels are 20 times slower on a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    del a, b
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # a run's peak is not to be that of this probe
    return 2 * n**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_in_use(device: torch.device) -> int:
    """Bytes: the peak allocated on a GPU, the peak resident size of this process on a CPU.

    The latter is Linux's VmHWM; ru_maxrss, taken where that is missing, counts from the peak of the parent process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_held(device: torch.device) -> int:
    """Bytes: allocated on a GPU, resident on a CPU. From here on memory_in_use() of a GPU counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return resident_memory()


def memory_available(device: torch.device) -> int | None:
    """Bytes that this process of a run may still take there; None where nothing tells.

    Processes of one machine share its memory, but have a GPU each.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_memory(local_count())


def choose_compile(device: torch.device, wanted: str, minutes: float | None = None) -> Choice:
    """ "on", "off" or "probe": torch.compile as asked, or under auto on a GPU where a toy compiles.

    On a CPU auto wants both ways timed where a run is planned in minutes and has enough of them. Raises HardwareError when
    it is asked for and the toy does not compile.
    """
    if wanted == "off":
        return Choice("off", "asked for")
    if wanted == "auto" and device.type == "cpu":
        if minutes is not None and minutes >= PROBED_MINUTES:
            return Choice("probe", f"a run of {minutes:g} minutes has time to find out")
        return Choice(
            "off", f"on a CPU a run of less than {PROBED_MINUTES} minutes spends more on compiling than it gains"
        )
    try:
        torch.compile(lambda x: torch.relu(x) + 1)(torch.randn(8, device=device))
    except Exception as error:  # whatever the compiler's stack raises means the same here: it does not work
        failure = f"the probe failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        if wanted == "on":
            raise HardwareError(f"torch.compile does not work here: {failure}. Use --training.compile auto.") from None
        return Choice("off", failure)
    return Choice("on", "asked for" if wanted == "on" else "a toy compiled and ran")


def choose_graphs(device: torch.device, wanted: str, obstacle: str | None = None) -> Choice:
    """ "on" or "off": the step as a CUDA graph. Raises HardwareError when it is asked for and cannot be."""
    if device.type != "cuda":
        obstacle = "a CPU has none"
    if obstacle is not None and wanted == "on":
        raise HardwareError(f"CUDA graphs cannot be used on {device}: {obstacle}; use --training.cuda-graphs auto")
    if obstacle is not None:
        return Choice("off", obstacle)
    if wanted == "off":
        return Choice("off", "asked for")
    return Choice(
        "on", "asked for" if wanted == "on" else "batches have fixed shapes and a step reads nothing on the host"
    )
