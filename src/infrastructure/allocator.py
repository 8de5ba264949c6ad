"""Freed memory stays with the process: glibc otherwise gives large tensors back, and the next one is mapped and zeroed anew.

A third of a CPU's training step at the seed's configuration went there. What this costs is that memory, once used, is not
seen as free by other processes until this one ends.
"""

import ctypes
import time

import torch

from smallgpt.infrastructure.devices import Choice

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
PROBE_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Tell this process's allocator, where it is glibc's, to keep what is freed. Does it?"""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def freed_memory_kept() -> Choice:
    """keep_freed_memory, and a measurement of what that gives."""
    before = _milliseconds()
    if not keep_freed_memory():
        return Choice("default", "the C library is not glibc, or refused")
    _milliseconds()  # the first block is still new
    after = _milliseconds()
    return Choice(
        "kept", f"64 MiB take {after:.1f} ms to fill when they were used before, and {before:.1f} ms when new"
    )


def _milliseconds() -> float:
    start = time.perf_counter()
    torch.empty(PROBE_BYTES, dtype=torch.uint8).fill_(1)
    return 1e3 * (time.perf_counter() - start)
