"""What several processes need and what it costs, by arithmetic: state in each, bytes that each sends, time of a step.

Coarse on purpose: it is for choosing a number of GPUs before there is one. `memory_plan` has the exact peak of a run.
P parameters are those of the blocks and those outside them (embeddings, last norm), w the processes, m the passes of a step.
Weights, gradients and the optimizer's moments are fp32, as `smallgpt train` keeps them; products are bf16.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.flops import flops_per_token

Way = Literal["ddp", "fsdp2"]
WAYS: tuple[Way, ...] = ("ddp", "fsdp2")
Optimizer = Literal["adamw", "muon"]
Reduce = Literal["fp32", "bf16"]
USABLE = 0.9
"""Assumed share of a GPU's memory for what is counted here: the rest are libraries, buffers of NCCL and gaps."""
WAITS = 0.2
"""From this share of a step on, waiting for the network is worth a word."""
DAY = 86_400


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind, as their data sheets and somebody's experience describe them."""

    gpus: int
    memory: float
    """Bytes of one GPU."""
    flops: float
    """Of one GPU in bf16, a second, by its data sheet."""
    bandwidth: float
    """Bytes a second, one way, over the slowest link of the ring: NVLink, or all network cards of a host together."""
    mfu: float
    """The share of `flops` that training is assumed to reach while it does not wait."""


@dataclass(frozen=True)
class Parameters:
    """How many there are, the tied head counted once."""

    block: int
    layers: int
    outside: int
    matrices: int
    """Of all blocks, without their vectors."""

    @property
    def blocks(self) -> int:
        """Of all blocks."""
        return self.block * self.layers

    @property
    def all(self) -> int:
        """P."""
        return self.blocks + self.outside


def parameters(config: GPTConfig) -> Parameters:
    """Those of `GPT(config)`, without making one."""
    C, bias = config.n_embd, config.bias
    block = 12 * C * C + 2 * C + (11 * C if bias else 0)  # four matrices, two norms; 9 C of biases and the norms' 2 C
    outside = (config.vocab_size + config.block_size) * C + C + (C if bias else 0)
    return Parameters(block, config.n_layer, outside, 12 * C * C * config.n_layer)


def state(
    sizes: Parameters, way: Way, w: int, passes: int = 1, optimizer: Optimizer = "adamw", reduce: Reduce = "fp32"
) -> dict[str, float]:
    """Bytes in one process by what they are for.

    Replicas hold 16 bytes a parameter, Muon's 12 a number in a matrix of a block. Shards hold 16 / w, and whole in passing:
    what is outside the blocks, which stays gathered from the forward to the end of the backward pass, and two blocks (the next
    one is gathered early), weights and gradients. Gradients are exchanged in a step's last pass. With more than one pass,
    replicas hold those of earlier passes beside the buckets that are sent, and shards hold them whole.
    """
    P, share = sizes.all, 1 if way == "ddp" else 1 / w
    held = {
        "weights": 4 * P * share,
        "gradients": 4 * P * share,
        "moments": (8 * P - (4 * sizes.matrices if optimizer == "muon" else 0)) * share,
        "bf16_weights": 2.0 * sizes.blocks,  # autocast keeps them from a forward pass to its backward
    }
    sent = 4.0 if reduce == "fp32" else 2.0
    if way == "fsdp2" and w > 1:
        whole = sizes.outside + min(2, sizes.layers) * sizes.block
        held["gathered_weights"] = 4.0 * whole
        held["whole_gradients"] = 4.0 * whole if passes == 1 else sent * P
    elif w > 1 and passes > 1:
        held["gradients_of_earlier_passes"] = 4.0 * P
    elif w > 1 and reduce == "bf16":
        held["gradients_to_send"] = 2.0 * P
    return held


def activations(config: GPTConfig, sequences: int, *, recomputed: bool = False) -> float:
    """Bytes kept for the backward pass of so many sequences.

    34 bytes a token, channel and block (arXiv 2205.05198, equation 2 without the attention matrix, which fused attention
    does not keep); recomputed blocks keep their residual and delta, and one is there whole. Logits are not counted: the
    fused loss holds them for some rows at a time.
    """
    U = sequences * config.block_size * config.n_embd
    return 6.0 * U * config.n_layer + 34.0 * U if recomputed else 34.0 * U * config.n_layer


