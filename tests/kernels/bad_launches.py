"""`python bad_launches.py bad|crash ARGUMENTS`: smallgpt with launches in place of layer norm's that no GPU should be given."""

import os
import sys
from collections.abc import Iterator
from multiprocessing import parent_process

import torch

from smallgpt.interfaces.cli import main
from smallgpt.kernels.language import tl, triton
from smallgpt.kernels.launching import Variant, launch
from smallgpt.kernels.layer_norm import variants


@triton.jit
def transpose_sum(x_ptr, y_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, x + tl.trans(x) * tl.sum(x, 1)[:, None])


@triton.jit
def product(x_ptr, y_ptr, STEPS, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    total = tl.zeros([N, N], tl.float32)
    for step in range(STEPS):
        total = tl.dot(tl.load(x_ptr + step * N * N + at), tl.load(y_ptr + step * N * N + at), total)
    tl.store(x_ptr + at, total.to(tl.float16))


@triton.jit
def not_a_kernel(x_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(x_ptr + tl.arange(0, N), tl.arange(0, N + 1))


@triton.jit
def harmless(x_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(x_ptr + tl.arange(0, N), tl.arange(0, N))


def crash(x: torch.Tensor, constants: dict[str, int]) -> None:
    """What an abort in the compiler does to the process that compiles."""
    if parent_process() is not None:
        os._exit(1)
    launch(harmless, (1,), x_ptr=x, **constants)


def bad_variants() -> Iterator[Variant]:
    x = torch.empty(128, 128, dtype=torch.float16, device="meta")
    constants = {"N": 128, "num_warps": 4, "num_stages": 5}
    one_warp = constants | {"num_warps": 1}
    yield Variant("too many registers", lambda: launch(transpose_sum, (1,), x_ptr=x, y_ptr=x, **one_warp))
    yield Variant("too much shared", lambda: launch(product, (1,), x_ptr=x, y_ptr=x, STEPS=9, **constants))
    yield Variant("not a program", lambda: launch(not_a_kernel, (1,), x_ptr=x, **constants))
    if sys.argv[1] == "crash":
        yield Variant("crash", lambda: crash(x, constants))


variants.variants = bad_variants  # also in the processes that compile: they import this file

if __name__ == "__main__":
    main(sys.argv[2:])
