"""How much work a model is."""

from smallgpt.domain.config import GPTConfig


def flops_per_token(config: GPTConfig, context: int | None = None) -> int:
    """Matrix-product FLOPs of one trained token, forward and backward: 6 a weight, plus 12·n_embd a visible key per layer.

    Attention's QKᵀ and PV take 4·C FLOPs a visible key forward and twice that backward; a causal token sees (T+1)/2 keys
    on average (arXiv 2204.02311, appendix B, counts T).
    """
    T = context or config.block_size
    C = config.n_embd
    weights = config.n_layer * 12 * C * C + config.vocab_size * C
    attention = config.n_layer * 12 * C * (T + 1) // 2
    return 6 * weights + attention


def prefill_flops(config: GPTConfig, tokens: int) -> int:
    """Matrix-product FLOPs from a prompt to the logits of its next token: 2 a weight and token, the head once."""
    C = config.n_embd
    attention = config.n_layer * 4 * C * tokens * (tokens + 1) // 2
    return 2 * config.n_layer * 12 * C * C * tokens + attention + 2 * config.vocab_size * C
