"""Hooks: what they show is what the model computes, and what they change changes it."""

from math import sqrt

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.hooks import HookPoint, hook_names, logit_lens, run_with_cache, run_with_hooks
from smallgpt.infrastructure.plain_gpt import PlainGPT
from tests.domain.test_gpt import shaken


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    return shaken(tiny).double()


@pytest.fixture
def idx(tiny: GPTConfig) -> Tensor:
    return torch.randint(tiny.vocab_size, (3, 7))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("n_tokens", [1, 12])
def test_the_logits_are_the_models_own(tiny: GPTConfig, bias: bool, activation: str, n_tokens: int) -> None:
    config = GPTConfig(**{**tiny.model_dump(), "bias": bias, "activation": activation, "dropout": 0.3})
    model, idx = shaken(config), torch.randint(config.vocab_size, (2, n_tokens))
    torch.testing.assert_close(run_with_hooks(model, idx), model(idx), rtol=0, atol=1e-5)
    model = model.double()
    expected = model(idx)
    model.train()  # dropout stays out of it
    torch.testing.assert_close(run_with_hooks(model, idx), expected, rtol=0, atol=1e-12)


def test_every_name_is_offered_once_in_order_with_its_shape(model: GPT, idx: Tensor) -> None:
    met: list[str] = []
    run_with_hooks(model, idx, [(lambda name: True, lambda value, hook: met.append(hook.name))])
    assert met == hook_names(model.config)
    cache = run_with_cache(model, idx)[1]
    B, T, C, H = 3, 7, 32, 2
    shapes: dict[str, tuple[int, ...]]
    shapes = {"hook_q": (B, T, H, C // H), "hook_k": (B, T, H, C // H), "hook_v": (B, T, H, C // H)}
    shapes |= {"hook_z": (B, T, H, C // H), "hook_attn_scores": (B, H, T, T), "hook_pattern": (B, H, T, T)}
    shapes |= {"hook_scale": (B, T, 1), "hook_pre": (B, T, 4 * C), "hook_post": (B, T, 4 * C)}
    expected = {name: shapes.get(name.rpartition(".")[2], (B, T, C)) for name in hook_names(model.config)}
    assert {name: tuple(value.shape) for name, value in cache.items()} == expected


def test_what_is_cached_is_what_modules_of_another_implementation_compute(model: GPT, idx: Tensor) -> None:
    """An independent GPT's modules, watched by torch's own hooks."""
    plain = PlainGPT(model.config).double().eval()
    renamed = {"ln_1": "ln1", "ln_2": "ln2", "attn_proj": "attn.c_proj", "mlp_proj": "mlp.c_proj"}
    renamed |= {"c_attn": "attn.c_attn", "c_fc": "mlp.c_fc"}
    ours = model.state_dict()
    for name, parameter in plain.named_parameters():
        parts = [renamed.get(part, part) for part in name.split(".")]
        parameter.data = ours[f"transformer.{'.'.join(parts)}"]
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        plain.get_submodule(name).register_forward_hook(
            lambda _, args, out: seen.update({f"{name}.in": args[0], name: out})
        )

    for name in (
        "wte",
        "ln_f",
        *(f"h.1.{part}" for part in ("ln_1", "ln_2", "c_attn", "attn_proj", "c_fc", "mlp_proj")),
    ):
        watch(name)
    logits = plain(idx)
    found, cache = run_with_cache(model, idx)
    q, k, v = seen["h.1.c_attn"].view(3, 7, 3, 2, 16).unbind(2)
    scores = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)) / sqrt(16)
    pattern = scores.masked_fill(torch.ones(7, 7).tril() == 0, -torch.inf).softmax(-1)
    expected = {
        "hook_embed": seen["wte"],
        "hook_pos_embed": plain.wpe.weight[:7].expand(3, 7, 32),
        "blocks.1.hook_resid_pre": seen["h.1.ln_1.in"],
        "blocks.1.ln1.hook_scale": (seen["h.1.ln_1.in"].var(-1, correction=0, keepdim=True) + 1e-5).sqrt(),
        "blocks.1.ln1.hook_normalized": F.layer_norm(seen["h.1.ln_1.in"], (32,)),
        "blocks.1.attn.hook_q": q,
        "blocks.1.attn.hook_k": k,
        "blocks.1.attn.hook_v": v,
        "blocks.1.attn.hook_pattern": pattern,
        "blocks.1.attn.hook_z": seen["h.1.attn_proj.in"].view(3, 7, 2, 16),
        "blocks.1.hook_attn_out": seen["h.1.attn_proj"],
        "blocks.1.hook_resid_mid": seen["h.1.ln_2.in"],
        "blocks.1.ln2.hook_normalized": F.layer_norm(seen["h.1.ln_2.in"], (32,)),
        "blocks.1.mlp.hook_pre": seen["h.1.c_fc"],
        "blocks.1.mlp.hook_post": seen["h.1.mlp_proj.in"],
        "blocks.1.hook_mlp_out": seen["h.1.mlp_proj"],
        "blocks.1.hook_resid_post": seen["ln_f.in"],
        "ln_final.hook_normalized": F.layer_norm(seen["ln_f.in"], (32,)),
    }
    for name, value in expected.items():
        assert (cache[name] - value).abs().max() < 1e-12, name
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-12)
    assert (cache["blocks.1.attn.hook_attn_scores"] == -torch.inf).sum() == 3 * 2 * 21  # the future, and nothing else


def test_only_the_names_that_are_wanted_are_kept(model: GPT, idx: Tensor) -> None:
    names = ["hook_embed", "blocks.1.attn.hook_z"]
    assert list(run_with_cache(model, idx, names)[1]) == names
    assert list(run_with_cache(model, idx, "hook_embed")[1]) == ["hook_embed"]
    patterns = run_with_cache(model, idx, lambda name: name.endswith("hook_pattern"))[1]
    assert list(patterns) == ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]


