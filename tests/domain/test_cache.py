"""The cache: what it holds, and that reading token by token gives what reading at once gives."""

import pytest
import torch

from smallgpt.domain.cache import KVCache
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    model = GPT(tiny).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_keys_and_values_come_back_in_order(tiny: GPTConfig) -> None:
    cache = KVCache(tiny, 2, torch.device("cpu"))
    first, second = torch.randn(2, 3, 3, 2, 16), torch.randn(2, 1, 3, 2, 16)
    for layer in range(2):
        assert cache.append(layer, first + layer), "with nothing read before, there is no past"
    cache.advance(3)
    assert not cache.append(0, second)
    k, v, lengths = cache.layer(0)
    assert torch.equal(k, torch.cat([first, second], 1)[:, :, 1])
    assert torch.equal(v, torch.cat([first, second], 1)[:, :, 2])
    assert lengths.tolist() == [4, 4]
    assert lengths.dtype == torch.int64
    assert not cache.append(1, second + 1)
    assert torch.equal(cache.layer(1)[0], k + 1), "layers do not share slots"


# One token at a time, the whole at once, and prompts in parts: several new tokens after a past need their own mask.
@pytest.mark.parametrize("parts", [[1] * 12, [12], [5, 7], [1, 4, 1, 6], [11, 1]])
def test_reading_in_parts_gives_the_logits_of_reading_at_once(model: GPT, parts: list[int]) -> None:
    idx = torch.randint(61, (3, 12))
    cache = KVCache(model.config, 3, torch.device("cpu"))
    logits = torch.cat([model(part, cache=cache) for part in torch.split(idx, parts, 1)], 1)
    torch.testing.assert_close(logits, model(idx), rtol=1e-4, atol=1e-5)
    assert cache.used == 12


def test_reading_under_bf16_autocast_works(model: GPT) -> None:
    idx = torch.randint(61, (1, 12))
    cache = KVCache(model.config, 1, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model(part, cache=cache) for part in torch.split(idx, [4, 1, 1, 6], 1)], 1)
        expected = model(idx)
    torch.testing.assert_close(logits.float(), expected.float(), rtol=0.05, atol=0.1)


def test_a_full_cache_refuses_more(model: GPT) -> None:
    cache = KVCache(model.config, 1, torch.device("cpu"))
    model(torch.zeros(1, 12, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="13 tokens do not fit"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
