"""A state is the same whoever saved it, and whoever takes it up."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from smallgpt.domain.processes import ALONE
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.checkpoints import read_weights, verify
from smallgpt.infrastructure.sharded_checkpoints import read_shares
from tests.scale_out.conftest import Launch
from tests.scale_out.states import CASES, keeper, same, settings, stepper_of, trained

STATES = str(Path(__file__).with_name("states.py"))
IN_SHARDS = [case for case in CASES if "lora" not in case]
PROCESSES = 3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CASE-alone written by one process; CASE, CASE.whole and RANK.json by several."""
    folder = tmp_path_factory.mktemp("states")
    for case in IN_SHARDS:
        state = TrainingState(2, *trained(case, ALONE).state(shares=True), {}, shares=True)
        keeper(folder / f"{case}-alone", ALONE).save(state)
    done = launch(PROCESSES, STATES, str(folder))
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_process_finds_what_was_saved(folder: Path, case: str) -> None:
    for rank in range(PROCESSES):
        answers: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())[case]
        assert answers
        assert all(answers.values()), answers


@pytest.mark.parametrize("case", IN_SHARDS)
def test_one_process_takes_up_what_several_wrote_in_shares(folder: Path, case: str) -> None:
    [checkpoint] = (folder / case / "checkpoints").glob("step-*")
    verify(checkpoint)
    whole = load_file(folder / f"{case}.whole")
    stepper = stepper_of(settings(case), ALONE, 5)
    stepper.restore(read_shares(checkpoint, stepper.model, stepper.optimizers), {}, shares=True)
    weights, tensors = stepper.state()
    assert same((weights, tensors), ({n: whole[n] for n in weights}, {n: whole[n] for n in whole if "/" in n}))
    read = read_weights(checkpoint)
    read.pop("lm_head.weight")
    assert same((read, {}), (weights, {}))
