"""How much memory a training step takes, by arithmetic, before anything is allocated.

A step has moments at which much is held at once: the loss, its gradient, the backward pass of the last and the first block,
the embedding's gradient, the optimizer's update, and between steps an evaluation. The plan lists what is held at each; the
largest is the peak. It is that of a step which torch runs operation by operation; a compiled one should stay below it.
Of frozen parts neither gradients nor optimizer state are counted; their activations are, though some are not kept.

B sequences of T tokens make N = B·T rows; U stands for the N·C elements of a hidden state.
"""

from collections.abc import Callable
from dataclasses import dataclass

from smallgpt.application.evaluation import LOGIT_BYTES
from smallgpt.application.memory_shares import ONE_PROCESS, Gradients, Sharing, Sizes, gathered, sizes_of
from smallgpt.domain.config import GPTConfig, RunConfig

EVALUATION_BATCH = 32  # blocks that an evaluation takes at once, when their logits fit


@dataclass(frozen=True)
class KernelBytes:
    """What the chosen implementations of the operations hold for one micro-batch."""

    attention_kept: int
    """From one layer's forward to its backward pass, its output not counted."""
    attention_backward: int
    """Besides, while that backward pass runs."""
    layer_norm_kept: int
    """From one norm's forward to its backward pass, its output not counted."""
    loss_forward: int
    """At most at once in the forward pass of output head and loss."""
    loss_backward: int
    """At most at once in their backward pass, both gradients included."""


@dataclass(frozen=True)
class MemoryPlan:
    """The moment of a step at which most is held, and what that is."""

    micro_batch: int
    moment: str
    components: dict[str, int]
    """Bytes by what they are for; together they are the peak."""

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.components.values())


def plan_memory(
    config: RunConfig,
    micro_batch: int,
    itemsize: int,
    kernels: KernelBytes,
    *,
    evaluates: bool = True,
    captured: bool = False,
    sharing: Sharing = ONE_PROCESS,
    on_host: bool = True,
) -> MemoryPlan:
    """The plan of one process of a run whose forward passes take micro_batch sequences.

    `itemsize` is the bytes of a number in matrix products: 4, or 2 under autocast. `kernels` are the figures of the chosen
    implementations for such a micro-batch. A step that is `captured` as a CUDA graph keeps its memory while an evaluation runs.
    `on_host` is whether the memory is that in which models are made and checkpoints copied, as a CPU's is.
    """
    moments = _training(config, micro_batch, itemsize, kernels, sharing)
    if evaluates and captured:
        for held in moments.values():
            held["evaluation"] = _evaluation(config.model)
    elif evaluates:
        whole = gathered(sizes_of(config), sharing, blocks=2)  # the last one's buffer goes when the next one's is full
        moments["evaluation"] = _always(config, sharing) | {
            "loss": _evaluation(config.model),
            "gathered_weights": whole,
        }
    if sharing.shards:
        moments |= _whole_models(config, sharing, on_host, samples=evaluates and config.evaluation.sample_every > 0)
    if on_host and config.checkpoint.asynchronous:
        for held in moments.values():
            held["checkpoint"] = _state(config)
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return MemoryPlan(micro_batch, moment, {name: size for name, size in moments[moment].items() if size})


def _always(config: RunConfig, sharing: Sharing) -> dict[str, int]:
    """What is held at every moment."""
    sizes = sizes_of(config)
    return {
        "weights": sharing.part(4 * sizes.everything),
        "optimizer": sharing.part(_optimizer_state(config.optimizer.name, sizes)),
        "gradient_buckets": 4 * sizes.trained if sharing.replicas else 0,
        "batch": 2 * 8 * sharing.rows(config.training.batch_size) * config.model.block_size,
    }


def _state(config: RunConfig) -> int:
    """What a checkpoint holds."""
    sizes = sizes_of(config)
    return 4 * sizes.everything + _optimizer_state(config.optimizer.name, sizes)


def _whole_models(config: RunConfig, sharing: Sharing, on_host: bool, *, samples: bool) -> dict[str, dict[str, int]]:
    """Moments at which shards are not yet shards, or are put together for the first process to show a sample."""
    sizes = sizes_of(config)
    whole = 4 * (sizes.everything + sizes.largest)  # one tensor is there twice
    moments = {"sharding the new model": {"weights": whole}} if on_host else {}
    return moments | ({"sample": _always(config, sharing) | {"gathered_weights": whole}} if samples else {})