def test_without_its_head_a_model_is_one_whose_weights_for_that_head_are_zero(model: GPT, idx: Tensor) -> None:
    def ablate(z: Tensor, hook: HookPoint) -> Tensor:
        assert hook.layer() == 1
        z = z.clone()
        z[:, :, 0] = 0
        return z

    found = run_with_hooks(model, idx, [("blocks.1.attn.hook_z", ablate)])
    with torch.no_grad():
        model.get_parameter("transformer.h.1.attn.c_proj.weight")[:, :16] = 0
    torch.testing.assert_close(found, model(idx), rtol=0, atol=1e-12)


def test_a_hook_may_change_a_tensor_in_its_place(model: GPT, idx: Tensor) -> None:
    def silence(value: Tensor, hook: HookPoint) -> None:
        value[:, :, 0] = 0

    def silenced(value: Tensor, hook: HookPoint) -> Tensor:
        return value * torch.tensor([0.0, 1.0])[:, None]

    for name in "qkv":
        point = f"blocks.0.attn.hook_{name}"
        expected = run_with_hooks(model, idx, [(point, silenced)])
        torch.testing.assert_close(run_with_hooks(model, idx, [(point, silence)]), expected, rtol=0, atol=1e-12)


def test_patching_the_whole_stream_gives_the_other_texts_answer(model: GPT, idx: Tensor) -> None:
    other = (idx + 1) % 61
    expected, cache = run_with_cache(model, other)
    name = "blocks.1.hook_resid_pre"
    found, patched = run_with_cache(model, idx, fwd_hooks=[(name, lambda value, hook: cache[name])])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert patched[name] is cache[name], "the cache shows what the hook put in"


def test_hooks_of_one_name_see_what_the_one_before_made(model: GPT, idx: Tensor) -> None:
    seen: list[Tensor] = []
    hooks = [
        ("hook_embed", lambda value, hook: value * 0),
        ("hook_embed", lambda value, hook: seen.append(value)),
    ]
    run_with_hooks(model, idx, hooks)
    assert not seen[0].any()


def test_gradients_reach_what_is_cached(model: GPT, idx: Tensor) -> None:
    """Gradient times input: its sum is the slope of the logit as the embeddings are scaled, here by finite differences."""
    logits, cache = run_with_cache(model, idx, ["hook_embed"])
    cache["hook_embed"].retain_grad()
    logits[:, -1, 5].sum().backward()  # type: ignore[no-untyped-call]
    gradient = cache["hook_embed"].grad
    assert gradient is not None
    attribution = (gradient * cache["hook_embed"]).sum(-1)  # (B, T): what each token did for the logit
    h = 1e-5

    def scaled(by: float) -> Tensor:
        return run_with_hooks(model, idx, [("hook_embed", lambda value, hook: value * by)])[:, -1, 5].sum()

    slope = (scaled(1 + h) - scaled(1 - h)) / (2 * h)
    torch.testing.assert_close(attribution.sum(), slope, rtol=0, atol=1e-6)


def test_parameters_get_the_gradients_of_the_models_own_pass(model: GPT, idx: Tensor) -> None:
    losses = (run_with_hooks(model, idx).square().mean(), model(idx).square().mean())
    ours, expected = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_lens_on_the_last_stream_gives_the_logits(model: GPT, idx: Tensor) -> None:
    logits, cache = run_with_cache(model, idx)
    torch.testing.assert_close(logit_lens(model, cache["blocks.1.hook_resid_post"]), logits, rtol=0, atol=1e-12)
    one = logit_lens(model, cache["hook_embed"][0, 0])
    assert one.shape == (61,)


def test_mistakes_are_errors_that_help(model: GPT, idx: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"'blocks\.0\.hook_z'; near it: blocks\.0\.attn\.hook_z"):
        run_with_cache(model, idx, ["blocks.0.hook_z"])
    with pytest.raises(ConfigError, match=r"hook_names\(model\.config\) lists them"):
        run_with_hooks(model, idx, [("?", lambda value, hook: None)])
    with pytest.raises(ConfigError, match=r"the hook at hook_embed gave \(3,\) for \(3, 7, 32\)"):
        run_with_hooks(model, idx, [("hook_embed", lambda value, hook: value[:, 0, 0])])
    with pytest.raises(ValueError, match="13 tokens do not fit the model's context of 12"):
        run_with_hooks(model, torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="hook_embed belongs to no block"):
        HookPoint("hook_embed").layer()
