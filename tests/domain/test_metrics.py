"""Numbers on the screen against their definitions, worked out slowly."""

from math import exp, log, sqrt

import pytest
import torch

from smallgpt.application.evaluation import score_of
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.flops import flops_per_token
from smallgpt.domain.metrics import Score


def test_flops_of_the_seeds_configuration_by_hand() -> None:
    block = 256 * 768 + 256 * 256 + 256 * 1024 + 1024 * 256  # c_attn, c_proj, c_fc, c_proj
    weights = 6 * (4 * block + 50304 * 256)
    # QKᵀ and PV: 2·256 multiply-adds each a visible key, 64.5 keys on average; backward twice forward; 4 layers
    attention = 4 * 3 * (2 + 2) * 256 * 129 // 2
    assert flops_per_token(GPTConfig()) == weights + attention == 96_933_888
    assert flops_per_token(GPTConfig(), context=1) == weights + 4 * 12 * 256
    assert 6 * 50304 * 256 / flops_per_token(GPTConfig()) == pytest.approx(0.80, abs=0.005)


def test_a_score_in_every_unit() -> None:
    score = Score(nats=700.0, tokens=350, text_bytes=1000, block_variance=25.0, blocks=16)
    assert score.nats_per_token == 2.0
    assert score.perplexity == pytest.approx(exp(2))
    assert score.bits_per_byte == pytest.approx(700 / 0.6931471805599453 / 1000)
    low, high = score.bits_per_byte_interval or (0, 0)
    # the sum over 16 blocks has standard error √(16·25) = 20 nats
    assert high - low == pytest.approx(2 * 1.96 * sqrt(16 * 25) / 0.6931471805599453 / 1000)
    assert (low + high) / 2 == pytest.approx(score.bits_per_byte)
    assert score.as_dict() == {
        "nats_per_token": 2.0,
        "bits_per_byte": score.bits_per_byte,
        "bits_per_byte_interval": [low, high],
        "perplexity": score.perplexity,
        "tokens": 350,
        "bytes": 1000,
    }


def test_without_the_texts_size_there_are_no_bits_per_byte() -> None:
    score = Score(nats=10.0, tokens=5, text_bytes=None)
    assert score.bits_per_byte is None
    assert score.bits_per_byte_interval is None


def test_a_hopeless_loss_is_still_a_number() -> None:
    assert Score(nats=1e6, tokens=1, text_bytes=1).perplexity < float("inf")


@pytest.mark.parametrize("lengths", [[64] * 49 + [5], [64] * 9 + [8], list(range(2, 130, 4))])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(lengths: list[int]) -> None:
    """Blocks of these lengths whose tokens cost 3 nats on average: each block has a mean of its own around that."""
    tokens, held, widths = torch.tensor(lengths, dtype=torch.float64), 0, []
    for seed in range(1000):
        each = torch.randn(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        nats = 3 * tokens + 2 * tokens.sqrt() * each  # 2 nats scatter a token, as independent tokens have it
        score = score_of(nats, tokens, int(tokens.sum()))  # one byte a token
        low, high = score.bits_per_byte_interval or (0, 0)
        held += low < 3 / log(2) < high
        widths.append(high - low)
    assert 0.90 <= held / 1000 <= 0.97
    exact = 2 * 1.96 * 2 / tokens.sum().sqrt().item() / log(2)
    assert 0.9 * exact < sum(widths) / 1000 < 1.05 * exact


def test_below_ten_blocks_there_is_no_interval() -> None:
    few, enough = (Score(700.0, 350, 1000, 25.0, blocks) for blocks in (9, 10))
    assert few.bits_per_byte_interval is None
    assert "bits_per_byte_interval" not in few.as_dict()
    assert enough.bits_per_byte_interval is not None
