"""Layer norm by torch; the add stays a pass of its own, because torch has no fused form."""

from smallgpt.domain.ops import add_layer_norm, layer_norm

__all__ = ["add_layer_norm", "layer_norm"]
