"""The C library's allocator, in a process of its own, since the choice is for a whole process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from smallgpt.infrastructure.allocator import freed_memory_kept
choice = freed_memory_kept() if {keep} else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**26, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults(), choice and choice.value)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has another allocator")
def test_memory_that_was_used_before_is_not_asked_for_again() -> None:
    found = {}
    for keep in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
        )
        faults, choice = done.stdout.split()
        found[keep] = int(faults)
        assert choice == ("kept" if keep else "None")
    assert found[True] < 50, "of up to 163,840 pages"
    assert found[False] > 10 * (found[True] + 1)
