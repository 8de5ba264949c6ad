"""What goes wrong with checkpoints in shards; tests/interfaces/test_sharded_checkpoints.py has what goes right."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from smallgpt.domain.config import GPTConfig, OptimizerConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.optimizers import build_optimizers
from smallgpt.domain.processes import ALONE
from smallgpt.domain.state import TrainingState, held
from smallgpt.infrastructure.checkpoints import newest_good
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.sharded_checkpoints import ShardedCheckpoints, read_shares


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What a full disk does to a file that grows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def keeper(tmp_path: Path, tiny: GPTConfig) -> ShardedCheckpoints:
    return ShardedCheckpoints(RunFolder(tmp_path / "run"), tiny, None, 2, ALONE, 60)


def state_of(config: GPTConfig, step: int) -> TrainingState:
    torch.manual_seed(step)
    return TrainingState(step, *held(GPT(config), []), {}, shares=True)


def test_a_full_disk_costs_the_newest_checkpoint_alone(keeper: ShardedCheckpoints, tiny: GPTConfig) -> None:
    keeper.save(state_of(tiny, 1))
    with (
        no_file_larger_than(4000),
        pytest.raises(CheckpointError, match=r"step-00000002 could not be written: process 0"),
    ):
        keeper.save(state_of(tiny, 2))
    folder = keeper.run.checkpoints_folder
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    keeper.save(state_of(tiny, 3))
    assert newest_good(keeper.run)[0].name == "step-00000003"


def test_what_a_killed_process_left_is_cleared(keeper: ShardedCheckpoints, tiny: GPTConfig) -> None:
    (keeper.run.checkpoints_folder / ".step-00000001.tmp").mkdir(parents=True)
    keeper.save(state_of(tiny, 1))
    assert [path.name for path in keeper.run.checkpoints_folder.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("other", [{"n_embd": 64}, {"n_layer": 3}])
def test_shards_of_another_model_are_refused(
    keeper: ShardedCheckpoints, tiny: GPTConfig, other: dict[str, int]
) -> None:
    keeper.save(state_of(tiny, 1))
    folder = Path(keeper.kept(1))
    model = GPT(tiny.model_copy(update=other))
    with pytest.raises(CheckpointError, match=r"the shards of .*step-00000001 cannot be read: process 0: "):
        read_shares(folder, model, build_optimizers(model, OptimizerConfig()))
