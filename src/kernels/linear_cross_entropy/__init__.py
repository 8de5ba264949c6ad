"""Output head and loss in one: `reference` is the definition, `native` works in chunks of torch; README.md derives both."""
