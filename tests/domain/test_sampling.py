"""Every filter against a slow, plain version of its definition."""

import re
from math import exp, inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.domain.errors import ConfigError, NumericsError
from smallgpt.domain.sampling import (
    Sampling,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    next_token,
    next_token_at,
    penalise_repetition,
)

# On a grid, so that ties happen and sums in float32 and float64 fall on the same side of a threshold.
LOGITS = st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=1, max_size=12)
NOTHING_SEEN = torch.zeros(1, 0, dtype=torch.int64)


def softmax(logits: list[float]) -> list[float]:
    weights = [exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def kept(filtered: torch.Tensor) -> set[int]:
    return {i for i, x in enumerate(filtered[0].tolist()) if x != -inf}


@given(LOGITS, st.integers(1, 15))
def test_top_k_keeps_the_k_largest_and_their_ties(logits: list[float], k: int) -> None:
    threshold = sorted(logits, reverse=True)[min(k, len(logits)) - 1]
    filtered = keep_top_k(torch.tensor([logits]), k)
    assert filtered[0].tolist() == [x if x >= threshold else -inf for x in logits]


@given(LOGITS, st.integers(1, 99).map(lambda n: n / 100))
def test_top_p_keeps_the_smallest_head_that_reaches_p(logits: list[float], p: float) -> None:
    probabilities = softmax(logits)
    head, mass = 0, 0.0
    ordered = sorted(probabilities, reverse=True)
    while mass < p - 1e-6:
        mass += ordered[head]
        head += 1
    found = kept(keep_top_p(torch.tensor([logits]), p))
    # one more is right too where the head's mass is p but for rounding
    assert len(found) in ({head, head + 1} if abs(mass - p) < 1e-5 else {head})
    least = min(probabilities[i] for i in found)
    assert all(probabilities[i] <= least + 1e-9 for i in range(len(logits)) if i not in found)


def test_top_p_stops_at_the_token_that_reaches_p_exactly() -> None:
    assert len(kept(keep_top_p(torch.zeros(1, 4), 0.5))) == 2  # four times 0.25, without rounding


@pytest.mark.parametrize("p", [1e-50, 1e-300, 1e-7])
def test_the_likeliest_token_stays_however_small_p(p: float) -> None:
    assert kept(keep_top_p(torch.tensor([[0.0, 1.0, 0.5]]), p)) == {1}


@given(LOGITS, st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]))
def test_min_p_keeps_what_is_likely_enough_beside_the_best(logits: list[float], p: float) -> None:
    probabilities = softmax(logits)
    edge = p * max(probabilities)
    found = kept(keep_min_p(torch.tensor([logits]), p))
    assert found >= {i for i, x in enumerate(probabilities) if x >= edge * (1 + 1e-5)}
    assert found <= {i for i, x in enumerate(probabilities) if x >= edge * (1 - 1e-5)}


@given(LOGITS, st.data(), st.sampled_from([0.5, 1.0, 1.3, 2.0]))
def test_repetition_is_penalised_once_however_often_a_token_came(
    logits: list[float], data: st.DataObject, penalty: float
) -> None:
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=20))
    expected = [x if i not in seen else x / penalty if x > 0 else x * penalty for i, x in enumerate(logits)]
    found = penalise_repetition(torch.tensor([logits]), torch.tensor([seen], dtype=torch.int64), penalty)
    torch.testing.assert_close(found, torch.tensor([expected]))


@given(LOGITS, st.data())
def test_all_filters_at_once_are_their_definitions_in_order(logits: list[float], data: st.DataObject) -> None:
    n_tokens = data.draw(st.integers(1, len(logits)))
    seen = data.draw(st.lists(st.integers(0, n_tokens - 1), max_size=5))
    temperature, k = data.draw(st.sampled_from([0.5, 1.0, 2.0])), data.draw(st.integers(1, 12))
    sampling = Sampling(
        temperature=temperature, top_k=k, top_p=0.95, min_p=0.02, repetition_penalty=2.0, n_tokens=n_tokens
    )
    step = torch.tensor([logits])[:, :n_tokens]
    seen_tokens = torch.tensor([seen], dtype=torch.int64)
    step = penalise_repetition(step, seen_tokens, 2.0) / temperature
    expected = keep_min_p(keep_top_p(keep_top_k(step, k), 0.95), 0.02)
    found = filter_logits(torch.tensor([logits]), seen_tokens, sampling)
    torch.testing.assert_close(found, expected)
    assert kept(found), "something is always left"


@given(LOGITS)
def test_values_that_mean_no_filter_change_nothing(logits: list[float]) -> None:
    filtered = filter_logits(torch.tensor([logits]), NOTHING_SEEN, Sampling(top_k=len(logits), top_p=1.0, min_p=0.0))
    assert filtered.tolist() == [logits]


def test_top_p_of_one_keeps_even_a_large_vocabularys_tail() -> None:
    logits = torch.linspace(20, -20, 50304)[None]
    assert len(kept(filter_logits(logits, NOTHING_SEEN, Sampling(top_p=1.0)))) == 50304


