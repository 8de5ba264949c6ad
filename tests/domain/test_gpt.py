"""The model: the seed's names, numbers and inference example, the formula, causality and generation."""

import inspect
import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt import GPT, GPTConfig

EXAMPLE: dict[str, Any] = {
    "block_size": 128,
    "vocab_size": 50304,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 256,
    "dropout": 0.1,
    "bias": True,
}


def shaken(config: GPTConfig) -> GPT:
    """An eval-mode model in which nothing is zero, so that a forgotten bias or a wrong sign shows."""
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    return shaken(tiny)


def tokens(config: GPTConfig, batch: int, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (batch, length))


@pytest.mark.parametrize("bias", [True, False])
def test_the_parameters_have_the_seeds_names_and_shapes(bias: bool) -> None:
    config = GPTConfig(**{**EXAMPLE, "vocab_size": 99, "n_layer": 2, "n_embd": 8, "bias": bias})
    expected: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (99, 8), "transformer.wpe.weight": (128, 8)}
    expected["lm_head.weight"] = (99, 8)
    for layer in range(2):
        matrices = {"attn.c_attn": (24, 8), "attn.c_proj": (8, 8), "mlp.c_fc": (32, 8), "mlp.c_proj": (8, 32)}
        for part, shape in {**matrices, "ln1": (8,), "ln2": (8,)}.items():
            expected[f"transformer.h.{layer}.{part}.weight"] = shape
            expected |= {f"transformer.h.{layer}.{part}.bias": shape[:1]} if bias else {}
    expected["transformer.ln_f.weight"] = (8,)
    expected |= {"transformer.ln_f.bias": (8,)} if bias else {}
    assert {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()} == expected


def test_the_example_configuration_is_the_default_and_has_16_million_parameters() -> None:
    assert GPTConfig().model_dump() == {**EXAMPLE, "activation": "gelu"}
    model = GPT(GPTConfig(**EXAMPLE))
    assert model.n_parameters() == 16_037_376  # the seed's "16.04 M", position table not counted
    assert model.n_parameters(positions=True) == 16_037_376 + 128 * 256


def test_the_head_is_tied_to_the_embedding(model: GPT) -> None:
    assert model.lm_head.weight is model.transformer.wte.weight
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert model.lm_head.weight is model.transformer.wte.weight


def test_initialisation_is_the_seeds() -> None:
    config = GPTConfig(block_size=64, vocab_size=500, n_layer=3, n_head=4, n_embd=64, dropout=0.0)
    for name, parameter in GPT(config).named_parameters():
        if parameter.dim() == 2:
            wanted = 0.02 / sqrt(2 * 3) if name.endswith("c_proj.weight") else 0.02
            n = parameter.numel()
            assert abs(parameter.std().item() - wanted) < 5 * wanted / sqrt(2 * n), name
            assert abs(parameter.mean().item()) < 5 * wanted / sqrt(n), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)), name


