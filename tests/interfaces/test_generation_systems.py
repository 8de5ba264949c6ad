"""Systems that generate say the same tokens, and one that does not is never timed."""

import pytest
import torch
from torch import Tensor

from smallgpt.domain.cache import EvenPast
from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import NumericsError
from smallgpt.interfaces.generation_systems import SYSTEMS, check, random_model, system_of, verify_here

CPU = torch.device("cpu")
CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=101, dropout=0.0)


@pytest.fixture
def prompts() -> Tensor:
    return torch.randint(CONFIG.vocab_size, (3, 5))


EXACT = [system for system in SYSTEMS if not system.endswith(("-bf16", "-int8"))]


def test_all_exact_systems_continue_with_the_same_tokens(prompts: Tensor) -> None:
    weights = random_model(CONFIG, CPU).state_dict()
    texts = [system_of(system, CONFIG, CPU, weights)(prompts, 20) for system in EXACT]
    assert all(torch.equal(text, texts[0]) for text in texts)
    assert texts[0].shape == (3, 20)
    assert len(set(texts[0][0].tolist())) > 5  # the model does not just say its last token again


def test_a_cache_that_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EvenPast.layer

    def forgetful(past: EvenPast, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        k, v, lengths = whole(past, layer)
        k[:, 0] = 0  # the first token
        return k, v, lengths

    sizes = {"prompt_tokens": 4, "new_tokens": 20, "streams": 3}
    verify_here(SYSTEMS, CONFIG, "cpu", **sizes)
    monkeypatch.setattr(EvenPast, "layer", forgetful)
    verify_here(["smallgpt-uncached"], CONFIG, "cpu", **sizes)
    for system in ("smallgpt", "smallgpt-bf16", "smallgpt-int8"):
        with pytest.raises(NumericsError, match=rf"{system} goes wrong at new token \d+: .* Nothing was timed"):
            verify_here([system], CONFIG, "cpu", **sizes)


def test_only_a_tie_may_be_broken_the_other_way(prompts: Tensor) -> None:
    model = random_model(CONFIG, CPU)
    logits = model(prompts)[:, -1]
    best, second = logits.topk(2).indices.T
    check("any", model, prompts, best[:, None])
    with pytest.raises(NumericsError, match="new token 1"):
        check("any", model, prompts, second[:, None])
    model.lm_head.weight.data[second] = model.lm_head.weight.data[best]
    check("any", model, prompts, second[:, None])
