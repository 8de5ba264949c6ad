"""The tuner, without a GPU: the table's entries are what it finds again."""

import json
import os
import subprocess
import sys

import pytest

from smallgpt.kernels.tiles import table

FIRST = "from itertools import islice; from json import dumps; from smallgpt.kernels.tuning import tune; "


@pytest.mark.parametrize(("operation", "architecture"), [("attention", "sm_90"), ("linear_cross_entropy", "sm_80")])
def test_the_first_candidate_that_fits_is_the_tables_entry(operation: str, architecture: str) -> None:
    """In a process where the kernels are not the interpreter's."""
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = f"{FIRST}print(dumps(next(tune({operation!r}, {architecture!r}))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=outside, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"kernel", "architecture", "size", "bits", "tile", "evidence"}
    assert found["architecture"] == architecture
    assert found["evidence"].startswith("compiled: ")
    assert "no spill" in found["evidence"]
    assert table(operation)[found["kernel"], architecture, found["size"], found["bits"]] == found["tile"]