def _training(
    config: RunConfig, micro_batch: int, itemsize: int, kernels: KernelBytes, sharing: Sharing
) -> dict[str, dict[str, int]]:
    """What is held at each moment of a step, in bytes: moment -> component -> size."""
    model, sizes, e = config.model, sizes_of(config), itemsize
    T, C, L = model.block_size, model.n_embd, model.n_layer
    U = micro_batch * T * C
    # of replicas and a process alone, a matrix's; of shards the whole block's, to be sent together
    new_gradients = 4 * sizes.block if sharing.shards else 4 * C * C * e
    cast = e * sizes.hidden if e < 4 else 0
    kept = _kept(model, U, itemsize, kernels, recomputes=config.training.activation_checkpointing)
    accumulates = micro_batch < sharing.rows(config.training.batch_size)
    sent = 2 if config.training.reduce == "bf16" else 4
    gradients = Gradients(sizes, sharing, L, sent, accumulates)
    before, head = gradients.before, 4 * sizes.trained_head

    def moment(**more: int) -> dict[str, int]:
        return _always(config, sharing) | more

    def backward(name: str, blocks_left: int) -> dict[str, dict[str, int]]:
        """A block's backward pass: through its MLP, which is last, and then through its attention."""
        held = kept.embedding + kept.before_blocks(blocks_left) + kept.block
        whole = gathered(sizes, sharing, blocks=min(2, blocks_left))  # its own, and the next one's on their way
        casts = cast * blocks_left // L
        made = gradients.held((L - blocks_left) * sizes.trained_blocks // L) + head
        past_mlp = kept.block - kept.attention_side
        in_attention = new_gradients if sharing.shards else 0
        return {
            f"{name}'s MLP": moment(
                gradients=made,
                gathered_weights=whole,
                cast_weights=casts,
                activations=held,
                backward=4 * U + 5 * U * e + new_gradients - kept.mask,
            ),
            f"{name}'s attention": moment(
                gradients=made,
                gathered_weights=whole,
                cast_weights=casts,
                activations=held - past_mlp,
                backward=4 * U + U * e + kernels.attention_backward + in_attention,
            ),
        }

    blocks = {"last block": L, "first block": 1}
    if sharing.shards and L > 1:
        blocks["second block"] = 2  # the fullest when weights outweigh the rest: the first one prefetches nothing
    all_blocks = kept.embedding + kept.all_blocks + kept.final
    with_last = gathered(sizes, sharing, blocks=1)
    outside = gathered(sizes, sharing, blocks=0)
    return {
        "loss": moment(
            gradients=before,
            gathered_weights=with_last,
            cast_weights=cast,
            activations=all_blocks + 4 * U,
            loss=kernels.loss_forward,
        ),
        "gradient of the loss": moment(
            gradients=before,
            gathered_weights=with_last,
            cast_weights=cast,
            activations=all_blocks,
            loss=kernels.loss_backward,
        ),
        **{place: held for name, left in blocks.items() for place, held in backward(name, left).items()},
        "gradient of the embedding": moment(
            gradients=gradients.held(sizes.trained - (0 if sharing.replicas else sizes.trained_head)) + head,
            gathered_weights=outside,
            backward=4 * U,
        ),
        "optimizer": moment(
            gradients=0 if sharing.replicas else sharing.part(4 * sizes.trained),
            update=_update(config.optimizer.name, sizes, L, e),
        ),
    }


@dataclass(frozen=True)
class _Kept:
    """Activations from forward to backward, in bytes."""

    embedding: int
    block: int
    """Of a block while its own backward pass runs."""
    input_of_block: int | None
    """What a block that is recomputed keeps instead."""
    layers: int
    final: int
    attention_side: int
    """The part of `block` that the attention's branch holds."""
    mask: int
    """Of one residual branch's dropout."""

    def before_blocks(self, left: int) -> int:
        """Of all blocks below the one that is number `left` from the bottom."""
        each = self.block if self.input_of_block is None else self.input_of_block
        return (left - 1) * each + (self.input_of_block or 0)

    @property
    def all_blocks(self) -> int:
        """After the forward pass."""
        return self.layers * (self.block if self.input_of_block is None else self.input_of_block)


def _kept(model: GPTConfig, U: int, itemsize: int, kernels: KernelBytes, *, recomputes: bool) -> _Kept:
    e = itemsize
    mask = U if model.dropout else 0  # a byte an element
    norm = kernels.layer_norm_kept + U * e  # and its output, in the dtype of the product that reads it
    attention = norm + kernels.attention_kept + U * e + mask  # the output projection keeps its input
    mlp = norm + 2 * 4 * U * e + mask  # before and after the GELU
    return _Kept(
        embedding=mask,
        block=attention + mlp,
        input_of_block=4 * U + U * e if recomputes else None,  # residual and delta
        layers=model.n_layer,
        final=kernels.layer_norm_kept,
        attention_side=attention,
        mask=mask,
    )


def _optimizer_state(name: str, sizes: Sizes) -> int:
    """AdamW keeps two moments, Muon one; all fp32."""
    return 8 * sizes.trained - (4 * sizes.trained_hidden if name == "muon" else 0)


def _update(name: str, sizes: Sizes, layers: int, e: int) -> int:
    """Muon's for the largest matrix of all layers: fp32 gradients, what is made orthogonal, its quotient; and its cast."""
    return layers * sizes.wide * (3 * 4 + e) if name == "muon" and sizes.trained_hidden else 0


def _evaluation(model: GPTConfig) -> int:
    """Logits and log-probabilities in fp32."""
    rows = min(EVALUATION_BATCH, max(1, LOGIT_BYTES // (4 * model.vocab_size * model.block_size)))
    return 8 * rows * model.block_size * model.vocab_size


def even_splits(batch_size: int) -> list[int]:
    """Micro-batches that need 1, 2, 3, ... passes, from the largest down: of 32 they are 32, 16, 11, 8, 7, 6, 5, 4, 3, 2, 1."""
    return sorted({-(-batch_size // passes) for passes in range(1, batch_size + 1)}, reverse=True)


def largest_micro_batch(batch_size: int, fits: Callable[[int], bool]) -> int | None:
    """The largest micro-batch that fits: a divisor of the batch, unless an uneven split fits twice as many sequences.

    Passes of one shape are one graph to a compiler. None when not even one sequence fits.
    """
    fitting = [size for size in even_splits(batch_size) if fits(size)]
    divisors = [size for size in fitting if batch_size % size == 0]
    if not fitting:
        return None
    return divisors[0] if divisors and 2 * divisors[0] > fitting[0] else fitting[0]
