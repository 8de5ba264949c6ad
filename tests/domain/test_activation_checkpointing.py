"""Blocks that are computed again in the backward pass: the same bits, less memory, and nothing else touched."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt import GPT, GPTConfig
from smallgpt.domain.cache import KVCache
from smallgpt.domain.ops import TORCH_OPS, Ops
from smallgpt.kernels.select import BACKENDS

CONFIG = GPTConfig(block_size=12, vocab_size=61, n_layer=3, n_head=2, n_embd=32, dropout=0.0)
PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fp32": nullcontext,
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def loss_and_gradients(
    config: GPTConfig, precision: str, *, recomputes: bool, ops: Ops = TORCH_OPS, compiled: bool = False
) -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = GPT(config, ops)
    model.transformer.recomputes_blocks = recomputes
    forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    tokens = torch.randint(config.vocab_size, (4, 13))
    torch.manual_seed(2)
    with PRECISIONS[precision]():
        loss = forward(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    after = torch.rand(1)  # what is drawn next must not depend on what was recomputed
    return {"loss": loss.detach(), "next random number": after} | {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("ops", ["plain", "torch"])
def test_loss_and_gradients_are_the_same_bits(precision: str, dropout: float, ops: str) -> None:
    config = CONFIG.model_copy(update={"dropout": dropout})
    chosen = TORCH_OPS if ops == "plain" else BACKENDS["torch"]
    kept = loss_and_gradients(config, precision, recomputes=False, ops=chosen)
    again = loss_and_gradients(config, precision, recomputes=True, ops=chosen)
    assert len(kept) == 2 + len(list(GPT(config).parameters()))
    assert not [name for name, tensor in kept.items() if not torch.equal(tensor, again[name])]


def test_the_masks_of_dropout_matter_to_the_gradients() -> None:
    """The test above has teeth: with other masks in the backward pass the gradients would be others."""
    config = CONFIG.model_copy(update={"dropout": 0.2})
    gradients = [
        loss_and_gradients(config.model_copy(update={"dropout": p}), "fp32", recomputes=True) for p in (0, 0.2)
    ]
    name = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.allclose(gradients[0][name], gradients[1][name], rtol=0.1)


def test_blocks_are_computed_twice_when_there_are_gradients_to_make_and_else_once() -> None:
    model = GPT(CONFIG)
    model.transformer.recomputes_blocks = True
    calls: list[int] = []
    for index, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(lambda module, args, index=index: calls.append(index))
    tokens = torch.randint(CONFIG.vocab_size, (2, 8))
    model(tokens, tokens).backward()
    assert calls == [0, 1, 2, 2, 1, 0]
    calls.clear()
    with torch.no_grad():
        model(tokens, tokens)
    assert calls == [0, 1, 2]
    calls.clear()
    cache = KVCache(CONFIG, 2, torch.device("cpu"), torch.float32)
    model(tokens, past=cache.after([0, 0], 8))
    assert calls == [0, 1, 2]


def test_it_compiles_whole() -> None:
    plain = loss_and_gradients(CONFIG, "fp32", recomputes=True)
    compiled = loss_and_gradients(CONFIG, "fp32", recomputes=True, compiled=True)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-5, atol=1e-7)


def test_compiled_dropout_is_recomputed_with_its_masks() -> None:
    config = CONFIG.model_copy(update={"dropout": 0.2})
    kept = loss_and_gradients(config, "fp32", recomputes=False, compiled=True)
    compiled = loss_and_gradients(config, "fp32", recomputes=True, compiled=True)
    for name, tensor in kept.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-5, atol=1e-7)


def test_it_is_no_part_of_the_models_shape() -> None:
    model = GPT(CONFIG)
    model.transformer.recomputes_blocks = True
    assert set(model.config.model_dump()) == set(GPTConfig.model_fields)
    assert set(model.state_dict()) == set(GPT(CONFIG).state_dict())
