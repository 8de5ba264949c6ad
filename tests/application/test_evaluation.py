"""Scores against a plain sum over every token, however the blocks are cut."""

from collections.abc import Callable
from fractions import Fraction
from math import log, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.application import evaluation
from smallgpt.application.evaluation import eval_mode, evaluate, score_of, token_nats
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT

Block = tuple[Tensor, Tensor]


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    return GPT(tiny.model_copy(update={"dropout": 0.5}))


@pytest.fixture
def blocks(tiny: GPTConfig, make_batches: Callable[..., Any]) -> list[Block]:
    """Seven rows in three batches; the last row is cut short."""
    batches = make_batches(tiny, ignored=lambda row: 9 if row == 6 else 0)
    return [batches.rows(0, rows) for rows in (range(3), range(3, 6), range(6, 7))]


def test_every_token_is_scored_once(model: GPT, blocks: list[Block]) -> None:
    score = evaluate(model, blocks, 500)
    exact = GPT(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    sums, tokens = [], []
    for inputs, targets in blocks:
        for row, wanted in zip(inputs, targets, strict=True):
            log_p = exact(row[None])[0].log_softmax(-1)
            sums.append(-sum(log_p[t, y].item() for t, y in enumerate(wanted.tolist()) if y != -100))
            tokens.append(int((wanted != -100).sum()))
    assert score.nats == pytest.approx(sum(sums), rel=1e-6)
    assert score.tokens == 6 * 12 + 3
    assert score.text_bytes == 500
    mean = sum(sums) / score.tokens
    left = [x - n * mean for x, n in zip(sums, tokens, strict=True)]
    assert score.block_variance == pytest.approx(sum(x**2 for x in left) / 6, rel=1e-4)
    assert score.blocks == 7


@pytest.mark.parametrize("logit_bytes", [1, 2 * 4 * 61 * 12, 2**30])
def test_the_score_does_not_depend_on_how_much_is_done_at_once(
    model: GPT, blocks: list[Block], logit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(model, [(torch.cat(x), torch.cat(y)) for x, y in [tuple(zip(*blocks, strict=True))]], 500)
    monkeypatch.setattr(evaluation, "LOGIT_BYTES", logit_bytes)
    assert evaluate(model, blocks, 500).nats == pytest.approx(whole.nats, rel=1e-7)


def test_the_answer_is_the_same_every_time_and_draws_nothing(model: GPT, blocks: list[Block]) -> None:
    model.train()
    state = torch.get_rng_state()
    assert evaluate(model, blocks, None) == evaluate(model, blocks, None)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode_even_by_an_error(model: GPT, blocks: list[Block], training: bool) -> None:
    model.train(training)
    evaluate(model, blocks, None)
    assert model.training == training

    def broken() -> Any:
        yield blocks[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, broken(), None)
    assert model.training == training
    with eval_mode(model):
        assert not model.training
    assert all(module.training == training for module in model.modules())


def test_the_model_can_be_trained_afterwards(model: GPT, blocks: list[Block]) -> None:
    evaluate(model, blocks, None)
    torch.autograd.backward(model(*blocks[0]))
    assert model.transformer.wte.weight.grad is not None


def test_in_low_precision_the_sums_stay_wide(model: GPT, blocks: list[Block]) -> None:
    plain = evaluate(model, blocks, None)
    low = evaluate(model, blocks, None, autocast=torch.autocast("cpu", torch.bfloat16))
    assert low.nats != plain.nats
    assert low.nats == pytest.approx(plain.nats, rel=5e-3)


def test_a_short_last_block_is_no_scatter() -> None:
    """Ten blocks of which every token costs the same: there is no doubt about that cost."""
    tokens = torch.tensor([64] * 9 + [3, 0])
    score = score_of(tokens.double() * 1.75, tokens, 500)
    assert (score.blocks, score.block_variance) == (10, 0.0)
    assert score.bits_per_byte_interval == (score.bits_per_byte, score.bits_per_byte)


def test_an_interval_of_real_sizes_agrees_with_exact_fractions() -> None:
    """79 blocks of up to 64 tokens, the last of 19: the sums do not lose the small variance in fp64."""
    tokens = [64] * 78 + [19]
    nats = [Fraction(n * (200 + 13 * i % 37), 100) for i, n in enumerate(tokens)]
    ratio = sum(nats) / sum(tokens)
    variance = sum((y - n * ratio) ** 2 for y, n in zip(nats, tokens, strict=True)) / 78
    score = score_of(torch.tensor([float(y) for y in nats], dtype=torch.float64), torch.tensor(tokens), 9000)
    assert score.block_variance == pytest.approx(float(variance), rel=1e-12)
    low, high = score.bits_per_byte_interval or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * sqrt(79 * variance) / log(2) / 9000, rel=1e-12)


def test_few_blocks_have_no_interval(model: GPT, blocks: list[Block]) -> None:
    score = evaluate(model, blocks, 10)
    assert score.blocks == 7
    assert score.bits_per_byte_interval is None
    assert "bits_per_byte_interval" not in score.as_dict()


def test_nats_of_each_token(model: GPT, blocks: list[Block]) -> None:
    inputs, targets = blocks[2]
    model.eval()
    nats = token_nats(model, inputs, targets)
    assert nats.shape == targets.shape
    assert nats.dtype == torch.float32
    assert nats[0, :9].tolist() == [0.0] * 9, "no target, no nats"
    expected = F.cross_entropy(model(inputs)[0, 9:], targets[0, 9:], reduction="none")
    torch.testing.assert_close(nats[0, 9:], expected)
