"""The stopwatch: what is prepared does not count, nor does the warm-up."""

from types import SimpleNamespace

import pytest
import torch

from smallgpt.kernels import timing
from smallgpt.kernels.timing import copy_bandwidth, measure

CPU = torch.device("cpu")


@pytest.mark.parametrize(("milliseconds", "repeats"), [(10.0, 6), (1e3, 3), (1e-3, 100)])
def test_only_what_is_prepared_is_timed_after_one_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch, milliseconds: float, repeats: int
) -> None:
    now, runs = [0.0], []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run() -> None:
        runs.append(1)
        now[0] += 50.0 if len(runs) == 1 else 1e-3 * milliseconds

    def prepare() -> timing.Run:
        now[0] += 7.0
        return run

    samples = measure(prepare, CPU, seconds=0.055)
    assert samples.milliseconds == pytest.approx([milliseconds] * repeats)
    assert len(runs) == 1 + repeats
    assert samples.how == "clock"


def test_a_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_millisecond(prepare: timing.Prepare, device: torch.device, seconds: float) -> timing.Samples:
        prepare()()
        return timing.Samples([3.0, 1.0, 2.0], "clock")

    monkeypatch.setattr(timing, "measure", one_millisecond)
    assert copy_bandwidth(CPU) == pytest.approx(2 * 2**26 / 1e-3)
