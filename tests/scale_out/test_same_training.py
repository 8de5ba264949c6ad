"""Any number of processes trains the same model: losses, norms, weights, optimizer state and scores of one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from smallgpt.domain.processes import ALONE
from tests.scale_out.conftest import Launch
from tests.scale_out.together import CASES, settings, trained

TOGETHER = str(Path(__file__).with_name("together.py"))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(launch: Launch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Any]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("together")
    done = launch(request.param, TOGETHER, str(folder))
    assert done.code == 0, done.err
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("kind", ["Replicas", "Shards"])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_train_the_model_of_one(found: list[Any], case: str, kind: str) -> None:
    alone = trained(settings(**CASES[case]), ALONE)
    rounding = 2e-2 if case == "gradients in bf16" else 2e-5
    for process in found:
        together = process[f"{case}, {kind}"]
        assert together["tokens"] == alone["tokens"], "of the global batch"
        for what in ("losses", "norms"):
            assert together[what] == pytest.approx(alone[what], rel=rounding)
        for what in ("weights", "state"):
            assert together[what] == pytest.approx(alone[what], rel=20 * rounding, abs=rounding)
        assert together["score"][1::2] == alone["score"][1::2], "every token is scored once"
        assert together["score"][::2] == pytest.approx(alone["score"][::2], rel=rounding)
    assert all(process[f"{case}, {kind}"] == found[0][f"{case}, {kind}"] for process in found), "and all know the same"


def test_what_processes_agree_on(found: list[Any]) -> None:
    for process in found:
        assert process["any"] == [True, False]
        assert process["of first"] == 0
        assert process["of all"] == list(range(len(found)))
