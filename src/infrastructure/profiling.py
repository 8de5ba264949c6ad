"""Recording some training steps with torch.profiler, with ranges around the model's parts.

The ranges are module hooks that are there only while a step is recorded, so that the model's code knows nothing of them and
every other step pays nothing. They draw no random numbers: a recorded step computes what it would have computed anyway.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

WARMUP_STEPS = 3
"""Before the recorded ones: they allocate, compile, and let the profiler set itself up."""

# By the last two parts of a module's name; what is left of GPT itself is its last call, the loss.
_PARTS = {
    "": "linear cross-entropy",
    "transformer": "embedding",
    "transformer.wte": "embedding",
    "transformer.wpe": "embedding",
    "transformer.ln_f": "layer norm",
    "attn": "attention",
    "attn.c_attn": "attention linear layers",
    "attn.c_proj": "attention linear layers",
    "mlp": "MLP",
    "mlp.c_fc": "MLP linear layers",
    "mlp.c_proj": "MLP linear layers",
    "ln1": "layer norm",
    "ln2": "layer norm",
}


Done = Callable[["StepRecorder"], None]


class _Rows(Protocol):
    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]: ...


class StepRecorder:
    """Records `steps` steps after WARMUP_STEPS, writes the trace, and calls `done`; a context for the whole run.

    A run that is interrupted before has the steps recorded so far; one that fails, nothing.
    """

    def __init__(
        self, model: nn.Module | None, steps: int, trace: Path, *, step_name: str, part_prefix: str, done: Done
    ) -> None:
        """Without a model (a compiled one has no modules left) its parts are not marked."""
        self.model, self.trace, self.done = model, trace, done
        self.step_name, self.part_prefix = step_name, part_prefix
        self.plain_seconds: list[float] = []
        """Of the steps before the recorded ones."""
        self.finished = self.failed = False
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self.profiler: Any = profile(
            activities=activities,
            schedule=schedule(wait=WARMUP_STEPS - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )

    def __enter__(self) -> Self:
        self.profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.failed = error is not None
        self.profiler.stop()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step."""
        if self.finished:
            yield
            return
        if self.profiler.current_action == ProfilerAction.NONE:
            started = time.perf_counter()
            yield
            _wait()
            self.plain_seconds.append(time.perf_counter() - started)
        else:
            with self._ranges(), record_function(self.step_name):
                yield
                _wait()
        self.profiler.step()

    def batches(self, batches: _Rows) -> "_RecordedRows":
        """The same batches, their making marked."""
        return _RecordedRows(batches, f"{self.part_prefix}data loading")

    @contextmanager
    def _ranges(self) -> Iterator[None]:
        with ExitStack() as handles:
            for name, module in self.model.named_modules() if self.model is not None else ():
                part = _PARTS.get(".".join(name.split(".")[-2:]), _PARTS.get(name.rpartition(".")[2]))
                if part is not None:
                    for handle in _mark(module, f"{self.part_prefix}{part}"):
                        handles.callback(handle.remove)
            yield

    def _write(self, profiler: Any) -> None:
        self.finished = True
        if self.failed:
            return
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.trace))
        self.done(self)


def _wait() -> None:
    """A step is only queued on a GPU; recorded, it has to end inside its range."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _mark(module: nn.Module, name: str) -> Sequence[Any]:
    ranges: list[Any] = []

    def enter(*_: Any) -> None:
        ranges.append(record_function(name))
        ranges[-1].__enter__()

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)


class _RecordedRows:
    """application.ports.Batches under a range."""

    def __init__(self, batches: _Rows, name: str) -> None:
        self.wrapped, self.name = batches, name

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        with record_function(self.name):
            return self.wrapped.rows(step, rows)
