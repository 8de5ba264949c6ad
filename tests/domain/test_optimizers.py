"""Who decays, who is orthogonalised, and a state that knows names instead of places."""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from smallgpt.domain.config import GPTConfig, OptimizerConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.muon import Muon
from smallgpt.domain.optimizers import build_optimizers, load_state_tensors, parameter_groups, state_tensors

HIDDEN = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    return GPT(tiny)


def names(model: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is q for q in parameters)}


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_every_parameter_is_in_exactly_one_group(model: GPT) -> None:
    groups = parameter_groups(model)
    listed = [name for group in groups.values() for name, _ in group]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert {name for name, _ in groups["hidden"]} == {f"transformer.h.{i}.{m}" for i in range(2) for m in HIDDEN}
    assert {name for name, _ in groups["embedding"]} == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert all(p.dim() == 1 for _, p in groups["vector"])


def test_a_frozen_parameter_is_left_alone(model: GPT) -> None:
    model.transformer.wpe.weight.requires_grad_(False)
    assert [name for name, _ in parameter_groups(model)["embedding"]] == ["transformer.wte.weight"]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_vectors_do_not(model: GPT, name: str) -> None:
    config = OptimizerConfig.model_validate({"name": name, "weight_decay": 0.3})
    optimizers = build_optimizers(model, config)
    decay = {p: group["weight_decay"] for o in optimizers for group in o.param_groups for p in group["params"]}
    assert {n for n, p in model.named_parameters() if decay[p] == 0.3} == {
        n for n, p in model.named_parameters() if p.dim() == 2
    }
    assert {n for n, p in model.named_parameters() if decay[p] == 0} == {
        n for n, p in model.named_parameters() if p.dim() == 1
    }


def test_muon_takes_the_hidden_matrices_and_nothing_else(model: GPT) -> None:
    adamw, muon = build_optimizers(model, OptimizerConfig(name="muon", muon_learning_rate=0.03, learning_rate=2e-3))
    assert isinstance(adamw, AdamW)
    assert isinstance(muon, Muon)
    taken = names(model, [p for group in muon.param_groups for p in group["params"]])
    assert taken == {f"transformer.h.{i}.{m}" for i in range(2) for m in HIDDEN}
    assert {group["lr"] for group in muon.param_groups} == {0.03}
    assert {group["lr"] for group in adamw.param_groups} == {2e-3}


def test_muon_moves_a_matrix_by_a_nearly_orthogonal_step(model: GPT) -> None:
    _, muon = build_optimizers(model, OptimizerConfig(name="muon", muon_learning_rate=1.0, weight_decay=0.0))
    weight = model.transformer.h[0].get_submodule("attn.c_proj").get_parameter("weight")
    before = weight.detach().clone()
    give_gradients(model, 0)
    muon.step()
    singular = torch.linalg.svdvals(before - weight.detach())
    assert singular.max() < 1.9
    assert singular.sort().values[1:].min() > 0.18, "one of the 32 is a thousandth of the largest"


def test_adamw_is_its_formula(model: GPT) -> None:
    config = OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.2)
    (adamw,) = build_optimizers(model, config)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t in (1, 2, 3):
        give_gradients(model, t)
        for name, p in model.named_parameters():
            assert p.grad is not None
            g = p.grad.double()
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g * g
            step = (m[name] / (1 - 0.8**t)) / ((v[name] / (1 - 0.9**t)).sqrt() + 1e-3)
            expected[name] = expected[name] * (1 - 0.01 * (0.2 if p.dim() == 2 else 0.0)) - 0.01 * step
        adamw.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_does_not_depend_on_the_order_of_parameters(tiny: GPTConfig, kind: str) -> None:
    config = OptimizerConfig.model_validate({"name": kind})
    first = GPT(tiny)
    optimizers = build_optimizers(first, config)
    _steps(first, optimizers, [1, 2])
    saved = {name: tensor.clone() for name, tensor in state_tensors(first, optimizers).items()}
    weights = {name: tensor.clone() for name, tensor in first.state_dict().items()}

    second = GPT(tiny)
    second.load_state_dict(weights)
    others = build_optimizers(second, config)
    for optimizer in others:
        for group in optimizer.param_groups:
            group["params"].reverse()
    shuffled = dict(sorted(saved.items(), key=lambda item: item[0][::-1]))
    load_state_tensors(second, others, shuffled)

    assert set(state_tensors(second, others)) == set(saved)
    _steps(first, optimizers, [3])
    _steps(second, others, [3])
    for (name, p), (_, q) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def _steps(model: GPT, optimizers: list[Optimizer], seeds: list[int]) -> None:
    for seed in seeds:
        give_gradients(model, seed)
        for optimizer in optimizers:
            optimizer.step()


def test_state_is_named_after_its_parameter_and_loaded_as_a_copy(model: GPT) -> None:
    optimizers = build_optimizers(model, OptimizerConfig(name="muon"))
    assert state_tensors(model, optimizers) == {}
    _steps(model, optimizers, [1])
    tensors = state_tensors(model, optimizers)
    assert "transformer.wte.weight/exp_avg" in tensors
    assert "transformer.h.0.mlp.c_fc.weight/momentum_buffer" in tensors
    assert not any(name.startswith("lm_head") for name in tensors), "the tied head has no state of its own"
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in tensors.items()}
    other = GPT(model.config)
    others = build_optimizers(other, OptimizerConfig(name="muon"))
    load_state_tensors(other, others, tensors)
    _steps(other, others, [2])
    assert all(torch.equal(tensors[name], before[name]) for name in before), "stepping one must not move the other"


def test_the_initial_gradient_scale_does_not_matter_to_adamw(model: GPT) -> None:
    """Why the seed's fault hid: AdamW forgives any scale of gradients, until they are as small as eps."""
    (adamw,) = build_optimizers(model, OptimizerConfig(weight_decay=0.0, learning_rate=1e-3))
    before = model.transformer.wte.weight.detach().clone()
    give_gradients(model, 1)
    for p in model.parameters():
        assert p.grad is not None
        p.grad *= 1e-9
    adamw.step()
    moved = (model.transformer.wte.weight.detach() - before).norm() / sqrt(before.numel())
    assert moved < 0.3e-3, "a step of 1e-3 was asked for; gradients near 1e-9 get a fraction of it"
