"""What one of several processes holds of weights, gradients and optimizer state, in bytes.

Replicas (DDP) hold all of it, and their gradients' buckets from the first to the last step. Shards (FSDP2) hold a part, and
gather whole weights for a while: those outside the blocks during a whole pass, a block's while it is computed.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.optimizers import parameter_groups
from smallgpt.domain.trainable import choose_trainable, n_trained
from smallgpt.domain.training_config import TrainingConfig

BUCKET = 25 * 2**20 // 4  # gradients that DDP sends at once, unless a single tensor has more


@dataclass(frozen=True)
class Sharing:
    """How many processes train together, and what each of them holds."""

    count: int = 1
    shards: bool = False
    """A part of weights, gradients and optimizer state instead of the whole."""

    @property
    def replicas(self) -> bool:
        """Does each of several processes hold the whole?"""
        return self.count > 1 and not self.shards

    def rows(self, batch_size: int) -> int:
        """At most that many sequences of a step are one process's."""
        return -(-batch_size // self.count)

    def part(self, size: int) -> int:
        """What a process holds of that; the few numbers that fill up tensors which cannot be divided are not counted."""
        return -(-size // self.count) if self.shards else size


ONE_PROCESS = Sharing()


@dataclass(frozen=True)
class Sizes:
    """Parameters by kind, counted."""

    everything: int
    hidden: int
    """The blocks' matrices."""
    wide: int
    """The largest of the blocks' matrices."""
    largest: int
    """Of all tensors."""
    block: int
    """One of the blocks, with its vectors."""
    outside: int
    """Of the blocks: embedding, positions and the last norm."""
    trained: int
    """Of everything."""
    trained_head: int
    """Of the tied embedding and output matrix."""
    trained_hidden: int
    trained_blocks: int
    """Of the blocks with their vectors."""


def sizes_of(config: RunConfig) -> Sizes:
    """Of the model that the configuration describes; nothing is allocated."""
    same_for_all_plans = {"micro_batch": None, "activation_checkpointing": False}
    return _count(config.model, config.training.model_copy(update=same_for_all_plans))


@lru_cache
def _count(config: GPTConfig, settings: TrainingConfig) -> Sizes:
    with torch.device("meta"):
        model = GPT(config)
        hidden = [parameter.numel() for _, parameter in parameter_groups(model)["hidden"]]
        choose_trainable(model, settings)
    named = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = {name: named[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    blocks = sum(size for name, size in named.items() if ".h." in name)
    return Sizes(
        everything=model.n_parameters(positions=True),
        hidden=sum(hidden),
        wide=max(hidden),
        largest=max(named.values()),
        block=blocks // config.n_layer,
        outside=sum(named.values()) - blocks,
        trained=n_trained(model),
        trained_head=trained.get("transformer.wte.weight", 0),
        trained_hidden=sum(parameter.numel() for _, parameter in parameter_groups(model)["hidden"]),
        trained_blocks=sum(size for name, size in trained.items() if ".h." in name),
    )


@dataclass(frozen=True)
class Gradients:
    """Bytes of gradients while they are made; the buckets of replicas are not among them, since they are always there."""

    sizes: Sizes
    sharing: Sharing
    layers: int
    itemsize_sent: int
    """4, or 2 where gradients travel as bf16."""
    accumulates: bool
    """Does a step take several passes? What the earlier ones left is whole in every process until the last one."""

    @property
    def before(self) -> int:
        """Of earlier passes. DDP's are beside its buckets; FSDP2's are in the precision in which they travel."""
        return self._accumulated_itemsize * self.sizes.trained if self.accumulates else 0

    def held(self, made: int) -> int:
        """When a backward pass has made so many: the last pass, or one before it if that holds more."""
        left = max(0, self.before - self._accumulated_itemsize * made)
        if self.sharing.shards:
            sent = self.itemsize_sent * min(made, self.sizes.trained_blocks // self.layers)
            return max(self.before, left + self.sharing.part(4 * made) + sent)
        if self.sharing.replicas:
            return max(self.before, left + self._copies(made))
        return left + 4 * made

    @property
    def _accumulated_itemsize(self) -> int:
        return self.itemsize_sent if self.sharing.shards else 4

    def _copies(self, made: int) -> int:
        """A bucket's quotient in fp32, and in bf16 all that was sent: nothing waits for it before the pass ends."""
        bucket = max(BUCKET, self.sizes.largest)
        return 2 * made + 4 * min(made, bucket) if self.itemsize_sent < 4 else 0


def gathered(sizes: Sizes, sharing: Sharing, blocks: int) -> int:
    """Whole weights in each process that holds shards: of everything outside the blocks, and of so many blocks."""
    return 4 * (sizes.outside + blocks * sizes.block) if sharing.shards else 0
