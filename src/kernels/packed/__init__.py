"""A model that only generates: packed for few rows, and in fewer bits where asked."""

from smallgpt.kernels.packed.packing import Weights, check_weights, matrix_bytes, pack

__all__ = ["Weights", "check_weights", "matrix_bytes", "pack"]
