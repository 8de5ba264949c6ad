"""Two ways to compute a model are told apart by one changed matrix, norm, bias, number or token, and by nothing less."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smallgpt.application.parity import GREEDY_TOKENS, N_PROMPT, Logits, compare
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT

Weights = dict[str, Tensor]


def made(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.dim() == 1), std=0.3)
    return model


def logits(model: GPT) -> Logits:
    return torch.inference_mode()(model.forward)


def changed(model: GPT, change: Callable[[Weights], None]) -> Logits:
    other = GPT(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        change(dict(other.named_parameters()))
    return logits(other)


def transposed(weights: Weights) -> None:
    matrix = weights["transformer.h.1.attn.c_proj.weight"]
    matrix.copy_(matrix.t().clone())


def norms_swapped(weights: Weights) -> None:
    first, second = (weights[f"transformer.h.0.{name}.weight"] for name in ("ln1", "ln2"))
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def not_a_number(weights: Weights) -> None:
    weights["transformer.wpe.weight"][-1, 0] = math.nan  # which only the longest context sees


@pytest.mark.parametrize("change", [transposed, norms_swapped, not_a_number])
def test_a_difference_in_the_weights_shows(change: Callable[[Weights], None], tiny: GPTConfig) -> None:
    model = made(tiny)
    found = compare(logits(model), changed(model, change), tiny)
    assert not found.passed
    assert not found.max_difference <= 1e-4


def test_the_wrong_gelu_shows(tiny: GPTConfig) -> None:
    model = made(tiny)
    other = GPT(tiny.model_copy(update={"activation": "gelu_tanh"})).eval()
    other.load_state_dict(model.state_dict())
    assert not compare(logits(model), logits(other), tiny).passed


@pytest.mark.parametrize(("bias", "passes"), [(0.0, True), (2e-5, True), (2e-4, False)])
def test_a_bias_of_one_token_shows_from_the_bound_on(bias: float, passes: bool, tiny: GPTConfig) -> None:
    plain = logits(made(tiny))

    def biased(idx: Tensor) -> Tensor:
        return plain(idx) + bias * torch.nn.functional.one_hot(torch.tensor(37), tiny.vocab_size)

    found = compare(plain, biased, tiny)
    assert found.passed is passes
    assert found.max_difference == pytest.approx(bias, abs=5e-6)
    assert found.greedy_equal == GREEDY_TOKENS


def test_small_logits_must_be_near_as_a_share_too(tiny: GPTConfig) -> None:
    plain = logits(made(tiny))
    found = compare(lambda idx: plain(idx) * 1e-3, lambda idx: plain(idx) * 1.001e-3, tiny)
    assert found.max_difference < 1e-4
    assert found.relative == pytest.approx(1e-3, rel=0.01)
    assert not found.passed


@pytest.mark.parametrize("at", [0, 4, 5, GREEDY_TOKENS - 1])
def test_one_other_greedy_token_shows(at: int, tiny: GPTConfig) -> None:
    """Where two tokens are nearly as likely, logits within the bounds may still choose another one."""
    calls = 0

    def one(idx: Tensor) -> Tensor:
        found = torch.zeros(*idx.shape, tiny.vocab_size)
        found[..., 3], found[..., 4] = 50.0, 50.0 - 2e-5
        return found

    def theirs(idx: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = one(idx)
        within = tiny.block_size - N_PROMPT + 1  # tokens that follow a prefix of at most a block
        if calls == 5 and at < within:  # after the four inputs
            found[0, N_PROMPT - 1 + at, 4] += 3e-5
        if calls == 6 and at >= within:
            found[at - within, -1, 4] += 3e-5
        return found

    found = compare(one, theirs, tiny)
    assert found.max_difference <= 1e-4
    assert found.greedy_equal == at
    assert not found.passed


def test_every_position_and_the_longest_context_are_compared(tiny: GPTConfig) -> None:
    seen: list[tuple[int, ...]] = []
    plain = logits(made(tiny))

    def watched(idx: Tensor) -> Tensor:
        seen.append(tuple(idx.shape))
        return plain(idx)

    found = compare(plain, watched, tiny)
    assert found.positions == sum(rows * length for rows, length in seen[:4])
    assert (1, tiny.block_size) in seen[:4]
    assert max(length for _, length in seen) == tiny.block_size
    assert found.as_dict()["passed"] is True
    assert (found.dtype, found.as_dict()["dtype"]) == ("float32", "float32")


def test_a_context_of_one_and_a_vocabulary_of_few_can_be_compared() -> None:
    config = GPTConfig(block_size=1, vocab_size=3, n_layer=1, n_head=1, n_embd=4, dropout=0.0)
    model = logits(made(config))
    assert compare(model, model, config).passed
