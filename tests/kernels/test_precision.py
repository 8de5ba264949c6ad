"""How fp32 is multiplied: whichever of torch's switches says so."""

import subprocess
import sys

import pytest

SWITCHES = {  # -> what fp32 products become
    "pass": "ieee",
    "torch.set_float32_matmul_precision('high')": "tf32",
    "torch.backends.cuda.matmul.allow_tf32 = True": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "tf32",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": "ieee",
    "torch.backends.fp32_precision = 'tf32'": "tf32",
}
PROGRAM = """
import torch
from smallgpt.kernels.precision import product_precision
{switch}
print(*[product_precision(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)])
"""


@pytest.mark.parametrize(("switch", "of_fp32"), SWITCHES.items())
def test_either_of_torchs_switches_is_read(switch: str, of_fp32: str) -> None:
    """In a process each, as no one process may use both."""
    program = PROGRAM.format(switch=switch)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [of_fp32, "ieee", "ieee"]
