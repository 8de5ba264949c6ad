"""What tests of the Triton kernels get, also on a bare machine with a GPU, where tests/conftest.py is not loaded:

PYTHONPATH=typings python3 -m pytest -c /dev/null --rootdir . --confcutdir tests/kernels/fused tests/kernels/fused
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides where a kernel is defined whether to interpret it: before the first import of smallgpt.kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.kernels.memory import memory

__all__ = ["memory"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    # torch.compile's own, where it meets an autograd.Function
    config.addinivalue_line("filterwarnings", "ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def fixed_seed_and_one_thread() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # fp32 products are fp32 products: no TF32


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
