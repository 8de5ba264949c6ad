"""Corpora: where the documents that a model learns from come from."""
