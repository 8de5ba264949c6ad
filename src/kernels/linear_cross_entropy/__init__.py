"""Output head and loss in one: `reference` is the definition, `native` works in chunks of torch, `fused` is ours in Triton.

README.md derives them.
"""
