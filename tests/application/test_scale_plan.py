"""The arithmetic of several processes: against real models, a ring that moves chunks, and what must hold between its parts."""

import random
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smallgpt.application.memory_plan import KernelBytes, plan_memory
from smallgpt.application.memory_shares import Gradients, Sharing, sizes_of
from smallgpt.application.scale_plan import (
    WAYS,
    Machine,
    Way,
    activations,
    largest,
    least,
    memory,
    parameters,
    row,
    rows,
    state,
    traffic,
    update_flops,
    waiting,
    ways,
)
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.flops import flops_per_token
from smallgpt.domain.gpt import GPT
from smallgpt.domain.muon import orthogonalise
from smallgpt.domain.optimizers import parameter_groups

GPT2 = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024)
SIZES = parameters(GPT2)
H100 = {"memory": 80e9, "flops": 989e12, "bandwidth": 450e9, "mfu": 0.4}


def run_of(optimizer: str = "adamw", model: GPTConfig = GPT2, **training: Any) -> RunConfig:
    sections = {"model": model.model_dump(), "optimizer": {"name": optimizer}}
    return RunConfig.model_validate({**sections, "training": {"batch_size": 512, **training}})


@pytest.mark.parametrize("model", [GPTConfig(), GPT2, GPTConfig(bias=False, n_layer=1, vocab_size=61, block_size=7)])
def test_parameters_are_those_of_the_model(model: GPTConfig) -> None:
    with torch.device("meta"):
        made = GPT(model)
    sizes = parameters(model)
    assert sizes.all == sum(parameter.numel() for parameter in made.parameters())
    assert sizes.blocks == sum(parameter.numel() for parameter in made.transformer.h.parameters())
    assert sizes.matrices == sum(parameter.numel() for _, parameter in parameter_groups(made)["hidden"])


