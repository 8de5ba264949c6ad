"""Files, corpora, tokenizers, checkpoints, devices: everything that touches the machine."""
