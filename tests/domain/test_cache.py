"""The cache: what it holds, and that reading in parts, for rows of any length, gives what reading at once gives."""

import pytest
import torch

from smallgpt.domain.cache import KVCache
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    model = GPT(tiny).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_keys_and_values_come_back_in_order(tiny: GPTConfig) -> None:
    cache = KVCache(tiny, 2, CPU)
    first, second = torch.randn(2, 3, 3, 2, 16), torch.randn(2, 1, 3, 2, 16)
    past = cache.after([0, 0], 3)
    assert past.is_empty
    for layer in range(2):
        past.append(layer, first + layer)
    past = cache.after([3, 3], 1)
    assert not past.is_empty
    past.append(0, second)
    k, v, lengths = past.layer(0)
    assert torch.equal(k, torch.cat([first, second], 1)[:, :, 1])
    assert torch.equal(v, torch.cat([first, second], 1)[:, :, 2])
    assert lengths is None, "every slot of every row is seen"
    past.append(1, second + 1)
    assert torch.equal(past.layer(1)[0], k + 1), "layers do not share slots"


def test_rows_of_different_lengths_are_filled_each_behind_its_own(tiny: GPTConfig) -> None:
    cache = KVCache(tiny, 3, CPU)
    new = torch.randn(2, 2, 3, 2, 16)
    past = cache.after([4, 1], 2, first=1)
    past.append(0, new)
    assert past.positions.tolist() == [[4, 5], [1, 2]]
    k, v, lengths = past.layer(0)
    assert lengths is not None
    assert lengths.tolist() == [6, 3]
    assert torch.equal(k[0, 4:6], new[0, :, 1])
    assert torch.equal(v[1, 1:3], new[1, :, 2])
    assert not cache.slots[:, 0].any(), "the row before the first is not touched"
    assert not k[1, 3:].any()


# One token at a time, the whole at once, and prompts in parts: several new tokens after a past need their own mask.
@pytest.mark.parametrize("parts", [[1] * 12, [12], [5, 7], [1, 4, 1, 6], [11, 1]])
def test_reading_in_parts_gives_the_logits_of_reading_at_once(model: GPT, parts: list[int]) -> None:
    idx = torch.randint(61, (3, 12))
    cache, read, logits = KVCache(model.config, 3, CPU), 0, []
    for part in torch.split(idx, parts, 1):
        logits.append(model(part, past=cache.after([read] * 3, part.size(1))))
        read += part.size(1)
    torch.testing.assert_close(torch.cat(logits, 1), model(idx), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_new", [1, 3])
def test_rows_of_different_lengths_give_the_logits_that_each_gives_alone(model: GPT, n_new: int) -> None:
    idx, lengths = torch.randint(61, (4, 12)), [9, 1, 4, 0]
    cache = KVCache(model.config, 4, CPU)
    for row, length in enumerate(lengths):
        if length:
            model(idx[row : row + 1, :length], past=cache.after([0], length, first=row))
    new = torch.stack([idx[row, length : length + n_new] for row, length in enumerate(lengths)])
    logits = model(new, past=cache.after(lengths, n_new))
    for row, length in enumerate(lengths):
        alone = model(idx[row : row + 1, : length + n_new])[0, length:]
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-5)


def test_lengths_on_the_device_give_the_same(model: GPT) -> None:
    idx, lengths = torch.randint(61, (3, 12)), [9, 2, 0]
    logits = []
    for on_device in (False, True):
        cache = KVCache(model.config, 3, CPU)
        cache.slots.fill_(1e4)  # what is not written yet must not matter
        for row, length in enumerate(lengths):
            if length:
                model(idx[row : row + 1, :length], past=cache.after([0], length, first=row))
        past = cache.after_on_device(torch.tensor(lengths)) if on_device else cache.after(lengths, 1)
        logits.append(model(idx[:, :1], past=past))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)


def test_padding_at_the_right_is_never_seen(model: GPT) -> None:
    idx = torch.randint(61, (1, 12))
    cache = KVCache(model.config, 1, CPU)
    padded = torch.cat([idx[:, :4], torch.zeros(1, 5, dtype=torch.int64)], 1)
    logits = model(padded, past=cache.after([0], 9), last=torch.tensor([3]))
    torch.testing.assert_close(logits, model(idx[:, :4])[:, 3:], rtol=1e-4, atol=1e-5)
    logits = model(idx[:, 4:5], past=cache.after([4], 1))
    torch.testing.assert_close(logits, model(idx[:, :5])[:, 4:], rtol=1e-4, atol=1e-5)


def test_a_row_moves_with_all_it_holds(model: GPT) -> None:
    idx = torch.randint(61, (1, 6))
    cache = KVCache(model.config, 3, CPU)
    model(idx[:, :5], past=cache.after([0], 5, first=2))
    cache.move(2, 0)
    torch.testing.assert_close(model(idx[:, 5:], past=cache.after([5], 1)), model(idx)[:, 5:], rtol=1e-4, atol=1e-5)


def test_reading_under_bf16_autocast_works(model: GPT) -> None:
    idx = torch.randint(61, (1, 12))
    cache, read, logits = KVCache(model.config, 1, CPU), 0, []
    with torch.autocast("cpu", torch.bfloat16):
        for part in torch.split(idx, [4, 1, 1, 6], 1):
            logits.append(model(part, past=cache.after([read], part.size(1))))
            read += part.size(1)
        expected = model(idx)
    torch.testing.assert_close(torch.cat(logits, 1).float(), expected.float(), rtol=0.05, atol=0.1)


def test_a_full_cache_refuses_more(model: GPT) -> None:
    cache = KVCache(model.config, 2, CPU)
    with pytest.raises(ValueError, match="13 tokens do not fit"):
        cache.after([3, 12], 1)
