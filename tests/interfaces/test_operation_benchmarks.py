"""Operations side by side: a wrong one is refused, what cannot run is left out with its reason, and all are timed in turn."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from smallgpt.application.benchmarking import Ceilings
from smallgpt.application.operation_costs import Bound, Direction, Work
from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.domain.ops import layer_norm
from smallgpt.interfaces import operation_benchmarks, operation_competitors, operation_inputs, operation_systems
from smallgpt.interfaces.operation_benchmarks import Settings, bench, parity
from smallgpt.interfaces.operation_inputs import Operands
from smallgpt.interfaces.operation_systems import (
    Attention,
    Case,
    CrossEntropy,
    LayerNorm,
    System,
    why_not,
)
from smallgpt.kernels.language import INTERPRETING
from smallgpt.kernels.proof import TOLERANCE
from smallgpt.kernels.select import BACKENDS

CPU = torch.device("cpu")
CASES: list[Case] = [
    Attention(2, 33, 3, 16),
    Attention(2, 33, 3, 16, dropout=0.2),
    LayerNorm(40, 33),
    LayerNorm(40, 33, add=True),
    CrossEntropy(70, 101, 16),
]
QUICK = Settings(CPU, torch.float32, rounds=2, seconds=0.0)
CEILINGS = Ceilings(flops=1e12, bytes=1e10)


def silent(*_: object) -> None:
    pass


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_system_on_a_cpu_is_timed_in_every_direction(case: Case) -> None:
    left_out: list[str] = []
    rows = bench([case], QUICK, CEILINGS, left_out.append, silent)
    systems = [system.name for system in case.systems(CPU) if QUICK.unfit(system) is None]
    if getattr(case, "dropout", 0):
        systems = [name for name in systems if "sdpa-flash" not in name]  # it has none on a CPU
    assert {"reference", "torch"} <= set(systems)
    assert [(row["direction"], row["system"]) for row in rows] == [
        (direction, system) for direction in ("forward", "backward", "both") for system in systems
    ]
    for row in rows:
        assert row["milliseconds"] > 0
        assert row["fastest"] <= row["milliseconds"] <= row["slowest"] or row["direction"] == "backward"
        assert row["dtype"] == "float32"
        assert row["extra_memory_bytes"] > 0
        assert row["rate"] > 0
    assert all(name in rows[0] for name in operation_benchmarks.shape_of(case))
    absent = {system.name for system in case.systems(CPU)} - set(systems)
    assert absent == {name for words in left_out for name in absent if f"{name} is left out: " in words}
    assert sum(" input sets in turn" in words for words in left_out) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_systems_are_within_the_tolerance_and_not_exact(case: Case, dtype: torch.dtype) -> None:
    for system in case.systems(CPU):
        # Triton's kernels too, in its interpreter, which has no bf16
        runs = why_not(system, CPU) is None and system.not_unless_named is None
        if runs or (INTERPRETING and dtype != torch.bfloat16 and system.name.startswith("triton")):
            error = parity(case, system, CPU, dtype)
            assert 0 < error <= TOLERANCE[dtype], system.name


def test_q_k_and_v_apart_give_the_packed_ones_results_and_gradients() -> None:
    from torch.nn.attention import SDPBackend

    whole = Attention(2, 33, 3, 16)
    attend = operation_competitors.attend_apart

    def apart(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return attend(SDPBackend.MATH, 0.0, q, k, v)

    operands = whole.operands(torch.Generator().manual_seed(0)).placed(CPU, torch.float64)
    formula = next(system for system in whole.systems(CPU) if system.name == "reference")
    system = System("sdpa-math-apart", apart, operation_competitors.apart)
    for found, expected in zip(
        operation_benchmarks._results(system, operands), operation_benchmarks._results(formula, operands), strict=True
    ):
        torch.testing.assert_close(found, expected)


@dataclass(frozen=True)
class Doubled:
    """y = 2x, by systems that a test names: each a factor, or an error to raise."""

    operation: ClassVar[str] = "doubling"
    bound: ClassVar[Bound] = "bytes"
    backward_alone: ClassVar[bool] = True
    calls: ClassVar[list[str]] = []
    makers: ClassVar[dict[str, float | Exception]] = {}
    size: int = 5

    def work(self, direction: Direction, dtype: torch.dtype) -> Work:
        return Work(flops=1.0, bytes=1.0)

    def small(self) -> "Doubled":
        return replace(self, size=3)

    def operands(self, generator: torch.Generator) -> Operands:
        return Operands((torch.ones(self.size),), upstream=(torch.ones(self.size),))

    def systems(self, device: torch.device) -> Iterator[System]:
        for name, factor in {"reference": 2.0, **self.makers}.items():
            yield System(name, lambda x, name=name, factor=factor: self._call(name, factor, x))

    def _call(self, name: str, factor: Any, x: Tensor) -> tuple[Tensor]:
        self.calls.append(name)
        if isinstance(factor, Exception):
            raise factor
        return (x * factor,)


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> dict[str, float | Exception]:
    monkeypatch.setattr(Doubled, "makers", {})
    monkeypatch.setattr(Doubled, "calls", [])
    monkeypatch.setattr(operation_inputs, "last_level_cache", lambda: 60)
    return Doubled.makers


def test_a_wrong_backend_of_ours_is_refused_by_name_before_anything_is_timed(
    makers: dict[str, float | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    makers["torch"] = 2.1
    assert "torch" in BACKENDS
    monkeypatch.setattr(operation_benchmarks, "measure", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(
        HardwareError, match=r"^doubling: torch is wrong on cpu at size 5: its error is 5e-02, and 1e-05 is"
    ):
        bench([Doubled()], QUICK, CEILINGS, silent, silent)


def test_a_backend_that_gives_nan_is_wrong(makers: dict[str, float | Exception]) -> None:
    makers["torch"] = float("nan")
    with pytest.raises(HardwareError, match="torch is wrong"):
        bench([Doubled()], QUICK, CEILINGS, silent, silent)


def test_others_that_are_wrong_or_fail_are_left_out_with_the_reason(makers: dict[str, float | Exception]) -> None:
    makers |= {"theirs": 1.9, "broken": RuntimeError("no kernel image\nmore"), "good": 2.0}
    said: list[str] = []
    rows = bench([Doubled()], QUICK, CEILINGS, said.append, silent)
    assert {row["system"] for row in rows} == {"reference", "good"}
    assert said == [
        "size 5: 3 input sets in turn, 0.000114 MiB together (last-level cache 5.72e-05 MiB)",
        "size 5: theirs is left out: its error is 5e-02, and 1e-05 is allowed",
        "size 5: broken is left out: it failed to run: no kernel image",
    ]


def test_a_system_asked_for_by_name_must_run(makers: dict[str, float | Exception]) -> None:
    makers |= {"broken": NotImplementedError("no such thing"), "good": 2.0}
    rows = bench([Doubled()], replace(QUICK, systems=["good"]), CEILINGS, silent, silent)
    assert {row["system"] for row in rows} == {"good"}
    assert all(row["ratio_to_best"] is None for row in rows)
    with pytest.raises(HardwareError, match="broken cannot be timed: it failed to run: no such thing"):
        bench([Doubled()], replace(QUICK, systems=["broken"]), CEILINGS, silent, silent)
    with pytest.raises(ConfigError, match="unknown system 'god'; use reference, broken, good"):
        bench([Doubled()], replace(QUICK, systems=["god"]), CEILINGS, silent, silent)


def test_systems_take_turns(makers: dict[str, float | Exception]) -> None:
    makers["good"] = 2.0
    bench([Doubled()], replace(QUICK, rounds=3, directions=["forward"]), CEILINGS, silent, silent)
    timed = Doubled.calls[-3 * 2 * 4 - 4 : -4]  # a round is one call that does not count, and three; then the memory
    assert timed == (["reference"] * 4 + ["good"] * 4) * 3


def test_every_repeat_has_other_operands(makers: dict[str, float | Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []

    def call(case: Doubled, name: str, factor: float, x: Tensor) -> tuple[Tensor]:
        places.append(x.data_ptr())
        return (factor * x,)

    monkeypatch.setattr(Doubled, "_call", call)
    bench([Doubled()], replace(QUICK, rounds=1, systems=["reference"]), CEILINGS, silent, silent)
    timed = places[-3 * 4 - 2 :]  # three directions of one that does not count and three; two for the memory
    assert len(set(timed)) == 3
    assert all(len({*timed[i : i + 3]}) == 3 for i in range(len(timed) - 2))


def test_a_system_without_a_backward_pass_is_timed_forward_and_compared_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def systems(case: Doubled, device: torch.device) -> Iterator[System]:
        yield System("reference", lambda x: (2 * x,))
        yield System("inference", lambda x: (torch.from_numpy(2 * x.numpy()),), backward=False)

    monkeypatch.setattr(Doubled, "systems", systems)
    forward = replace(QUICK, directions=["forward"])
    rows = {row["system"]: row for row in bench([Doubled()], forward, CEILINGS, silent, silent)}
    assert rows["inference"]["milliseconds"] > 0
    assert rows["inference"]["extra_memory_bytes"] is None
    said: list[str] = []
    assert {row["system"] for row in bench([Doubled()], QUICK, CEILINGS, said.append, silent)} == {"reference"}
    assert said[0] == "inference is left out: it has no backward pass on cpu; use --direction forward"
    with pytest.raises(HardwareError, match="inference cannot be timed: it has no backward pass on cpu"):
        bench([Doubled()], replace(QUICK, systems=["inference"]), CEILINGS, silent, silent)


def test_what_takes_long_to_compile_is_timed_only_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def systems(case: Doubled, device: torch.device) -> Iterator[System]:
        yield System("reference", lambda x: (2 * x,))
        yield System("compiled", lambda x: (x + x,), not_unless_named="it takes long; name it")

    monkeypatch.setattr(Doubled, "systems", systems)
    said: list[str] = []
    assert {row["system"] for row in bench([Doubled()], QUICK, CEILINGS, said.append, silent)} == {"reference"}
    assert said[0] == "compiled is left out: it takes long; name it"
    named = replace(QUICK, systems=["compiled"])
    assert {row["system"] for row in bench([Doubled()], named, CEILINGS, silent, silent)} == {"compiled"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiling_on_a_cpu_waits_to_be_asked_for(case: Case) -> None:
    waiting = {system.name for system in case.systems(CPU) if system.not_unless_named}
    assert (
        waiting
        == {
            "attention": {"flex", "flex-apart"},
            "layer_norm": {"torch-compiled"},
            "linear_cross_entropy": {"full-logits-compiled"},
        }[case.operation]
    )
    assert not any(system.not_unless_named for system in case.systems(torch.device("cuda")))


def test_both_designs_of_our_loss_are_listed() -> None:
    names = [system.name for system in CrossEntropy(4, 8, 16).systems(CPU)]
    assert {"triton", "triton-chunked", "triton-flash", "full-logits", "F.linear_cross_entropy-chunked"} <= set(names)


def test_triton_is_not_timed_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    triton, other = System("triton-flash", silent), System("torch", silent)  # type: ignore[arg-type]  # never called
    for installed, interpreting, reason in (
        (False, False, "Triton is not installed"),
        (True, True, "TRITON_INTERPRET=1 runs it in Triton's interpreter, whose times mean nothing; it needs a GPU"),
        (True, False, "it needs a GPU"),
    ):
        monkeypatch.setattr(operation_systems, "INSTALLED", installed)
        monkeypatch.setattr(operation_systems, "INTERPRETING", interpreting)
        assert why_not(triton, CPU) == reason
        assert why_not(triton, torch.device("cuda")) is None
        assert why_not(other, CPU) is None


def test_the_same_function_under_two_names_is_listed_once() -> None:
    assert BACKENDS["torch"].layer_norm is layer_norm
    names = [system.name for system in LayerNorm(4, 8).systems(CPU)]
    assert len(names) == len(set(names))
    assert "torch" in names
