"""Checkpoints of which each process writes and reads what it holds, by torch.distributed.checkpoint: no process has it all.

They differ from other checkpoints in their tensors alone: instead of model.safetensors and optimizer.safetensors there is
shard-0000N-....safetensors of process N, whose header says where in the whole tensors its pieces belong. torch's usual files
of this kind hold pickles; its writer and reader of safetensors do not. Any number of processes reads them, one included.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.processes import Processes
from smallgpt.domain.state import Held, TrainingState, held
from smallgpt.infrastructure.checkpoints import RunCheckpoints, digests, write_manifest
from smallgpt.infrastructure.files import take_place
from smallgpt.infrastructure.run_folder import RunFolder


class ShardedCheckpoints(RunCheckpoints):
    """The checkpoints of a run whose processes write them together."""

    shards = True

    def __init__(
        self,
        run: RunFolder,
        config: GPTConfig,
        tokenizer_file: Path | None,
        keep: int,
        processes: Processes,
        seconds: float,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """`seconds` is how long one process waits for another."""
        super().__init__(run, config, tokenizer_file, keep, saved=saved)
        self.processes, self.seconds = processes, seconds

    def save(self, state: TrainingState) -> None:
        """Write the state, of which each process has its share. Raises CheckpointError."""
        target, first = self._folder(state.step), self.processes.rank == 0
        draft = target.with_name(f".{target.name}.tmp")
        try:
            if first:
                self.run.check_held()
                self._clear_drafts()
                draft.mkdir(parents=True)
            self.processes.wait_for_first(self.seconds)
            _write(state.weights | state.optimizer, draft)
            own = digests(draft.glob(f"shard-{self.processes.rank + 1:05d}-*"))
            files = {name: facts for each in self.processes.of_all(own) for name, facts in each.items()}
            if first:
                self._write_facts(draft, state)
                write_manifest(draft, files)
                take_place(draft, target, target.with_name(f".{target.name}.old.tmp"), self.run.check_held)
        except OSError as error:
            raise self._not_written(target, error) from None
        except CheckpointException as error:
            raise self._not_written(target, _cause(error)) from None
        finally:
            if first:
                shutil.rmtree(draft, ignore_errors=True)
        if first:
            self._prune(target)
            self.saved()
        self.processes.wait_for_first(self.seconds)  # until it is in its place

    def mark_best(self, step: int) -> None:
        """See RunCheckpoints."""
        if self.processes.rank == 0:
            super().mark_best(step)


def read_shares(folder: Path, model: GPT, optimizers: list[Optimizer]) -> Held:
    """What this process holds of a checkpoint's state beside the model's parameters as they are spread; all must call it.

    Raises CheckpointError.
    """
    like = dict(model.named_parameters())
    weights = {name: torch.empty_like(tensor) for name, tensor in held(model, [])[0].items()}
    trained = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    tensors = {}
    for name, facts in _facts(folder).items():
        parameter = like.get(name.rpartition("/")[0])
        if parameter is not None and id(parameter) in trained:
            tensors[name] = torch.empty_like(parameter) if facts.size == parameter.shape else _empty(facts)
    with _reading(folder):
        load(weights | tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=_alone())
    return weights, tensors


def read_whole_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint in shards, put together by this process alone. Raises CheckpointError."""
    weights = {name: _empty(facts) for name, facts in _facts(folder).items() if "/" not in name}
    with _reading(folder):
        load(weights, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return weights


def _write(tensors: dict[str, Tensor], folder: Path) -> None:
    with _quiet():
        save(
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=_alone(),
        )


def _alone() -> bool:
    return not dist.is_initialized()


def _facts(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Shape and dtype of every tensor that the shards make up."""
    with _reading(folder):
        found: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        return found


def _empty(facts: TensorStorageMetadata) -> Tensor:
    return torch.empty(facts.size, dtype=facts.properties.dtype)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except CheckpointException as error:
        raise CheckpointError(f"the shards of {folder} cannot be read: {_cause(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a process which is alone saves and loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _cause(error: CheckpointException) -> Exception:
    """What went wrong in the first of the processes in which something did, in a line."""
    rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
    words = str(cause).strip() or type(cause).__name__
    return OSError(f"process {rank}: {words.splitlines()[0]}")
