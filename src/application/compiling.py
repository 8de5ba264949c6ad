"""torch.compile block by block: the blocks are alike, so one is compiled and all run it; and a probe of whether it pays."""

import time
from statistics import median

from smallgpt.application.ports import Batches
from smallgpt.application.step import Stepper
from smallgpt.domain.gpt import GPT

STEPS = 5


def compile_blocks(model: GPT) -> None:
    """From now on every block runs compiled, for fixed shapes. Embedding, last norm and loss stay as they are."""
    for block in model.transformer.h:
        block.compile(dynamic=False)


def uncompile_blocks(model: GPT) -> None:
    """Undo compile_blocks."""
    for block in model.transformer.h:
        block._compiled_call_impl = None  # where nn.Module.compile puts it; there is no other way back


def keep_if_faster(stepper: Stepper, batches: Batches) -> tuple[bool, str]:
    """Time some steps of a model as it is and compiled, and leave the faster one: (compiled?, how that was found).

    The weights are put back; the stepper's optimizer is not, so the run itself takes another.
    """
    weights = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    eager = _seconds(stepper, batches)
    start = time.perf_counter()
    compile_blocks(stepper.model)
    stepper(0, batches)
    compiling = time.perf_counter() - start
    compiled = _seconds(stepper, batches)
    stepper.model.load_state_dict(weights)
    words = f"a step takes {compiled:.3g} s compiled and {eager:.3g} s as it is; compiling took {compiling:.0f} s"
    if compiled >= eager:
        uncompile_blocks(stepper.model)
    return compiled < eager, words


def _seconds(stepper: Stepper, batches: Batches) -> float:
    """The median of some steps after one that allocates."""
    times = []
    for step in range(STEPS + 1):
        start = time.perf_counter()
        stepper(step, batches)
        times.append(time.perf_counter() - start)
    return median(times[1:])
