"""The cross-entropy of a model on a text: every token predicted once, no smoothing, the same answer every time."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smallgpt.domain.gpt import GPT
from smallgpt.domain.metrics import Score

LOGIT_BYTES = 64 * 2**20  # of fp32 logits at once: a whole batch of them would outweigh the training step's memory

Blocks = Iterable[tuple[Tensor, Tensor]]


@torch.inference_mode()
def evaluate(
    model: GPT,
    blocks: Blocks,
    text_bytes: int | None,
    *,
    autocast: AbstractContextManager[object] | None = None,
) -> Score:
    """Score a model on consecutive blocks, (B, T) inputs and targets with -100 for "no target".

    text_bytes is the UTF-8 size of the text behind the blocks. The model is left in the mode it was in.
    """
    device = next(model.parameters()).device
    block_nats: list[Tensor] = []
    tokens = 0
    with eval_mode(model), autocast or nullcontext():
        for inputs, targets in blocks:
            tokens += int((targets != -100).sum())
            rows = max(1, LOGIT_BYTES // (4 * model.config.vocab_size * inputs.size(1)))
            for x, y in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
                block_nats.append(token_nats(model, x.to(device), y.to(device)).double().sum(1))
    sums = torch.cat(block_nats)
    variance = sums.var().item() if len(sums) > 1 else 0.0
    return Score(sums.sum().item(), tokens, text_bytes, variance, len(sums))


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
