"""torch.compile block by block: the blocks are alike, so all run what is compiled for the first two; and whether it pays.

Only training runs compiled. An evaluation or a sample would have blocks compiled for its own shapes, modes and caches, and
Dynamo keeps but a few forms of a function: after them, training itself would run as it is.
"""

import time
from collections.abc import Callable
from math import inf
from statistics import median
from typing import TypeVar

import torch

from smallgpt.application.ports import Batches
from smallgpt.application.step import Stepper
from smallgpt.domain.gpt import GPT

STEPS = 5
Result = TypeVar("Result")


def compile_blocks(model: GPT) -> None:
    """From now on every block runs compiled, for fixed shapes. Embedding, last norm and loss stay as they are."""
    for block in model.transformer.h:
        block.compile(dynamic=False)


def uncompile_blocks(model: GPT) -> None:
    """Undo compile_blocks."""
    for block in model.transformer.h:
        block._compiled_call_impl = None  # where nn.Module.compile puts it; there is no other way back


def as_it_is(look: Callable[..., Result]) -> Callable[..., Result]:
    """The same function, during which nothing runs compiled and nothing is compiled."""

    def uncompiled(*arguments: object) -> Result:
        with torch.compiler.set_stance("force_eager"):
            return look(*arguments)

    return uncompiled


def keep_if_faster(stepper: Stepper, batches: Batches) -> tuple[bool, str]:
    """Time some steps of a model as it is and compiled, and leave the faster one: (compiled?, how that was found).

    The weights are put back; the stepper's optimizer is not, so the run itself takes another.
    """
    weights = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    eager = _seconds(stepper, batches)
    compile_blocks(stepper.model)
    try:
        start = time.perf_counter()
        stepper(0, batches)
        compiling = time.perf_counter() - start
        compiled = _seconds(stepper, batches)
        words = f"a step takes {compiled:.3g} s compiled and {eager:.3g} s as it is; compiling took {compiling:.0f} s"
    except Exception as error:  # whatever the compiler's stack raises means the same here: it does not work
        compiled, words = inf, f"compiling failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    stepper.model.load_state_dict(weights)
    faster = stepper.processes.of_first(compiled < eager)
    if not faster:
        uncompile_blocks(stepper.model)
    return faster, words


def _seconds(stepper: Stepper, batches: Batches) -> float:
    """The median of some steps after one that allocates."""
    times = []
    for step in range(STEPS + 1):
        start = time.perf_counter()
        stepper(step, batches)
        times.append(time.perf_counter() - start)
    return median(times[1:])
