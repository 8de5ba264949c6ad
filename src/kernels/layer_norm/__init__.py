"""(Residual add +) layer norm: `reference` is the definition, `native` torch's own; README.md has the derivation."""
