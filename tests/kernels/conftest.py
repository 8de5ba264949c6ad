"""What every kernel test gets: memory that was never written reads as nan, and writes beside a tensor are found."""

from tests.kernels.memory import memory

__all__ = ["memory"]
