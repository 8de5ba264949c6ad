"""What two hosts send each other in a step is what the arithmetic says. Hosts are network namespaces."""

import os
import subprocess

import pytest

from tests.benchmarks.scale_out import bytes_sent

OVERHEAD = 0.05
"""Headers of a frame are 66 of 1,514 bytes, 4.4 %, where none is sent in one piece; some 10 kB are norms and counts."""


@pytest.mark.slow
@pytest.mark.usefixtures("hosts_can_be_made")
def test_a_process_sends_what_was_counted() -> None:
    found = {row["what"]: row for row in bytes_sent(tiny=True, counts=(2,))}
    steps = [name for name, row in found.items() if row["gloo_megabytes"] is not None]
    assert len(steps) == 6
    for name in steps:
        assert 1 <= found[name]["ratio"] < 1 + OVERHEAD, name
    assert found["reduce-scatter of 4 MiB"]["ratio"] == pytest.approx(2, rel=OVERHEAD)  # gloo's is an all-reduce
    assert found["all-gather of 4 MiB"]["ratio"] == pytest.approx(1, rel=OVERHEAD)
    assert found["fsdp2: evaluation"]["ratio"] == pytest.approx(1, rel=OVERHEAD)
    assert 1 <= found["fsdp2: checkpoint"]["ratio"] < 1.2  # 1.16 of this tiny model, 1.05 of the benchmark's
    left = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert f"smallgpt-{os.getpid()}" not in left
