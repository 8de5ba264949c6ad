"""Generation with the Triton kernels: the tokens that torch's operations give, also by a step that is captured as a graph."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("pydantic")  # which a bare machine with a GPU need not have

from smallgpt.application import engine
from smallgpt.application.cuda_graphs import WARM_UP, Graphs
from smallgpt.application.engine import Engine, PastBlock
from smallgpt.application.streams import Request
from smallgpt.domain.cache import KVCache
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.kernels.select import BACKENDS
from tests.application.test_cuda_graphs import Recorded, recorded

__all__ = ["recorded"]

CONFIG = GPTConfig(block_size=12, vocab_size=29, n_layer=1, n_head=2, n_embd=32, dropout=0.0)
PROMPTS = [[3, 1, 4], [9], [2, 6, 5, 3]]


def model_of(backend: str, device: torch.device) -> GPT:
    """The same weights for every backend, and logits that no rounding can reorder: their spread is about 1."""
    torch.manual_seed(0)
    model = GPT(CONFIG, BACKENDS[backend]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.to(device)


def continued(batch: Engine, n: int) -> list[list[int]]:
    """All prompts continued greedily by n tokens, the last one from the second step on."""
    streams = [batch.add(Request(prompt, n)) for prompt in PROMPTS[:2]]
    batch.step()
    streams.append(batch.add(Request(PROMPTS[2], n)))
    while any(stream.finish is None for stream in streams):
        batch.step()
    return [stream.ids for stream in streams]


@pytest.mark.parametrize(("n", "past_block"), [(6, "slide"), (11, "slide"), (11, "refill")])
def test_a_ragged_batch_gives_torchs_tokens_within_the_block_and_past_it(
    n: int, past_block: PastBlock, device: torch.device
) -> None:
    ours, torchs = (
        continued(Engine(model_of(backend, device), 3, past_block=past_block), n) for backend in ("triton", "torch")
    )
    assert ours == torchs
    assert [len(ids) for ids in ours] == [len(prompt) + n for prompt in PROMPTS]


def test_guesses_are_checked_to_the_same_tokens(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right guesses, and one token in five wrong; of other streams there are fewer, or none."""
    expected = continued(Engine(model_of("torch", device), 3), 11)
    model, widths = model_of("triton", device), []

    def guess(ids: Sequence[int], n_draft: int) -> list[int]:
        whole = next((known for known in expected if known[: len(ids)] == list(ids)), [])
        return [id if at % 5 else (id + 1) % 29 for at, id in enumerate(whole)][len(ids) :][: n_draft - len(ids) % 2]

    def noting(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor | None) -> Tensor:
        widths.append(q.size(1))
        return BACKENDS["triton"].cached_attention(q, k_cache, v_cache, lengths)

    monkeypatch.setattr(engine, "lookup", guess)
    monkeypatch.setattr(model.transformer.h[0].attn, "ops", BACKENDS["triton"]._replace(cached_attention=noting))
    assert continued(Engine(model, 3, n_draft=3), 11) == expected
    assert {1, 4} <= set(widths)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@torch.inference_mode()
def test_lengths_on_the_device_give_the_logits_of_lengths_on_the_host(backend: str, device: torch.device) -> None:
    """Rows as short and as long as the block has room for; what is left in the slots behind them does not matter."""
    model, lengths = model_of(backend, device), [1, 7, 11, 4]
    caches = []
    for _ in range(2):
        cache = KVCache(CONFIG, 5, device)
        cache.slots.normal_(generator=torch.Generator(device).manual_seed(1))
        caches.append(cache)
    tokens = torch.tensor([[3], [1], [4], [1]], device=device)
    by_host = model(tokens, past=caches[0].after(lengths, 1))
    caches[1].slots[..., 11:, :] = 1e4  # overwritten in the row that has come so far, masked in the others
    by_device = model(tokens, past=caches[1].after_on_device(torch.tensor(lengths, device=device)))
    torch.testing.assert_close(by_device, by_host, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(lengths):  # the new keys and values lie where they belong
        assert torch.equal(*(cache.slots[:, row, :, :, length] for cache in caches))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU captures real graphs in every other test")
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_replayed_steps_give_the_tokens_of_eager_ones(backend: str, recorded: type[Recorded]) -> None:
    """Lengths and rows change between replays of one capture; each number of rows has its own."""
    cpu, results = torch.device("cpu"), []
    for graphs in (None, Graphs(cpu)):
        batch = Engine(model_of(backend, cpu), 3)
        batch.graphs = graphs
        results.append(continued(batch, WARM_UP + 4))
    assert results[0] == results[1]
    assert recorded.captures == 1
