"""Peak memory on a CPU, against allocations counted by hand."""

import subprocess
import sys

import pytest
import torch

from smallgpt.infrastructure.allocations import peak_bytes

CPU = torch.device("cpu")
MEGABYTE = 250_000  # elements of fp32


def test_the_peak_is_what_lives_at_a_time_and_not_all_that_was_allocated() -> None:
    def run() -> torch.Tensor:
        x = torch.empty(MEGABYTE)
        y = torch.empty(2 * MEGABYTE)
        del x, y
        return torch.empty(MEGABYTE)

    assert peak_bytes(run, CPU) == pytest.approx(3e6, rel=1e-3)


def test_what_was_there_before_does_not_count() -> None:
    held = torch.empty(5 * MEGABYTE)
    assert peak_bytes(lambda: held + 1, CPU) == pytest.approx(held.numel() * 4, rel=1e-3)
    assert peak_bytes(lambda: held.add_(1), CPU) < 1000


def test_a_backward_pass_counts_what_autograd_saved_and_the_gradient() -> None:
    x = torch.randn(MEGABYTE, requires_grad=True)

    def run() -> tuple[torch.Tensor, ...]:
        y = (2 * x).exp()  # 1 MB for the product, freed; 1 MB saved
        return torch.autograd.grad(y.sum(), x)  # 1 MB for dy·y, and 1 MB for 2 of it

    assert peak_bytes(run, CPU) == pytest.approx(3e6, rel=1e-3)


def test_workspaces_inside_torchs_kernels_count() -> None:
    q = torch.randn(1, 1, 64, 16)

    def run() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    assert peak_bytes(run, CPU) > q.numel() * q.element_size() + 4 * 64  # more than the result and its statistics


SILENT = """
import torch
from smallgpt.infrastructure.allocations import peak_bytes
peak_bytes(lambda: torch.empty(1), torch.device("cpu"))
"""


def test_nothing_is_written_to_stderr() -> None:
    """In a process of its own: the profiler asks how much to say once, at its first start."""
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
