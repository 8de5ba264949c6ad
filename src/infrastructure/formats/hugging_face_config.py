"""config.json of a Hugging Face GPT-2, read as a configuration of smallgpt's and written from one."""

import re
from pathlib import Path
from typing import Any

from smallgpt.domain.config import Activation, GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats import configs
from smallgpt.infrastructure.formats.plain import EPS

SIZES: dict[str, tuple[tuple[str, ...], int]] = {
    "block_size": (("n_positions", "n_ctx", "max_position_embeddings"), 1024),
    "vocab_size": (("vocab_size",), 50257),
    "n_layer": (("n_layer", "num_hidden_layers"), 12),
    "n_head": (("n_head", "num_attention_heads"), 12),
    "n_embd": (("n_embd", "hidden_size"), 768),
}
"""Our sizes by its names, and what transformers takes for one that is not there."""
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""The last three are one formula in three ways to compute it."""
FIXED: dict[str, object] = {
    "layer_norm_epsilon": EPS,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""What makes another model when it is another value; transformers takes these where they are not given."""
DROPOUTS = {"residual branches": "resid_pdrop", "embeddings": "embd_pdrop", "attention": "attn_pdrop"}


def read_config(values: dict[str, Any], where: object) -> tuple[GPTConfig, tuple[str, ...]]:
    """The model that its keys describe, biases included, and what could not be kept, a sentence each.

    Raises CheckpointError that names the key and value which make it a model that smallgpt does not compute.
    """
    _check_kind(values, where)
    for key, wanted in FIXED.items():
        if values.get(key, wanted) != wanted:
            raise CheckpointError(f"{where}: {key} is {values[key]}; smallgpt computes with {wanted} alone")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise CheckpointError(f"{where}: activation_function is {activation!r}; smallgpt has {', '.join(ACTIVATIONS)}")
    dropouts = {words: values.get(key, 0.1) for words, key in DROPOUTS.items()}
    for key in DROPOUTS.values():
        if type(values.get(key, 0.1)) not in (int, float):
            raise CheckpointError(f"{where}: {key} is {values[key]!r}, not a number")
    found: dict[str, Any] = {ours: _first(values, theirs, usual) for ours, (theirs, usual) in SIZES.items()}
    found |= {"dropout": dropouts["residual branches"], "bias": True, "activation": ACTIVATIONS[activation]}
    config = configs.model_config(found, where)
    inner = values.get("n_inner")
    if inner not in (None, 4 * config.n_embd):
        raise CheckpointError(
            f"{where}: n_inner is {inner}; smallgpt's MLPs are 4 times n_embd wide, {4 * config.n_embd}"
        )
    if len(set(dropouts.values())) == 1:
        return config, ()
    each = ", ".join(f"{value:g} for {words}" for words, value in dropouts.items())
    return config, (f"dropout was {each}; it is {config.dropout:g} for all of them now",)


def says_no_bias(values: dict[str, Any]) -> bool:
    """Was it exported from a model of smallgpt's without biases, which GPT-2 has?"""
    ours = values.get("smallgpt")
    return isinstance(ours, dict) and ours.get("bias") is False


def written_config(config: GPTConfig, end_of_text: int | None) -> dict[str, Any]:
    """config.json as transformers reads it, with what only smallgpt reads under `smallgpt`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,  # older tools read this one
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        **dict.fromkeys(DROPOUTS.values(), config.dropout),
        **FIXED,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
        "smallgpt": {"bias": config.bias},
    }


def looks_like_one(file: Path) -> bool:
    """Is a config.json one of transformers', whatever the model, and even where it is cut short?"""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    return b'"model_type"' in content or b'"architectures"' in content


def _check_kind(values: dict[str, Any], where: object) -> None:
    kind = values.get("model_type", "gpt2")
    if kind != "gpt2":
        raise CheckpointError(f"{where}: {_kind_words(values)}; of transformers' models smallgpt reads GPT-2 alone")
    quantized = values.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "?") if isinstance(quantized, dict) else quantized
        raise CheckpointError(
            f"{where}: its weights are quantized ({method}); give the model as it was before, in float32, float16 or bfloat16"
        )


def _kind_words(values: dict[str, Any]) -> str:
    """LlamaForCausalLM -> a Llama checkpoint (model_type 'llama')"""
    named = values.get("architectures") or [""]
    name = re.sub(r"(For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|Model)$", "", str(named[0]))
    kind = values["model_type"]
    return f"a {name or str(kind).capitalize()} checkpoint (model_type {kind!r})"


def _first(values: dict[str, Any], names: tuple[str, ...], usual: int) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), usual)