def memory(config: RunConfig, way: Way, w: int, sequences: int, passes: int, *, recomputed: bool) -> float:
    """Bytes in one process, with passes of so many sequences: in a backward pass, or in Muon's update if that takes more.

    Muon makes the largest matrix of a block, a third of its numbers, orthogonal in all blocks at once: 12 bytes a number in
    fp32 and 2 in bf16, as in memory_plan.
    """
    sizes, optimizer = parameters(config.model), config.optimizer.name
    held = state(sizes, way, w, passes, optimizer, config.training.reduce)
    most = sum(held.values()) + activations(config.model, sequences, recomputed=recomputed)
    if optimizer == "muon":
        update = held["weights"] + held["gradients"] + held["moments"] + 14 * sizes.matrices / 3
        return max(most, update)
    return most


def update_flops(config: RunConfig) -> int:
    """Of a step's update, in every process: Muon's three quintics of all matrices, each X Xᵀ, A A and B X (domain/muon.py).

    4 r² c + 2 r³ for r rows and c ≥ r columns: of C by 3 C, C and twice 4 C these are 56 C³. AdamW's are not worth counting.
    """
    model = config.model
    return 3 * 56 * model.n_embd**3 * model.n_layer if config.optimizer.name == "muon" else 0


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in an optimizer step, by what they carry."""

    gathers_outside: float = 0.0
    gathers_blocks: float = 0.0
    reduces_outside: float = 0.0
    reduces_blocks: float = 0.0

    @property
    def gathers(self) -> float:
        """Weights."""
        return self.gathers_outside + self.gathers_blocks

    @property
    def reduces(self) -> float:
        """Gradients."""
        return self.reduces_outside + self.reduces_blocks

    @property
    def all(self) -> float:
        """Bytes."""
        return self.gathers + self.reduces


def traffic(sizes: Parameters, way: Way, w: int, passes: int = 1, reduce: Reduce = "fp32") -> Traffic:
    """Of a ring, in which everybody sends to the next: (w - 1) / w of what is gathered or reduce-scattered, twice that for an
    all-reduce, which is one after the other.

    ddp: an all-reduce of all gradients, once a step. fsdp2: in every pass the blocks' weights are gathered forwards and again
    backwards, and what is outside them once; gradients are reduce-scattered once a step.
    """
    ring = (w - 1) / w
    g = 4 if reduce == "fp32" else 2
    if way == "ddp":
        return Traffic(reduces_outside=2 * ring * g * sizes.outside, reduces_blocks=2 * ring * g * sizes.blocks)
    return Traffic(
        gathers_outside=ring * 4 * sizes.outside * passes,
        gathers_blocks=2 * ring * 4 * sizes.blocks * passes,
        reduces_outside=ring * g * sizes.outside,
        reduces_blocks=ring * g * sizes.blocks,
    )


def waiting(sent: Traffic, pass_seconds: float, passes: int, bandwidth: float) -> float:
    """Seconds of a step in which a GPU computes nothing because bytes travel.

    The blocks' bytes travel while other blocks compute: gradients during the last backward pass, two thirds of its time, and
    gathered weights during all passes. What is outside the blocks cannot: the tied embedding's gradient is complete when the
    backward pass ends, and its weights are needed when a forward pass begins.
    """
    bare = (sent.gathers_outside + sent.reduces_outside) / bandwidth
    backward = pass_seconds * 2 / 3
    if not sent.gathers:
        return bare + max(0.0, sent.reduces_blocks / bandwidth - backward)
    return bare + max(0.0, (sent.gathers_blocks + sent.reduces_blocks) / bandwidth - passes * pass_seconds)


@dataclass(frozen=True)
class Row:
    """One number of GPUs, used in one way."""

    gpus: int
    way: Way
    micro_batch: int
    passes: int
    memory: float
    """Bytes in a GPU: state and activations."""
    sent: float
    """Bytes a step."""
    compute_seconds: float
    waiting_seconds: float
    tokens_per_second: float
    verdict: str

    @property
    def step_seconds(self) -> float:
        """Of an optimizer step."""
        return self.compute_seconds + self.waiting_seconds

    @property
    def tokens_per_day(self) -> float:
        """Tokens trained on."""
        return self.tokens_per_second * DAY


def row(config: RunConfig, machine: Machine, way: Way) -> Row:
    """The plan of a run on a machine."""
    model, settings, w = config.model, config.training, machine.gpus
    sizes = parameters(model)
    sequences = ceil(settings.batch_size / w)
    micro = min(sequences, settings.micro_batch) if isinstance(settings.micro_batch, int) else sequences
    passes = ceil(sequences / micro)
    flops = flops_per_token(model) * model.block_size * (4 / 3 if settings.activation_checkpointing else 1)
    rate = machine.flops * machine.mfu
    in_passes = sequences * flops / rate
    compute = in_passes + update_flops(config) / rate
    sent = traffic(sizes, way, w, passes, settings.reduce)
    waits = waiting(sent, in_passes / passes, passes, machine.bandwidth)
    needs = memory(config, way, w, micro, passes, recomputed=settings.activation_checkpointing)
    return Row(
        w, way, micro, passes, needs, sent.all, compute, waits,
        settings.batch_size * model.block_size / (compute + waits),
        _verdict(config, machine, way, passes, needs, waits / (compute + waits)),
    )  # fmt: skip


def ways(config: RunConfig) -> tuple[Way, ...]:
    """Muon needs whole matrices, so it trains with replicas only."""
    return WAYS[:1] if config.optimizer.name == "muon" else WAYS


def rows(config: RunConfig, machines: list[Machine]) -> Iterator[Row]:
    """Every way on every machine; one GPU has nobody to share with."""
    for machine in machines:
        for way in ways(config) if machine.gpus > 1 else WAYS[:1]:
            yield row(config, machine, way)


def _verdict(config: RunConfig, machine: Machine, way: Way, passes: int, needs: float, waits: float) -> str:
    """What stands against it, in a few words; "fits" where nothing does."""
    room, w = USABLE * machine.memory, machine.gpus
    sequences = ceil(config.training.batch_size / w)
    if config.training.batch_size < w:
        return "fewer sequences than GPUs: tensor or context parallelism"
    if least(config, way, w) > room:
        if way == "ddp":
            return "too large for replicas: fsdp2" + (" and adamw" if config.optimizer.name == "muon" else "")
        return "too large: tensor parallelism" if least(config, way) > room else "too large: more GPUs"
    if needs > room:
        if memory(config, way, w, 1, sequences, recomputed=True) > room:
            return "too large in several passes: smaller batch or more GPUs"
        return "smaller micro-batch, or activation checkpointing"
    if waits > WAITS:
        if way == "fsdp2" and passes > 1:
            return "waits for others: larger micro-batch"
        return "waits for others: larger batch" + (" or bf16 reduce" if config.training.reduce == "fp32" else "")
    return "fits"


def least(config: RunConfig, way: Way, w: int | None = None) -> float:
    """Bytes of memory without which a GPU cannot train the model: steps of one sequence, blocks recomputed.

    None for any number of GPUs.
    """
    return memory(config, way, w or 2**40, sequences=1, passes=1, recomputed=True)


def largest(config: RunConfig, machine: Machine, way: Way) -> GPTConfig | None:
    """The largest model of this one's shape, width and depth grown alike, whose `least` fits; None: not even one head does."""
    heads = 0
    step = 2**20
    while step:
        if least(_grown(config, heads + step), way, machine.gpus) <= USABLE * machine.memory:
            heads += step
        else:
            step //= 2
    return _grown(config, heads).model if heads else None


def _grown(config: RunConfig, heads: int) -> RunConfig:
    model = config.model
    layers = max(1, round(model.n_layer * heads / model.n_head))
    grown = model.model_copy(update={"n_head": heads, "n_embd": heads * model.head_size, "n_layer": layers})
    return config.model_copy(update={"model": grown})
