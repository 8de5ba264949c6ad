"""How the kernels multiply fp32: as torch is told to."""

import torch


def product_precision(dtype: torch.dtype) -> str:
    """Triton's word for products of `dtype`: "tf32" for float32 where torch may round so on a GPU, else "ieee", exact."""
    if dtype != torch.float32:
        return "ieee"
    # Both of torch's switches show here. Its older one, set_float32_matmul_precision, cannot be read once the newer was set.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
