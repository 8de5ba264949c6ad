"""Causal attention: `reference` is the definition, `native` torch's best; README.md has the derivation."""
