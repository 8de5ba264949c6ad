"""Which hardware a launch is tiled for, launches that are only recorded, and machines that cannot launch."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from smallgpt.domain.errors import HardwareError
from smallgpt.kernels import launching
from smallgpt.kernels.launching import architecture, check, launch, recording, tiled_for
from smallgpt.kernels.layer_norm import fused, kernels
from smallgpt.kernels.layer_norm.tiles import FORWARD, row_tile

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def forgotten_devices() -> Iterator[None]:
    launching._architecture_of.cache_clear()
    yield
    launching._architecture_of.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str = "") -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), "sm_75"),  # T4
        ((8, 0), "sm_80"),  # A100
        ((8, 6), "sm_86"),  # RTX 3090
        ((8, 7), "sm_86"),  # Orin
        ((8, 9), "sm_89"),  # L4, RTX 4090
        ((9, 0), "sm_90"),  # H100
        ((10, 0), "sm_100"),  # B200
        ((10, 3), "sm_100"),  # B300
        ((12, 0), "sm_120"),  # RTX 5090
        ((12, 1), "sm_120"),  # DGX Spark
    ],
)
def test_a_gpu_takes_the_tiles_of_the_nearest_architecture_below(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, capability)
    assert architecture(CUDA) == expected
    assert expected in launching.ARCHITECTURES


def test_a_gpu_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 0), "Tesla V100")
    words = r"Tesla V100 has compute capability 7\.0, and Triton needs 7\.5 or more; torch's operations run"
    with pytest.raises(HardwareError, match=words) as caught:
        architecture(CUDA)
    assert caught.value.exit_code == 6


def test_two_gpus_of_one_machine_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 0), (9, 0)][index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    devices = [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cuda")]
    assert [architecture(device) for device in devices] == ["sm_80", "sm_90", "sm_90"]


def test_an_amd_gpu_takes_the_tiles_of_gfx942(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert architecture(CUDA) == "gfx942"
    launching._architecture_of.cache_clear()
    found.gcnArchName = "gfx1100"
    with pytest.raises(HardwareError, match=r"no tiles for AMD's gfx1100.*torch's operations need none"):
        architecture(CUDA)


def test_tiles_of_another_architecture_can_be_asked_for() -> None:
    cpu = torch.device("cpu")
    with tiled_for("sm_120"):
        with tiled_for("sm_75"):
            assert architecture(cpu) == "sm_75"
        assert architecture(cpu) == architecture(CUDA) == "sm_120"
    assert architecture(cpu) == launching.INTERPRETED


def test_recording_collects_what_would_be_launched_and_launches_nothing() -> None:
    x, weight = (torch.empty(size, dtype=torch.bfloat16, device="meta") for size in [(1000, 256), (256,)])
    with recording("sm_90") as outer:
        y, mean, rstd = fused.launch_layer_norm(x, weight, None, 1e-5, x.dtype)
        with recording("gfx942") as inner:
            assert architecture(x.device) == "gfx942"
            fused.launch_backward(y, None, x, weight, mean, rstd)
        assert architecture(x.device) == "sm_90"
    assert [call.kernel for call in outer] == [kernels.forward]
    assert [call.kernel for call in inner] == [kernels.backward, kernels.sum_partials]
    arguments = outer[0].arguments
    assert arguments["x_ptr"].shape == (1000, 256)
    assert arguments["bias_ptr"] is None
    assert (arguments["M"], arguments["C"]) == (1000, 256)
    tile = row_tile(FORWARD, 256)
    assert {name: arguments[name] for name in tile} == tile


def test_recording_ends_with_an_error_too() -> None:
    launched: list[dict[str, int]] = []
    kernel = {(3,): lambda **arguments: launched.append(arguments)}

    def fail_after_a_launch() -> None:
        with recording("sm_90"):
            launch(kernel, (3,), n=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_launch()
    assert launched == []
    launch(kernel, (3,), n=2, num_warps=4)
    assert launched == [{"n": 2, "num_warps": 4}]
    assert architecture(torch.device("cpu")) == launching.INTERPRETED


def test_operands_are_checked_in_order_and_absent_ones_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "INTERPRETING", True)
    x = torch.zeros(2)
    check("an operation", x=x, y=None, z=x.half())
    check("an operation", x=None)
    with pytest.raises(ValueError, match=r"^an operation: z is int64; the Triton kernel takes"):
        check("an operation", x=x, z=x.long())
    with pytest.raises(ValueError, match=r"^an operation: z is on meta and the rest on cpu; move one of them$"):
        check("an operation", x=x, y=None, z=x.to("meta"))


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from smallgpt.domain.errors import HardwareError
from smallgpt.kernels.attention import fused as attention
from smallgpt.kernels.layer_norm import fused as layer_norm
from smallgpt.kernels.linear_cross_entropy import fused as linear_cross_entropy

x = torch.zeros(2, 16)
for call in (
    lambda: attention.causal_attention(torch.zeros(1, 4, 3, 2, 16), 0.0),
    lambda: attention.cached_attention(*torch.zeros(3, 1, 4, 2, 16), None),
    lambda: layer_norm.layer_norm(x, x[0], None, 1e-5),
    lambda: linear_cross_entropy.linear_cross_entropy(x, x, torch.zeros(2, dtype=torch.int64), 0.0, -100),
):
    try:
        call()
    except HardwareError as error:
        print(error.exit_code, error)
"""


def test_without_triton_the_kernels_import_and_say_what_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = "Triton is not installed here; torch's operations need none"
    operations = ("attention", "attention", "layer_norm", "linear_cross_entropy")
    assert done.stdout.splitlines() == [f"6 {operation}: {words}" for operation in operations]