def formula(config: GPTConfig, weights: dict[str, Tensor], idx: Tensor) -> Tensor:
    """The whole model in float64, written without any of its code."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(()))

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))

    T = idx.size(1)
    H, D = config.n_head, config.n_embd // config.n_head
    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:T]
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        q, k, v = linear(norm(x, f"{block}.ln1"), f"{block}.attn.c_attn").chunk(3, -1)
        heads = []
        for h in range(H):
            part = slice(h * D, (h + 1) * D)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / sqrt(D)
            scores = scores + torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)
            heads.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(heads, -1), f"{block}.attn.c_proj")
        hidden = linear(norm(x, f"{block}.ln2"), f"{block}.mlp.c_fc")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / sqrt(2)))  # the exact GELU
        x = x + linear(hidden, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1, 5, 12])
def test_the_logits_are_the_formulas(tiny: GPTConfig, bias: bool, length: int) -> None:
    config = tiny.model_copy(update={"bias": bias})
    model, idx = shaken(config), tokens(config, 3, length)
    logits = model(idx)
    assert logits.shape == (3, length, 61)
    torch.testing.assert_close(logits.double(), formula(config, model.state_dict(), idx), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01)])
@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_targets_turn_the_logits_into_their_mean_loss(
    model: GPT, smoothing: float, z_loss: float, ignore_index: int
) -> None:
    idx, targets = tokens(model.config, 2, 12), tokens(model.config, 2, 12)
    targets[0, :5] = ignore_index
    expected = F.cross_entropy(
        model(idx).flatten(0, 1), targets.flatten(), label_smoothing=smoothing, ignore_index=ignore_index
    )
    lse = model(idx).logsumexp(-1)[targets != ignore_index]
    expected = expected + z_loss * lse.square().mean()
    for call in (model, model.loss):
        loss = call(idx, targets, label_smoothing=smoothing, ignore_index=ignore_index, z_loss=z_loss)
        assert loss.shape == ()
        torch.testing.assert_close(loss, expected)


def test_a_token_changes_no_logits_before_it(model: GPT) -> None:
    idx = tokens(model.config, 2, 12)
    before = model(idx)
    for t in range(12):
        changed = idx.clone()
        changed[:, t] = (changed[:, t] + 1) % 61
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t]), f"token {t} reaches back"
        assert not torch.isclose(after[:, t:], before[:, t:]).all(-1).any(), f"token {t} does not reach its future"


def test_dropout_acts_in_training_only(tiny: GPTConfig) -> None:
    model, idx = shaken(tiny.model_copy(update={"dropout": 0.3})), tokens(tiny, 2, 12)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))
    without = shaken(tiny).train()
    assert torch.equal(without(idx), without(idx))


def test_a_context_longer_than_the_block_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match=r"13 tokens .* 12"):
        model(tokens(model.config, 1, 13))


def test_generate_has_the_seeds_signature() -> None:
    *seeds, own = inspect.signature(GPT.generate).parameters.values()
    assert [each.name for each in seeds] == ["self", "idx", "max_new_tokens", "temperature", "top_k"]
    assert [each.default for each in seeds[3:]] == [1.0, None]
    assert (own.name, own.kind, own.default) == ("n_tokens", own.KEYWORD_ONLY, None)


def test_the_seeds_inference_example_runs(tmp_path: Path) -> None:
    small = {**EXAMPLE, "vocab_size": 300, "n_embd": 32}
    (tmp_path / "config.json").write_text(json.dumps(small))
    trained = GPT(GPTConfig(**small))
    torch.save(trained.state_dict(), tmp_path / "small_gpt_weights.pt")

    with (tmp_path / "config.json").open() as f:
        config = GPTConfig(**json.load(f))
    model = GPT(config)
    model.load_state_dict(torch.load(tmp_path / "small_gpt_weights.pt", map_location="cpu", weights_only=True))
    model.eval()
    context = torch.tensor([7, 4, 299, 0]).unsqueeze(0)
    out = model.generate(context, max_new_tokens=100, temperature=0.8, top_k=50)

    assert out.shape == (1, 104)
    assert out.dtype == torch.int64
    assert torch.equal(out[:, :4], context)
    assert int(out.min()) >= 0
    assert int(out.max()) < 300


def plain_generate(model: GPT, idx: Tensor, n: int, temperature: float, top_k: int | None) -> Tensor:
    """nanoGPT's way: crop, run the whole window, sample; no cache."""
    for _ in range(n):
        with torch.no_grad():
            logits = model(idx[:, -model.config.block_size :])[:, -1]
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            logits = logits / temperature
            if top_k is not None:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
            new = torch.multinomial(logits.softmax(-1), 1)
        idx = torch.cat([idx, new], 1)
    return idx


@pytest.mark.parametrize("length", range(1, 16))
def test_greedy_tokens_are_those_of_recomputing_everything(model: GPT, length: int) -> None:
    """Prompts shorter than the block, as long and longer; 30 tokens lead far past the block of 12."""
    idx = tokens(model.config, 2, length)
    expected = plain_generate(model, idx, 30, 0, None)
    assert len(set(expected[0].tolist())) > 3, "a model that repeats itself proves little"
    assert torch.equal(model.generate(idx, 30, temperature=0), expected)


def test_sampled_tokens_are_those_of_recomputing_everything(model: GPT) -> None:
    idx = tokens(model.config, 2, 3)
    torch.manual_seed(5)
    expected = plain_generate(model, idx, 30, 0.9, 20)
    torch.manual_seed(5)
    assert torch.equal(model.generate(idx, 30, temperature=0.9, top_k=20), expected)
    torch.manual_seed(6)
    assert not torch.equal(model.generate(idx, 30, temperature=0.9, top_k=20), expected)


def test_ids_from_n_tokens_on_are_never_chosen(model: GPT) -> None:
    idx = tokens(model.config, 4, 3) % 5
    torch.manual_seed(5)
    assert model.generate(idx, 30, temperature=100.0).max() >= 5
    assert model.generate(idx, 30, temperature=100.0, n_tokens=5).max() < 5
    assert model.generate(idx, 30, temperature=0, n_tokens=5).max() < 5


def test_a_row_is_continued_alike_alone_and_in_a_batch(model: GPT) -> None:
    idx = tokens(model.config, 4, 5)
    together = model.generate(idx, 20, temperature=0)
    for row in range(4):
        assert torch.equal(model.generate(idx[row : row + 1], 20, temperature=0)[0], together[row])


def test_generating_leaves_the_model_trainable(model: GPT) -> None:
    model.generate(tokens(model.config, 1, 3), 5)
    loss = model(tokens(model.config, 1, 6), tokens(model.config, 1, 6))
    torch.autograd.backward(loss)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_model_in_bfloat16_generates(model: GPT) -> None:
    idx = tokens(model.config, 2, 5)
    assert model.bfloat16().generate(idx, 20, temperature=0).shape == (2, 25)
