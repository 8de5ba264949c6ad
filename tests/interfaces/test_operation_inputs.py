"""Input sets: together beyond the cache, never the one used last, never zeros."""

import pytest
import torch

from smallgpt.interfaces import operation_inputs
from smallgpt.interfaces.operation_inputs import MOST_SETS, InputSets, Operands
from smallgpt.interfaces.operation_systems import Attention, Case, CrossEntropy, LayerNorm

CPU = torch.device("cpu")


def kilobyte() -> Operands:
    return Operands((torch.randn(128, requires_grad=True),), (torch.arange(32),), (torch.randn(64),))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_inputs, "last_level_cache", lambda: 8 * 1024)


def test_bytes_are_those_of_all_tensors() -> None:
    assert kilobyte().bytes == 4 * 128 + 8 * 32 + 4 * 64


def test_sets_together_are_twice_the_cache_and_come_in_turn() -> None:
    inputs = InputSets(kilobyte, CPU)
    assert len(inputs.sets) == 16
    assert [inputs.next() for _ in range(32)] == inputs.sets * 2
    assert inputs.words == "16 input sets in turn, 0.0156 MiB together (last-level cache 0.00781 MiB)"


def test_there_is_one_set_of_what_no_cache_holds_and_a_bounded_number_of_what_is_tiny() -> None:
    assert len(InputSets(lambda: Operands((torch.randn(3_000),)), CPU).sets) == 2
    assert len(InputSets(lambda: Operands((torch.randn(20_000),)), CPU).sets) == 1
    assert len(InputSets(lambda: Operands((torch.randn(1),)), CPU).sets) == MOST_SETS


def test_a_gpu_has_one_set_because_graphs_are_captured_with_theirs() -> None:
    inputs = InputSets(kilobyte, torch.device("cuda"))
    assert inputs.next() is inputs.next() is inputs.sets[0]
    inputs.evict(inputs.sets[0])
    assert inputs.words == "1 input set; the L2 cache is overwritten before every repeat"


def test_a_machine_that_tells_no_cache_has_a_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_inputs, "last_level_cache", lambda: None)
    assert InputSets(kilobyte, CPU).cache_bytes == 32 * 2**20


def test_evicting_reads_as_much_of_the_others_as_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = InputSets(kilobyte, CPU)
    read: list[Operands] = []

    def tensors(operands: Operands) -> tuple[()]:
        read.append(operands)
        return ()

    monkeypatch.setattr(Operands, "tensors", property(tensors))
    inputs.cache_bytes = 3 * 1024
    monkeypatch.setattr(Operands, "bytes", 1024)
    inputs.evict(inputs.sets[1])
    assert read == [inputs.sets[0], *inputs.sets[2:4]]


@pytest.mark.parametrize(
    "case", [Attention(2, 8, 2, 16), LayerNorm(16, 32, add=True), CrossEntropy(16, 50, 16)], ids=str
)
def test_sets_differ_and_are_never_zeros(case: Case) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = InputSets(lambda: case.operands(generator).placed(CPU, torch.bfloat16), CPU)
    a, b = inputs.sets[:2]
    for x, y in zip((*a.leaves, *(a.upstream or ())), (*b.leaves, *(b.upstream or ())), strict=True):
        assert not torch.equal(x, y)
        assert x.count_nonzero() == x.numel()
