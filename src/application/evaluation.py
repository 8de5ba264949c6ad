"""The cross-entropy of a model on a text: every token predicted once, no smoothing, the same answer every time."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score
from smallgpt.domain.processes import ALONE, Processes

LOGIT_BYTES = 64 * 2**20  # of fp32 logits at once: a whole batch of them would outweigh the training step's memory

Blocks = Iterable[tuple[Tensor, Tensor]]


def evaluate(
    model: GPT,
    blocks: Blocks,
    text_bytes: int | None,
    *,
    autocast: AbstractContextManager[object] | None = None,
    processes: Processes = ALONE,
) -> Score:
    """Score a model on consecutive blocks, (B, T) inputs and targets with -100 for "no target".

    text_bytes is the UTF-8 size of the text behind the blocks; with several processes, each takes its share of them.
    The model is left in the mode it was in.
    """
    block_nats = [torch.zeros(0, dtype=torch.float64, device=next(model.parameters()).device)]
    block_tokens = [torch.zeros(0, dtype=torch.int64)]
    shared = blocks if processes.count == 1 else _shared(blocks, processes)
    for nats, targets in nats_and_targets(model, shared, autocast=autocast, shards=processes.shards):
        block_nats.append(nats.double().sum(1))
        block_tokens.append((targets != -100).sum(1))
    return score_of(torch.cat(block_nats).cpu(), torch.cat(block_tokens), text_bytes, processes)


def score_of(nats: Tensor, tokens: Tensor, text_bytes: int | None, processes: Processes = ALONE) -> Score:
    """The score of blocks, of which each process has some: their summed nats, (n,) fp64, and predicted tokens, (n,) int64.

    Blocks without tokens do not count.
    """
    total, counted = nats.sum(), torch.stack([tokens.sum(), (tokens > 0).sum()])
    total, (n_tokens, n_blocks) = processes.sum(total), processes.sum(counted).tolist()
    squares = processes.sum((nats - tokens * (total / n_tokens)).square().sum()).item()  # see bits_per_byte_interval
    return Score(total.item(), n_tokens, text_bytes, squares / max(1, n_blocks - 1), n_blocks)


def _shared(blocks: Blocks, processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
    """Every count-th batch. All processes get as many, of one shape, since a model in shards is called by all together.

    What is missing is filled up with rows that have no target.
    """
    remaining, shape = iter(blocks), None
    while batches := list(islice(remaining, processes.count)):
        shape = shape or batches[0][0].shape
        inputs, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -100)
        if processes.rank < len(batches):
            own = batches[processes.rank]
            inputs[: len(own[0])], targets[: len(own[0])] = own
        yield inputs, targets


def nats_and_targets(
    model: GPT, blocks: Blocks, *, autocast: AbstractContextManager[object] | None = None, shards: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterates over what token_nats gives for some rows of the blocks, and their targets. Is the model in shards?"""
    without_gradients = torch.no_grad if shards else torch.inference_mode  # of which gathered weights would stay marked
    return without_gradients()(_nats_and_targets)(model, blocks, autocast)


def _nats_and_targets(
    model: GPT, blocks: Blocks, autocast: AbstractContextManager[object] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    with eval_mode(model), autocast or nullcontext():
        for inputs, targets in blocks:
            rows = max(1, LOGIT_BYTES // (4 * model.config.vocab_size * inputs.size(1)))
            for x, y in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
                yield token_nats(model, x.to(device), y.to(device)), y


def token_nats(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """(B, T) inputs and targets -> (B, T) negative log-probabilities in fp32, 0 where there is no target."""
    logits = model(inputs).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the former mode after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
