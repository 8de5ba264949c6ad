"""What this machine is: processor, memory, disk, GPUs, versions, caches. Linux; what it does not tell is None."""

import getpass
import os
import platform
import resource
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "numpy", "tiktoken", "tokenizers", "datasets", "pydantic", "safetensors", "cyclopts")


@dataclass(frozen=True)
class GPU:
    """One CUDA device as torch sees it."""

    name: str
    capability: str
    """Compute capability, such as 7.5."""
    memory_bytes: int


@dataclass(frozen=True)
class Hardware:
    """The machine around this process."""

    processor: str
    cores: int | None
    """Physical ones of the whole machine."""
    usable_threads: int
    """Logical ones that this process may use."""
    memory_bytes: int | None
    """Of the machine, or of the container if that is less."""
    available_memory_bytes: int | None
    free_disk_bytes: int
    """In the current folder."""
    gpus: list[GPU]


def hardware() -> Hardware:
    """Look at the machine; starts no CUDA context unless there is a GPU."""
    memory = _meminfo()
    limits = [size for size in (memory.get("MemTotal"), _container_memory()) if size]
    processor, cores = _processor()
    return Hardware(
        processor=processor,
        cores=cores,
        usable_threads=len(os.sched_getaffinity(0)),
        memory_bytes=min(limits, default=None),
        available_memory_bytes=available_memory(),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=_gpus(),
    )


def available_memory(processes: int = 1) -> int | None:
    """Bytes that this process may still take: of its own address space (ulimit -v), and of the machine and its container,
    which so many processes share evenly.
    """
    shared = [size // processes for size in (_meminfo().get("MemAvailable"), _left_in_container()) if size is not None]
    own = _left_of_addresses()
    return min(shared if own is None else [*shared, own], default=None)


def address_space() -> int:
    """Bytes of addresses that this process has taken; 0 where nothing tells."""
    return _own_memory()[0] if _own_memory() else 0


def resident_memory() -> int:
    """Bytes of this process in memory now; 0 where nothing tells."""
    return _own_memory()[1] if _own_memory() else 0


def versions() -> dict[str, str]:
    """Of Python and the packages that decide results and speed."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def caches() -> dict[str, Path]:
    """Folders that libraries write to, each by the environment variable that moves it."""
    temporary = Path(tempfile.gettempdir())
    home = {
        "SMALLGPT_CACHE": Path("~/.cache/smallgpt"),
        "HF_HOME": Path("~/.cache/huggingface"),
        "TIKTOKEN_CACHE_DIR": temporary / "data-gym-cache",
        "TRITON_CACHE_DIR": Path("~/.triton/cache"),
        "TORCHINDUCTOR_CACHE_DIR": temporary / f"torchinductor_{getpass.getuser()}",
    }
    return {name: Path(os.environ.get(name) or default).expanduser() for name, default in home.items()}


def is_writable(folder: Path) -> bool:
    """May this process write into the folder, or make it? Asks without writing."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def last_level_cache(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """Bytes of the largest cache that the first core has."""
    found = [0]
    for folder in caches.glob("index*"):
        words = "".join(_lines(str(folder / "size"))).strip()  # "32768K"
        if words.endswith("K") and words[:-1].isdigit():
            found.append(1024 * int(words[:-1]))
    return max(found) or None


def _gpus() -> list[GPU]:
    if not torch.cuda.is_available():
        return []
    seen = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [GPU(gpu.name, f"{gpu.major}.{gpu.minor}", gpu.total_memory) for gpu in seen]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> tuple[str, int | None]:
    """Model name and physical cores, from /proc/cpuinfo."""
    name, cores, socket = platform.processor() or platform.machine(), set(), ""
    for line in _lines("/proc/cpuinfo"):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key == "physical id":
            socket = value
        elif key == "core id":
            cores.add((socket, value))
    return name, len(cores) or None


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    fields = [line.replace(":", "").split() for line in _lines("/proc/meminfo")]
    return {field[0]: 1024 * int(field[1]) for field in fields if field[2:] == ["kB"]}


def _container_memory() -> int | None:
    """The limit of this control group (version 2); "max" is none."""
    words = "".join(_lines("/sys/fs/cgroup/memory.max")).strip()
    return int(words) if words.isdigit() else None


def _left_in_container() -> int | None:
    """What is in use counts without the files' cache that can be dropped."""
    limit, used = _container_memory(), "".join(_lines("/sys/fs/cgroup/memory.current")).strip()
    if limit is None or not used.isdigit():
        return None
    cache = [int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file ")]
    return max(0, limit - int(used) + sum(cache))


def _left_of_addresses() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else max(0, limit - address_space())


def _own_memory() -> list[int]:
    """This process's bytes: addresses, resident, ..."""
    return [int(pages) * resource.getpagesize() for line in _lines("/proc/self/statm") for pages in line.split()]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
