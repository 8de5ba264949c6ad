"""Trained with the Triton kernels (in the interpreter), a model goes the way that it goes with the formulas."""

import pytest
import torch

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.ops import Ops
from smallgpt.kernels.select import BACKENDS, LOSS_BACKENDS

STEPS = 20
ALLOWED = 1e-4
"""Nats. Steps differ by fp32 roundings alone, about 1e-7 a loss; twenty steps of Adam spread them about a hundredfold."""


def losses(ops: Ops, label_smoothing: float) -> list[float]:
    """Of STEPS optimizer steps on a learnable stream, in fp32; positions on both sides of a tile's edge."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=20, vocab_size=61, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
    model = GPT(config, ops)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for step in range(STEPS):
        start = torch.arange(2)[:, None] * 17 + step
        tokens = (start + 7 * torch.arange(21)) % 61  # (2, 21)
        targets = tokens[:, 1:].clone()
        targets[0, :3] = -100
        loss = model(tokens[:, :-1], targets, label_smoothing=label_smoothing, z_loss=1e-3)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("design", "label_smoothing"), [("triton-chunked", 0.1), ("triton-flash", 0.0)])
def test_twenty_steps_give_the_formulas_losses(design: str, label_smoothing: float) -> None:
    ops = BACKENDS["triton"]._replace(linear_cross_entropy=LOSS_BACKENDS[design].linear_cross_entropy)
    ours, formulas = losses(ops, label_smoothing), losses(BACKENDS["reference"], label_smoothing)
    assert formulas[-1] < formulas[0] - 0.5, "nothing was learned, so nothing was compared"
    assert max(abs(a - b) for a, b in zip(ours, formulas, strict=True)) <= ALLOWED
    assert ours != formulas, "the kernels ran, and round in their own way"
