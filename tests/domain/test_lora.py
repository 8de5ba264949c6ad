"""Low-rank updates against the merged formula in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.lora import Adapter, add_lora, merged, split

ALL = ("c_attn", "c_proj", "c_fc")
RANK, ALPHA = 3, 5.0


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    return GPT(tiny)


def with_lora(model: GPT, targets: tuple[str, ...] = ALL) -> GPT:
    """With updates that are not zero."""
    add_lora(model, RANK, ALPHA, targets)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1)
    return model


def tokens(config: GPTConfig) -> tuple[Tensor, Tensor]:
    idx = torch.randint(config.vocab_size, (3, config.block_size + 1))
    return idx[:, :-1], idx[:, 1:]


def test_at_first_it_is_the_model_that_it_was(model: GPT) -> None:
    idx, _ = tokens(model.config)
    before = model(idx)
    add_lora(model, RANK, ALPHA, ALL)
    assert torch.equal(model(idx), before)


def test_the_names_of_weights_stay_and_every_target_gets_two_matrices(model: GPT) -> None:
    before = dict(model.named_parameters())
    add_lora(model, RANK, ALPHA, ("c_attn", "mlp.c_proj"))
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items()), "taken over, and not copied"
    C = model.config.n_embd
    added = {name: tuple(after[name].shape) for name in after if name not in before}
    assert added == {
        f"transformer.h.{block}.{name}": shape
        for block in range(2)
        for name, shape in {
            "attn.c_attn.lora_A": (RANK, C),
            "attn.c_attn.lora_B": (3 * C, RANK),
            "mlp.c_proj.lora_A": (RANK, 4 * C),
            "mlp.c_proj.lora_B": (C, RANK),
        }.items()
    }


def test_blocks_can_be_left_out(model: GPT) -> None:
    add_lora(model, RANK, ALPHA, ("c_attn",), leave=("blocks.0",))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "transformer.h.1.attn.c_attn.lora_A",
        "transformer.h.1.attn.c_attn.lora_B",
    ]


def test_merged_weights_compute_the_same_logits(model: GPT) -> None:
    with_lora(model)
    weights, updates = split(model.state_dict())
    plain = GPT(model.config)
    plain.load_state_dict(merged(weights, Adapter(updates, ALPHA)))
    idx, _ = tokens(model.config)
    torch.testing.assert_close(plain(idx), model(idx), rtol=1e-4, atol=1e-5)
    base = GPT(model.config)
    base.load_state_dict(weights)
    assert not torch.allclose(base(idx), model(idx), atol=1e-3), "and the updates do something"


def test_gradients_are_those_of_the_merged_formula(model: GPT) -> None:
    """By autograd through W + (α/r) B A in float64, in a model that knows nothing of LoRA."""
    with_lora(model)
    idx, targets = tokens(model.config)
    model(idx, targets).backward()

    weights, updates = split(model.state_dict())
    exact = {name: tensor.double() for name, tensor in weights.items()}
    leaves = {name: tensor.double().requires_grad_() for name, tensor in updates.items()}
    for name in [name.removesuffix(".lora_A") for name in leaves if name.endswith("lora_A")]:
        product = torch.einsum("or,ri->oi", leaves[f"{name}.lora_B"], leaves[f"{name}.lora_A"])
        exact[f"{name}.weight"] = exact[f"{name}.weight"] + ALPHA / RANK * product
    exact.pop("lm_head.weight")  # tied, and found by the embedding's name
    logits = functional_call(GPT(model.config).double(), exact, (idx,))
    loss = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in leaves:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad.double(), leaves[name].grad, rtol=1e-3, atol=1e-6)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("bias", [True, False])
def test_with_and_without_biases(tiny: GPTConfig, bias: bool) -> None:
    model = with_lora(GPT(tiny.model_copy(update={"bias": bias})))
    idx, targets = tokens(tiny)
    model(idx, targets).backward()
    assert any("bias" in name for name, _ in model.named_parameters()) == bias


def test_in_bfloat16_on_a_cpu(model: GPT) -> None:
    with_lora(model)
    idx, targets = tokens(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(idx, targets)
    loss.backward()
    torch.testing.assert_close(loss, model(idx, targets), rtol=0.02, atol=0.02)
    graded = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(graded) == 2 * 4 * model.config.n_layer
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in graded)
