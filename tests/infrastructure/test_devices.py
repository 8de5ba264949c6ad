"""Choices about the machine, each with its reason; machines that are not here are put in its place."""

import os
import time
from pathlib import Path

import pytest
import torch

from smallgpt.domain.errors import HardwareError
from smallgpt.infrastructure import cpus, devices
from smallgpt.infrastructure.devices import choose_compile, choose_device, choose_precision, choose_threads

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, capability: tuple[int, int] = (8, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # what it says on a T4, too


def processor(monkeypatch: pytest.MonkeyPatch, *features: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_with_gpus_auto_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(HardwareError, match=r"'cuda:2' is not there: .* sees 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:7", "gpu", "", "tpu", "mps", "meta", "cuda:-1", "cuda:x"])
def test_a_device_that_is_not_there_is_an_error_that_names_it(wanted: str) -> None:
    with pytest.raises(HardwareError, match=f"device '{wanted}'") as caught:
        choose_device(wanted)
    assert "auto" in str(caught.value), "the remedy"
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("features", "precision", "evidence"),
    [
        ([], "fp32", "neither AMX nor AVX512-BF16"),
        (["avx2", "avx512_f"], "fp32", "neither"),
        (["avx512_bf16"], "bf16", "AVX512-BF16"),
        (["amx_tile", "amx_bf16"], "bf16", "AMX"),
    ],
)
def test_on_a_cpu_bf16_is_taken_where_the_processor_computes_it(
    monkeypatch: pytest.MonkeyPatch, features: list[str], precision: str, evidence: str
) -> None:
    processor(monkeypatch, *features)
    choice = choose_precision(CPU, "auto")
    assert choice.value == precision
    assert evidence in choice.reason


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")],
)
def test_on_a_gpu_the_capability_decides_and_not_is_bf16_supported(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    """The T4 (7.5) emulates bf16 and calls that support."""
    gpus(monkeypatch, 1, capability)
    choice = choose_precision(CUDA, "auto")
    assert choice.value == precision
    assert f"{capability[0]}.{capability[1]}" in choice.reason


def test_bf16_that_would_be_emulated_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1, (7, 5))
    processor(monkeypatch)
    with pytest.raises(HardwareError, match=r"7\.5 .*fp16 or auto"):
        choose_precision(CUDA, "bf16")
    with pytest.raises(HardwareError, match=r"neither .*fp32 or auto"):
        choose_precision(CPU, "bf16")


@pytest.mark.parametrize("wanted", ["fp32", "fp16", "bf16"])
def test_a_precision_that_works_is_taken_as_asked(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    processor(monkeypatch, "avx512_bf16")
    choice = choose_precision(CPU, wanted)
    assert choice.value == wanted
    assert "asked for" in choice.reason
    assert devices.DTYPES[choice.value].is_floating_point


@pytest.mark.parametrize(
    ("wanted", "variable", "expected", "reason"),
    [
        (3, "5", "3", "asked for"),
        (None, "5", "5", "OMP_NUM_THREADS"),
        (None, "", "2", "2 cores"),
        (None, "0", "2", "2 cores"),  # nothing that torch would take
        (None, "4,2", "2", "2 cores"),
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, variable: str, expected: str, reason: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {4, 6})
    choice = choose_threads(wanted)
    assert choice.value == expected
    assert reason in choice.reason


def test_the_measured_peak_is_a_plausible_speed() -> None:
    devices.matmul_peak.cache_clear()
    peak = devices.matmul_peak(CPU, torch.float32, size=128, seconds=0.02)
    assert 1e8 < peak < 1e14
    assert devices.matmul_peak(CPU, torch.float32, size=128, seconds=0.02) == peak, "measured once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_linear_layer_is_much_faster_than_the_ceiling(dtype: torch.dtype) -> None:
    devices.matmul_peak.cache_clear()
    ceiling = devices.matmul_peak(CPU, dtype, size=256, seconds=0.1)
    x, weight, best = torch.randn(256, 256).to(dtype), torch.randn(256, 256).to(dtype), float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    assert 2 * 256**3 / best < 2 * ceiling


def test_the_memory_in_use_grows_with_use() -> None:
    before = devices.memory_in_use(CPU)
    size = before // 2 + 2**27  # more than what earlier tests may have given back
    block = torch.ones(size, dtype=torch.uint8)
    assert devices.memory_in_use(CPU) > 2**27
    assert devices.memory_in_use(CPU) >= before
    del block


def failing_compile(function: object) -> object:
    raise OSError("no C++ compiler found\nsecond line")


def test_compiling_is_chosen_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_compile(CPU, "off").value == "off"
    assert choose_compile(CPU, "auto").value == "off"
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert choose_compile(CPU, "on").value == "on"
    monkeypatch.setattr(torch, "compile", failing_compile)
    with pytest.raises(HardwareError, match=r"OSError: no C\+\+ compiler found. Use --training.compile auto"):
        choose_compile(CPU, "on")
    choice = choose_compile(CUDA, "auto")
    assert choice.value == "off"
    assert "no C++ compiler" in choice.reason


@pytest.mark.parametrize(
    ("quota", "expected", "reason"), [(3, "3", "may use 3 of 8"), (8, "8", "8 cores"), (None, "8", "8 cores")]
)
def test_a_containers_quota_limits_the_threads(
    monkeypatch: pytest.MonkeyPatch, quota: int | None, expected: str, reason: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpus, "usable", lambda: 8)
    monkeypatch.setattr(cpus, "cores", lambda: 8)
    monkeypatch.setattr(cpus, "quota", lambda: quota)
    choice = choose_threads(None)
    assert choice.value == expected
    assert reason in choice.reason


@pytest.mark.parametrize(("seconds", "expected"), [({4: 1.0, 8: 2.0}, "4"), ({4: 2.0, 8: 1.0}, "8")])
def test_with_two_threads_a_core_the_faster_count_is_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], expected: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpus, "usable", lambda: 8)
    monkeypatch.setattr(cpus, "cores", lambda: 4)
    monkeypatch.setattr(cpus, "quota", lambda: None)
    monkeypatch.setattr(devices, "_product_seconds", seconds.__getitem__)
    choice = choose_threads(None)
    assert choice.value == expected
    assert "4 cores of two hardware threads" in choice.reason


def test_processors_are_counted_from_the_kernels_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cpu, (package, core) in enumerate([(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)]):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{package}\n")
        (topology / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(cpus, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(cpus, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert (cpus.usable(), cpus.cores()) == (6, 4), "the sixth is not described, and counts as a core"
    assert cpus.quota() is None
    for words, expected in (("max 100000", None), ("150000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(words + "\n")
        assert cpus.quota() == expected


def test_a_cpu_run_compiles_only_when_it_is_long_and_it_wins() -> None:
    assert choose_compile(CPU, "auto", minutes=3).value == "off"
    assert choose_compile(CPU, "auto", minutes=devices.PROBED_MINUTES).value == "probe"


def test_cuda_graphs_are_for_gpus() -> None:
    assert devices.choose_graphs(CPU, "auto").value == "off"
    assert devices.choose_graphs(CUDA, "auto").value == "on"
    assert devices.choose_graphs(CUDA, "off").reason == "asked for"
    for device, obstacle in ((CPU, None), (CUDA, "it waits")):
        assert devices.choose_graphs(device, "auto", obstacle).value == "off"
        with pytest.raises(HardwareError, match=r"use --training\.cuda-graphs auto"):
            devices.choose_graphs(device, "on", obstacle)
