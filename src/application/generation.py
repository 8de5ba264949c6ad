"""Continuing a sequence of tokens until it ends."""

from collections.abc import Iterator, Sequence

import torch

from smallgpt.application.evaluation import eval_mode
from smallgpt.domain.gpt import GPT
from smallgpt.domain.sampling import Sampling


def continuation(
    model: GPT, ids: Sequence[int], max_new_tokens: int, sampling: Sampling, *, seed: int, end: int | None
) -> Iterator[int]:
    """Yield new token ids after `ids` (at least one), up to max_new_tokens and stopping before `end`.

    The same seed gives the same tokens, whatever else draws random numbers.
    """
    device = model.lm_head.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    with eval_mode(model):
        for token in model.stream(torch.tensor([ids], device=device), max_new_tokens, sampling, generator):
            new = int(token.item())
            if new == end:
                return
            yield new
