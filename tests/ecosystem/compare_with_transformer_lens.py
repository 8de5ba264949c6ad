"""Our hooks beside TransformerLens's HookedTransformer, on the same weights: names, shapes, values, and a hook that changes.

No test runs it, because that library wants an environment of its own, in which smallgpt is installed too:

    pip install -e . transformer_lens==3.9.0
    python tests/ecosystem/compare_with_transformer_lens.py [RUN]

Exits with 1 where they differ. Without RUN, a random model of two blocks is compared, with each of the two GELUs.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

import smallgpt
from smallgpt import GPT, GPTConfig
from smallgpt.domain.config import Activation
from smallgpt.domain.hooks import HookPoint, run_with_cache, run_with_hooks

UNEMBED = ("unembed.hook_in", "unembed.hook_out")  # ln_final's output and the logits, which later versions name too
TOLERANCE = 1e-4  # float32, absolute, for values of up to some tens


def main() -> int:
    """Compare the model named on the command line, or made ones -> the exit code."""
    torch.manual_seed(0)
    models = [smallgpt.load(sys.argv[1])] if len(sys.argv) > 1 else [_made("gelu"), _made("gelu_tanh")]
    equal = [_compare(model) for model in models]
    return 0 if all(equal) else 1


def _made(activation: Activation) -> GPT:
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=24, vocab_size=61, activation=activation)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def _compare(model: GPT) -> bool:
    config, theirs = model.config, _hooked(model)
    idx = torch.randint(config.vocab_size, (2, config.block_size))
    logits, cache = run_with_cache(model, idx)
    expected, expected_cache = theirs.run_with_cache(idx, return_type="logits")
    expected_names = [name for name in expected_cache if name not in UNEMBED]
    differences = {"logits": _apart(logits, expected)}
    differences |= {name: _apart(cache[name], expected_cache[name]) for name in expected_names}
    ablation = [("blocks.0.attn.hook_z", _without_head_1)]
    patched, expected = run_with_hooks(model, idx, ablation), theirs.run_with_hooks(idx, fwd_hooks=ablation)
    differences["logits without head 0.1"] = _apart(patched, expected)
    same_names = list(cache) == expected_names
    worst = max(differences, key=lambda name: differences[name])
    print(f"{len(cache)} intermediates, named and ordered {'the same' if same_names else 'DIFFERENTLY'}")
    print(f"at most {differences[worst]:.2g} apart ({worst}); logits {differences['logits']:.2g}")
    return same_names and differences[worst] < TOLERANCE


def _without_head_1(z: Tensor, hook: HookPoint) -> Tensor:
    z = z.clone()
    z[:, :, 1] = 0
    return z


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinite for another shape, or where only one is infinite."""
    if ours.shape != theirs.shape or not torch.equal(ours.isinf(), theirs.isinf()):
        return float("inf")
    return float((ours - theirs).masked_fill(ours.isinf(), 0).abs().max())


def _hooked(model: GPT) -> Any:
    """A HookedTransformer with the model's weights."""
    config = model.config
    hooked = HookedTransformer(
        HookedTransformerConfig(
            n_layers=config.n_layer,
            d_model=config.n_embd,
            n_ctx=config.block_size,
            n_heads=config.n_head,
            d_head=config.head_size,
            d_vocab=config.vocab_size,
            act_fn="gelu" if config.activation == "gelu" else "gelu_new",
            normalization_type="LN",
            default_prepend_bos=False,
        )
    )
    ours, weights = (
        model.state_dict(),
        {"embed.W_E": model.transformer.wte.weight, "pos_embed.W_pos": model.transformer.wpe.weight},
    )
    weights |= {"unembed.W_U": model.lm_head.weight.t(), "unembed.b_U": torch.zeros(config.vocab_size)}
    weights |= {"ln_final.w": ours["transformer.ln_f.weight"], "ln_final.b": ours["transformer.ln_f.bias"]}
    heads = (config.n_head, config.head_size)
    for layer in range(config.n_layer):
        block, to = f"transformer.h.{layer}", f"blocks.{layer}"
        for norm in ("ln1", "ln2"):
            weights |= {
                f"{to}.{norm}.w": ours[f"{block}.{norm}.weight"],
                f"{to}.{norm}.b": ours[f"{block}.{norm}.bias"],
            }
        w_qkv = ours[f"{block}.attn.c_attn.weight"].view(3, *heads, config.n_embd).transpose(2, 3)  # (3, H, C, D)
        b_qkv = ours[f"{block}.attn.c_attn.bias"].view(3, *heads)
        for number, name in enumerate("QKV"):
            weights |= {f"{to}.attn.W_{name}": w_qkv[number], f"{to}.attn.b_{name}": b_qkv[number]}
        weights[f"{to}.attn.W_O"] = ours[f"{block}.attn.c_proj.weight"].t().reshape(*heads, config.n_embd)
        weights[f"{to}.attn.b_O"] = ours[f"{block}.attn.c_proj.bias"]
        for name, part in (("in", "c_fc"), ("out", "c_proj")):
            weights[f"{to}.mlp.W_{name}"] = ours[f"{block}.mlp.{part}.weight"].t()
            weights[f"{to}.mlp.b_{name}"] = ours[f"{block}.mlp.{part}.bias"]
    masks = {name: tensor for name, tensor in hooked.state_dict().items() if name.endswith((".mask", ".IGNORE"))}
    hooked.load_state_dict(weights | masks)
    return hooked.eval()


if __name__ == "__main__":
    sys.exit(main())
