"""What is trained, and that the rest costs nothing: no gradient, no optimizer state, no change."""

from typing import Any

import pytest
import torch

from smallgpt.domain.config import GPTConfig, OptimizerConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.lora import LoRALinear
from smallgpt.domain.optimizers import build_optimizers
from smallgpt.domain.trainable import choose_trainable, n_trained
from smallgpt.domain.training_config import TrainingConfig


def chosen(config: GPTConfig, **settings: Any) -> GPT:
    model = GPT(config)
    choose_trainable(model, TrainingConfig.model_validate(settings))
    return model


def test_everything_is_trained_unless_something_is_named(tiny: GPTConfig) -> None:
    model = chosen(tiny)
    assert n_trained(model) == model.n_parameters(positions=True)
    model = chosen(tiny, freeze="positions")
    assert n_trained(model) == model.n_parameters()


def test_of_lora_nothing_but_the_updates_is_trained(tiny: GPTConfig) -> None:
    model = chosen(tiny, lora_rank=2)
    C = tiny.n_embd
    assert n_trained(model) == tiny.n_layer * 2 * (4 * C + 2 * C + 5 * C + 5 * C)
    adapted = model.get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(adapted, LoRALinear)
    assert adapted.scale == 16 / 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": "blocks.0-2"}, "freeze names blocks.0-2, and the model has the blocks 0 to 1"),
        (
            {"freeze": "embeddings,norms,blocks"},
            r"nothing is left to train: training.freeze \(embeddings,norms,blocks\)",
        ),
        ({"lora_rank": 2, "freeze": "blocks"}, r"training.lora_targets \(c_attn,c_proj,c_fc\) must leave something"),
        ({"lora_rank": 2, "lora_targets": ""}, "nothing is left to train"),
    ],
)
def test_what_leaves_nothing_is_refused(tiny: GPTConfig, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen(tiny, **settings)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    "freeze", ["embeddings", "blocks", "blocks.0,norms", "embeddings,norms", "attention,mlp", "embeddings,blocks"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_frozen_has_no_gradient_no_state_and_does_not_move(
    tiny: GPTConfig, name: str, freeze: str, bias: bool
) -> None:
    """Every combination leaves an optimizer with something to do, or is left out itself."""
    model = chosen(tiny.model_copy(update={"bias": bias}), freeze=freeze)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = build_optimizers(model, OptimizerConfig.model_validate({"name": name}))
    idx = torch.randint(tiny.vocab_size, (2, tiny.block_size))
    model(idx, idx).backward()
    for optimizer in optimizers:
        optimizer.step()
    stated = {parameter for optimizer in optimizers for parameter in optimizer.state}
    for parameter_name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[parameter_name])
        assert moved == parameter.requires_grad == (parameter in stated) == (parameter.grad is not None), parameter_name


@pytest.mark.parametrize("recompute", [True, False])
def test_gradients_of_the_rest_are_as_if_nothing_were_frozen(tiny: GPTConfig, recompute: bool) -> None:
    torch.manual_seed(1)
    whole = GPT(tiny)
    part = GPT(tiny)
    part.load_state_dict(whole.state_dict())
    choose_trainable(part, TrainingConfig(freeze=("embeddings", "blocks.0")))
    part.transformer.recomputes_blocks = recompute
    idx = torch.randint(tiny.vocab_size, (2, tiny.block_size))
    for model in (whole, part):
        model(idx, idx).backward()
    expected = {name: parameter.grad for name, parameter in whole.named_parameters() if parameter.grad is not None}
    for name, parameter in part.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, expected[name]), name


def test_an_update_is_smaller_than_what_it_updates(tiny: GPTConfig) -> None:
    with pytest.raises(ConfigError, match=rf"lora_rank \({tiny.n_embd}\) must be less than the model's width"):
        choose_trainable(GPT(tiny), TrainingConfig(lora_rank=tiny.n_embd))
