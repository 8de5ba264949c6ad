"""A step as one CUDA graph: the host asks for it once, not once a kernel, so small models are no longer bound by Python.

The first calls of each batch shape run as they are, on a side stream, and are steps like any other: they let compilers,
libraries and optimizers allocate what they need. Then one call is captured, and from there on replayed over the same memory.
torch's generators know of capture: seeding before a replay decides its dropout as it would an eager step's.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from smallgpt.domain.errors import HardwareError, is_out_of_memory

WARM_UP = 3  # eager steps of a shape; torch's notes on CUDA graphs ask for a few
FAILURE = "the training step could not be captured as a CUDA graph: {why}\nTrain with --training.cuda-graphs off."
Compute = Callable[..., Tensor]


class Captured:
    """One captured call: where its inputs are read from, and where its output appears."""

    def __init__(self, compute: Compute, inputs: tuple[Tensor, ...], stream: torch.cuda.Stream, pool: Any) -> None:
        self.inputs = tuple(x.clone() for x in inputs)
        self.graph = torch.cuda.CUDAGraph()
        # "thread_local": the thread that reads the next batch may allocate pinned memory meanwhile
        with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.output = compute(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Replay on new inputs. The output is overwritten by the next replay."""
        for kept, new in zip(self.inputs, inputs, strict=True):
            kept.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.output


class Graphs:
    """Graphs of a function of tensors on one GPU, one a combination of shapes."""

    def __init__(self, device: torch.device, failure: str = FAILURE) -> None:
        """`failure` is what the user is told when a capture fails, before the reason: {why}."""
        self.device, self.failure = device, failure
        self.captured: dict[tuple[torch.Size, ...], Captured] = {}
        self.calls: dict[tuple[torch.Size, ...], int] = {}
        self.pool: Any = None

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Where captures and the calls before them run."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def __call__(self, compute: Compute, *inputs: Tensor) -> Tensor:
        """compute(*inputs): eager at first, replayed later. Inputs may be pinned CPU tensors.

        Raises HardwareError when it cannot be captured: what a failed capture leaves behind is no state to go on from.
        """
        inputs = tuple(x.to(self.device, non_blocking=True) for x in inputs)
        key = tuple(x.shape for x in inputs)
        if key not in self.captured:
            self.calls[key] = self.calls.get(key, 0) + 1
            if self.calls[key] <= WARM_UP:
                return self._beside(compute, inputs)
            self._capture(key, compute, inputs)
        return self.captured[key](*inputs)

    def _beside(self, compute: Compute, inputs: tuple[Tensor, ...]) -> Tensor:
        """On the stream of the captures: each stream waits for the other, so memory passes between them safely."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            output = compute(*inputs)
        here.wait_stream(self.stream)
        return output

    def _capture(self, key: tuple[torch.Size, ...], compute: Compute, inputs: tuple[Tensor, ...]) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # a graph keeps memory of its own
        try:
            self.captured[key] = Captured(compute, inputs, self.stream, self.pool)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            why = str(error).strip().splitlines()[0]
            raise HardwareError(self.failure.format(why=why)) from error
        self.pool = self.captured[key].graph.pool()