def ring(n: int, w: int, *, reduce: bool, gather: bool) -> list[int]:
    """Bytes that each of w processes sends when n fp32 numbers of each go round a ring: in turn t, rank r hands on chunk r - t.

    First chunks are added to the next one's, then the sums are handed round; checked against the sums.
    """
    numbers = random.Random(0)
    held = [[numbers.randrange(100) for _ in range(n)] for _ in range(w)]
    sums = [sum(column) for column in zip(*held, strict=True)]
    chunks = [range(n * chunk // w, n * (chunk + 1) // w) for chunk in range(w)]
    sent = [0] * w
    for turn in range(w - 1) if reduce else ():
        for rank, chunk in [(rank, chunks[(rank - turn) % w]) for rank in range(w)]:
            for at in chunk:
                held[(rank + 1) % w][at] += held[rank][at]
            sent[rank] += 4 * len(chunk)
    own = [chunks[(rank + 1) % w] for rank in range(w)]
    if reduce:
        assert all(held[rank][at] == sums[at] for rank in range(w) for at in own[rank])
    for rank in range(w):
        held[rank] = [sums[at] if at in own[rank] else -1 for at in range(n)]
    for turn in range(w - 1) if gather else ():
        for rank, chunk in [(rank, chunks[(rank + 1 - turn) % w]) for rank in range(w)]:
            for at in chunk:
                held[(rank + 1) % w][at] = held[rank][at]
            sent[rank] += 4 * len(chunk)
    assert not gather or all(each == sums for each in held)
    return sent


SMALL = GPTConfig(
    n_layer=2, n_head=1, n_embd=4, vocab_size=32, block_size=8
)  # 724 parameters: a ring of 2 or 4 divides them


@pytest.mark.parametrize("w", [2, 4])
def test_bytes_are_those_of_a_ring_that_moves_them(w: int) -> None:
    sizes = parameters(SMALL)
    outside, blocks = sizes.outside, sizes.blocks
    assert outside % w == blocks % w == 0
    both, gathers, reduces = (
        partial(ring, w=w, reduce=reduce, gather=gather)
        for reduce, gather in ((True, True), (False, True), (True, False))
    )
    assert both(outside + blocks) == [traffic(sizes, "ddp", w).all] * w
    one_pass = [a + 2 * b for a, b in zip(gathers(outside), gathers(blocks), strict=True)]
    for passes in (1, 3):
        sent = traffic(sizes, "fsdp2", w, passes)
        assert [passes * n for n in one_pass] == [sent.gathers] * w
        assert reduces(outside + blocks) == [sent.reduces] * w


def test_gradients_in_bf16_halve_what_they_send_and_nothing_else() -> None:
    for way in WAYS:
        full, half = traffic(SIZES, way, 8), traffic(SIZES, way, 8, reduce="bf16")
        assert (half.gathers, 2 * half.reduces) == (full.gathers, full.reduces)


def test_one_process_sends_nothing_and_replicas_only_gradients() -> None:
    assert [traffic(SIZES, way, 1, 4).all for way in WAYS] == [0, 0]
    assert traffic(SIZES, "ddp", 8, passes=1) == traffic(SIZES, "ddp", 8, passes=9)


@pytest.mark.parametrize("w", [2, 8, 1000])
def test_shards_together_are_what_a_replica_holds(w: int) -> None:
    kept = ("weights", "gradients", "moments")
    replica, shard = (state(SIZES, way, w) for way in WAYS)
    assert sum(replica[name] for name in kept) == 16 * SIZES.all
    assert sum(shard[name] for name in kept) * w == pytest.approx(16 * SIZES.all)
    assert {*shard} - {*replica} == {"gathered_weights", "whole_gradients"}
    assert shard["gathered_weights"] == 4 * (SIZES.outside + 2 * SIZES.block)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("reduce", ["fp32", "bf16"])
@pytest.mark.parametrize("passes", [1, 4])
def test_a_process_holds_what_the_exact_plan_says(
    optimizer: Literal["adamw", "muon"], reduce: Literal["fp32", "bf16"], passes: int
) -> None:
    config = run_of(optimizer, batch_size=32, reduce=reduce)
    nothing = KernelBytes(0, 0, 0, 0, 0)
    for way in ways(config):
        sharing = Sharing(8, shards=way == "fsdp2")
        held = state(SIZES, way, 8, passes, optimizer, reduce)
        exact = plan_memory(config, 4 // passes, 2, nothing, evaluates=False, sharing=sharing)
        if way == "ddp":  # of shards, the moment of the peak is another one
            assert held["weights"] == exact.components["weights"]
            assert held["gradients"] == exact.components["gradient_buckets"]
            assert held["moments"] == exact.components["optimizer"]
        before = Gradients(sizes_of(config), sharing, GPT2.n_layer, 4 if reduce == "fp32" else 2, passes > 1).before
        kept = held.get("gradients_of_earlier_passes", held.get("whole_gradients", 0))
        assert before == (kept if passes > 1 else 0)
        assert held.get("gradients_to_send", 0) == (2 * SIZES.all if (way, reduce, passes) == ("ddp", "bf16", 1) else 0)


def test_one_process_holds_no_gradients_twice() -> None:
    for way in WAYS:
        assert sum(state(SIZES, way, 1, passes=9, reduce="bf16").values()) == 16 * SIZES.all + 2 * SIZES.blocks


def test_muon_has_one_moment_of_matrices_no_shards_and_an_update_that_counts() -> None:
    adamw, muon = run_of(), run_of("muon")
    assert (ways(adamw), ways(muon)) == (WAYS, ("ddp",))
    machines = [Machine(n, **H100) for n in (1, 8)]
    assert [(plan.gpus, plan.way) for plan in rows(muon, machines)] == [(1, "ddp"), (8, "ddp")]
    assert state(SIZES, "ddp", 8, optimizer="muon")["moments"] == 8 * SIZES.all - 4 * SIZES.matrices

    many = [memory(config, "ddp", 8, 16, 1, recomputed=False) for config in (adamw, muon)]
    assert many[0] - many[1] == 4 * SIZES.matrices
    update = 16 * SIZES.all - 4 * SIZES.matrices + 14 * SIZES.matrices / 3
    assert memory(muon, "ddp", 8, 1, 1, recomputed=True) == update  # the largest matrix of a block is a third of it
    found = [row(config, machines[1], "ddp") for config in (adamw, muon)]
    assert found[1].compute_seconds - found[0].compute_seconds == pytest.approx(update_flops(muon) / (989e12 * 0.4))
    assert update_flops(adamw) == 0


def test_muons_flops_are_those_of_its_products() -> None:
    config = GPTConfig(n_layer=2, n_head=1, n_embd=8, vocab_size=32, block_size=8)
    matrices = [p for _, p in parameter_groups(GPT(config))["hidden"]]
    with FlopCounterMode(display=False) as counter:
        for matrix in matrices:
            orthogonalise(matrix.detach()[None], torch.float32)
    assert update_flops(run_of("muon", config)) == counter.get_total_flops()


def test_what_is_outside_the_blocks_is_waited_for_and_blocks_only_when_they_take_longer_than_computing() -> None:
    for way in WAYS:
        sent = traffic(SIZES, way, 8)
        bare = (sent.gathers_outside + sent.reduces_outside) / 1e9
        assert waiting(sent, 1e9, 1, 1e9) == pytest.approx(bare)
        assert waiting(sent, 0.0, 1, 1e9) == pytest.approx(sent.all / 1e9)
        assert bare < waiting(sent, 0.5, 1, 1e9) < sent.all / 1e9


def test_a_step_takes_its_flops_and_its_waiting() -> None:
    found = row(run_of(), Machine(1, **H100), "ddp")
    tokens = 512 * 1024
    assert found.waiting_seconds == 0
    assert found.step_seconds == pytest.approx(tokens * flops_per_token(GPT2) / (989e12 * 0.4))
    assert found.tokens_per_day == pytest.approx(86_400 * tokens / found.step_seconds)
    recomputed = row(run_of(activation_checkpointing=True), Machine(1, **H100), "ddp")
    assert recomputed.compute_seconds == pytest.approx(4 / 3 * found.compute_seconds)
    assert recomputed.memory < found.memory


def test_an_uneven_share_waits_for_the_longest() -> None:
    found = row(run_of(micro_batch=16), Machine(7, **H100), "ddp")
    assert (found.micro_batch, found.passes) == (16, 5)  # of 74 sequences
    assert found.compute_seconds == pytest.approx(row(run_of(batch_size=74), Machine(1, **H100), "ddp").compute_seconds)


@pytest.mark.parametrize(
    ("training", "machine", "way", "words"),
    [
        ({"micro_batch": 8}, {}, "ddp", "fits"),
        ({}, {"gpus": 1000}, "ddp", "fewer sequences than GPUs: tensor or context parallelism"),
        ({}, {"memory": 2.2e9}, "ddp", "too large for replicas: fsdp2"),
        ({}, {"memory": 1.6e9, "gpus": 2}, "fsdp2", "too large: more GPUs"),
        ({}, {"memory": 0.5e9}, "fsdp2", "too large: tensor parallelism"),
        ({}, {"memory": 10e9}, "ddp", "smaller micro-batch, or activation checkpointing"),
        ({}, {"memory": 2.8e9}, "ddp", "too large in several passes: smaller batch or more GPUs"),
        ({"optimizer": "muon"}, {"memory": 2.2e9}, "ddp", "too large for replicas: fsdp2 and adamw"),
        ({"micro_batch": 8}, {"bandwidth": 1e9}, "ddp", "waits for others: larger batch or bf16 reduce"),
        ({"micro_batch": 8, "reduce": "bf16"}, {"bandwidth": 1e9}, "ddp", "waits for others: larger batch"),
        ({"micro_batch": 8}, {"bandwidth": 1e9}, "fsdp2", "waits for others: larger micro-batch"),
    ],
)
def test_the_verdict_names_what_stands_against_it(
    training: dict[str, Any], machine: dict[str, float], way: Way, words: str
) -> None:
    described = {"gpus": 8, **H100, **machine}
    found = row(run_of(**training), Machine(gpus=int(described.pop("gpus")), **described), way)
    assert found.verdict == words


def test_the_largest_model_fits_and_the_next_does_not() -> None:
    config, machine = run_of(), Machine(8, **H100)
    replicas, shards = (largest(config, machine, way) for way in WAYS)
    assert replicas is not None
    assert shards is not None
    assert parameters(replicas).all < parameters(shards).all
    for way, model in zip(WAYS, (replicas, shards), strict=True):
        wider = model.model_copy(update={"n_head": (n := model.n_head + 1), "n_layer": n, "n_embd": 64 * n})
        fits, fails = (least(run_of(model=each), way, 8) for each in (model, wider))
        assert fits <= 0.9 * 80e9 < fails
    assert largest(config, Machine(8, **{**H100, "memory": 1e6}), "ddp") is None


def test_recomputed_blocks_keep_less_and_one_gpu_has_one_way() -> None:
    assert activations(GPT2, 4, recomputed=True) < activations(GPT2, 4) / 3
    assert activations(GPT2, 4) == 4 * activations(GPT2, 1)
    plans = list(rows(run_of(), [Machine(n, **H100) for n in (1, 2)]))
    assert [(plan.gpus, plan.way) for plan in plans] == [(1, "ddp"), (2, "ddp"), (2, "fsdp2")]
