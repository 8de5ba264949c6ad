"""Replicas or shards, decided by the memory plan, and decided alike by all processes; what is said when neither fits."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from smallgpt.application.memory_shares import Sharing
from smallgpt.domain.config import RunConfig
from smallgpt.domain.errors import HardwareError
from smallgpt.domain.processes import Alone, Value
from smallgpt.infrastructure import hardware
from smallgpt.interfaces.memory import USABLE, RunMemory, explaining_shortage, plan, settle
from tests.interfaces.test_memory import machine, settings, with_memory

REPLICAS, SHARDS = Sharing(4), Sharing(4, shards=True)
WIDE = {"n_embd": 256, "n_layer": 4, "block_size": 8}  # its weights outweigh its activations


@dataclass(frozen=True)
class Among(Alone):
    """This process among others that are there in name alone: what they say in answer is given, one after the other."""

    count: int = 4
    others: list[Any] = field(default_factory=list)

    def of_all(self, value: Value) -> list[Value]:
        return [value, self.others.pop(0)] if self.others else [value]


def parallel(wish: str = "auto", **more: Any) -> RunConfig:
    return settings(WIDE, parallel=wish, **more)


def room_for(config: RunConfig, sharing: Sharing) -> int:
    """The least memory of which the usable part holds the plan."""
    return int(plan(config, machine(), sharing=sharing).peak / USABLE["cpu"]) + 1


def test_replicas_as_long_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    room = room_for(parallel(), REPLICAS)
    with_memory(monkeypatch, room)
    _, memory = settle(parallel(), machine(), processes=Among())
    assert memory.sharing == REPLICAS
    assert str(memory.parallel).startswith("ddp: replicas need ")
    with_memory(monkeypatch, room - 10)
    _, memory = settle(parallel(), machine(), processes=Among())
    assert memory.sharing == SHARDS
    assert memory.plan == plan(parallel(), machine(), sharing=SHARDS)
    words = r"fsdp2: replicas need 5\d\.\d MB each, 5\d\.\d MB usable"
    assert memory.parallel is not None
    assert re.fullmatch(words, memory.parallel), memory.parallel


def test_with_micro_batch_auto_replicas_fit_when_any_micro_batch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings({"block_size": 256}, batch_size=32, micro_batch="auto", parallel="auto")
    one = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch": 1})})
    with_memory(monkeypatch, room_for(one, REPLICAS))
    chosen, memory = settle(config, machine(), processes=Among())
    assert memory.sharing == REPLICAS
    assert chosen.training.micro_batch == 4, "of the 8 sequences that each process has"
    assert set(memory.reasons()) == {"parallel", "micro_batch"}


@pytest.mark.parametrize(("wish", "sharing"), [("ddp", REPLICAS), ("fsdp2", SHARDS)])
@pytest.mark.parametrize("available", [10**6, 10**12, None])
def test_a_wish_is_granted_whatever_fits(
    monkeypatch: pytest.MonkeyPatch, available: int | None, wish: str, sharing: Sharing
) -> None:
    with_memory(monkeypatch, available)
    _, memory = settle(parallel(wish), machine(), processes=Among())
    assert memory.sharing == sharing
    assert memory.reasons() == {"parallel": f"{wish}: asked for"}


def test_muon_and_unknown_memory_stay_with_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 10**6)
    _, memory = settle(parallel(optimizer="muon"), machine(), processes=Among())
    assert (memory.sharing, memory.parallel) == (REPLICAS, "ddp: muon needs whole matrices")
    with_memory(monkeypatch, None)
    _, memory = settle(parallel(), machine(), processes=Among())
    assert (memory.sharing, memory.parallel) == (REPLICAS, "ddp: nothing here tells how much memory is free")


def test_the_process_with_the_least_memory_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 10**12)
    least = room_for(parallel(), REPLICAS) - 10
    _, memory = settle(parallel(), machine(), processes=Among(others=[least]))
    assert (memory.sharing, memory.available) == (SHARDS, least)
    with_memory(monkeypatch, None)
    _, memory = settle(parallel(), machine(), processes=Among(others=[least]))
    assert memory.available == least, "and one that cannot tell is no limit"

    with_memory(monkeypatch, 10**12)
    another_machine = [10**12, 0]  # as much there, but the plan is another with its kernels
    assert settle(parallel(), machine(), processes=Among(others=another_machine))[1].sharing == SHARDS
    other_micro_batch = [10**12, 1, 2]
    config = parallel(micro_batch="auto", batch_size=32)
    assert settle(config, machine(), processes=Among(others=other_micro_batch))[0].training.micro_batch == 2


def test_alone_nothing_is_said_of_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_memory(monkeypatch, 10**6)
    _, memory = settle(parallel(), machine())
    assert memory.sharing == Sharing()
    assert memory.reasons() == {}


def test_what_would_fit_is_named_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parallel("ddp", micro_batch="auto", batch_size=8)
    few = parallel("ddp", activation_checkpointing=True)
    with_memory(monkeypatch, room_for(few, SHARDS))
    with pytest.raises(HardwareError) as raised:
        settle(config, machine(), processes=Among())
    first, second = str(raised.value).splitlines()
    assert " MB in each process, " in first
    assert second.startswith("These fit: --training.parallel fsdp2")

    with_memory(monkeypatch, room_for(few, Sharing(7, shards=True)))
    with pytest.raises(
        HardwareError, match=r"\n7 processes with as much memory each fit, with --training.parallel fsdp2"
    ):
        settle(config, machine(), processes=Among())


def test_the_warning_before_the_start_names_shards_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parallel("ddp")
    with_memory(monkeypatch, plan(config, machine(), sharing=REPLICAS).peak - 10)
    _, memory = settle(config, machine(), processes=Among())
    assert str(memory.warning).startswith("the plan needs 5")
    assert " MB of memory in each of 4 processes and 5" in str(memory.warning)
    assert str(memory.warning).endswith(" MB are available; --training.parallel fsdp2 fits")


def test_running_out_names_shards_too() -> None:
    config = parallel("ddp", batch_size=4)
    replicas = plan(config, machine(), sharing=REPLICAS)
    memory = RunMemory(replicas, available=replicas.peak, held=0, reason=None, sharing=REPLICAS)
    with (
        pytest.raises(HardwareError, match=r"These fit: --training.parallel fsdp2\."),
        explaining_shortage(config, machine(), memory),
    ):
        raise MemoryError


def test_processes_of_a_machine_share_its_memory_but_not_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_meminfo", lambda: {"MemAvailable": 900})
    monkeypatch.setattr(hardware, "_left_in_container", lambda: None)
    monkeypatch.setattr(hardware, "_left_of_addresses", lambda: 400)
    assert [hardware.available_memory(n) for n in (1, 2, 3)] == [400, 400, 300]