@given(LOGITS, st.data())
def test_temperature_zero_takes_the_most_likely_whatever_the_filters(logits: list[float], data: st.DataObject) -> None:
    sampling = Sampling(temperature=0, top_k=data.draw(st.integers(1, 9)), top_p=0.5, min_p=0.5)
    token = next_token(torch.tensor([logits]), NOTHING_SEEN, sampling)
    assert token.shape == (1, 1)
    assert logits[int(token)] == max(logits)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -30.0]]).expand(20_000, 4)
    seen = torch.zeros(20_000, 0, dtype=torch.int64)
    tokens = next_token(logits, seen, Sampling(temperature=0.5), torch.Generator().manual_seed(1))
    shares = torch.bincount(tokens[:, 0], minlength=4) / 20_000
    expected = (logits[0] / 0.5).softmax(-1)
    sigma = (expected * (1 - expected) / 20_000).sqrt()
    assert ((shares - expected).abs() <= 5 * sigma + 1e-9).all()


def test_an_own_generator_repeats_and_leaves_the_global_one_alone() -> None:
    logits, state = torch.zeros(50, 9), torch.get_rng_state()
    seen = torch.zeros(50, 0, dtype=torch.int64)
    drawn = [next_token(logits, seen, Sampling(), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n_tokens", [1, 3])
def test_padding_of_the_vocabulary_is_never_drawn(n_tokens: int) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 50.0]]).expand(200, 4)
    seen = torch.zeros(200, 0, dtype=torch.int64)
    for temperature in (0.0, 1.0):
        assert int(next_token(logits, seen, Sampling(temperature=temperature, n_tokens=n_tokens)).max()) < n_tokens


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 3.2), (torch.float32, 3e38)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_logits_whose_sum_is_not_are_taken(dtype: torch.dtype, size: float, sign: int) -> None:
    logits = torch.full((2, 50304), sign * size, dtype=dtype)
    logits[:, 7] = 0 if sign < 0 else torch.finfo(dtype).max
    assert next_token(logits, torch.zeros(2, 1, dtype=torch.long), Sampling(temperature=0)).tolist() == [[7], [7]]


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(NumericsError, match="not finite"):
        next_token(torch.tensor([[0.0, bad, 1.0]]), NOTHING_SEEN, Sampling(temperature=temperature))


@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draw_from_logits_that_are_not_finite_is_refused(bad: float, temperature: float) -> None:
    draws = torch.tensor([[0.5]], dtype=torch.float64)
    with pytest.raises(NumericsError, match="not finite"):
        next_token_at(torch.tensor([[0.0, bad, 1.0]]), NOTHING_SEEN, Sampling(temperature=temperature), draws)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *[("temperature", x) for x in (-0.1, nan, inf)],
        *[("top_k", x) for x in (0, -1)],
        *[("top_p", x) for x in (0.0, -0.1, 1.1, nan)],
        *[("min_p", x) for x in (-0.1, 1.1, nan)],
        *[("repetition_penalty", x) for x in (0.0, -1.0, 1e-300, 1e300, nan, inf)],
    ],
)
def test_settings_outside_their_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{setting.replace('_', '-')} is {value}")):
        Sampling(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
def test_a_tiny_temperature_is_greedy_and_not_an_overflow(temperature: float) -> None:
    token = next_token(torch.tensor([[1.0, 20.0, -5.0]]), NOTHING_SEEN, Sampling(temperature=temperature))
    assert token.tolist() == [[1]]


def test_a_draw_takes_the_token_at_which_the_cumulative_probability_passes_it() -> None:
    logits = torch.tensor([[0.5, 0.0, 0.125, 0.375]]).log().clamp_min(-1e30).expand(6, 4)
    draws = torch.tensor([0.0, 0.49999, 0.50001, 0.62499, 0.62501, 1 - 2**-53], dtype=torch.float64)[:, None]
    tokens = next_token_at(logits, torch.zeros(6, 0, dtype=torch.int64), Sampling(), draws)
    assert tokens[:, 0].tolist() == [0, 0, 2, 2, 3, 3]


@given(LOGITS, st.data(), st.floats(0, 1, exclude_max=True))
def test_a_draw_takes_only_what_the_filters_leave(logits: list[float], data: st.DataObject, draw: float) -> None:
    sampling = Sampling(top_k=data.draw(st.integers(1, 4)), top_p=data.draw(st.sampled_from([0.3, 0.9, 1.0])))
    draws = torch.tensor([[draw]], dtype=torch.float64)
    token = int(next_token_at(torch.tensor([logits]), NOTHING_SEEN, sampling, draws))
    assert token in kept(filter_logits(torch.tensor([logits]), NOTHING_SEEN, sampling))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_even_draws_give_every_token_its_probability(temperature: float) -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0, -40.0]]).expand(100_000, 5)
    draws = (torch.arange(100_000, dtype=torch.float64)[:, None] + 0.5) / 100_000
    tokens = next_token_at(logits, torch.zeros(100_000, 0, dtype=torch.int64), Sampling(temperature), draws)
    shares = torch.bincount(tokens[:, 0], minlength=5) / 100_000
    torch.testing.assert_close(shares, (logits[0] / temperature).softmax(-1), rtol=0, atol=2e-5)


def test_a_draw_of_zero_temperature_is_the_most_likely() -> None:
    draws = torch.tensor([[0.99]], dtype=torch.float64)
    assert next_token_at(torch.tensor([[1.0, 3.0, 2.0]]), NOTHING_SEEN, Sampling(temperature=0), draws).tolist() == [
        [1]
    ]


def test_log_probabilities_leave_padding_out() -> None:
    logits = torch.tensor([[1.0, 2.0, 50.0]])
    torch.testing.assert_close(log_probabilities(logits, 2).exp().sum(), torch.tensor(1.0))
    assert log_probabilities(logits, None).shape == (1, 3)
