"""Checkpoints: what is in them, which are kept, and what is found out about damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.checkpoints import (
    RunCheckpoints,
    best_checkpoint,
    expected_files,
    load_checkpoint,
    newest_good,
    read_model_config,
    read_weights,
    verify,
)
from smallgpt.infrastructure.run_folder import RunFolder

MakeState = Callable[[int], TrainingState]
FILES = ["config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "a run, ü")


@pytest.fixture
def keeper(run: RunFolder, tiny: GPTConfig, tmp_path: Path) -> RunCheckpoints:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text('{"version": "1.0"}')
    return RunCheckpoints(run, tiny, tokenizer, keep=2)


def names(run: RunFolder) -> list[str]:
    return [path.name for path in run.checkpoints()]


def saved(keeper: RunCheckpoints, state: TrainingState) -> Path:
    keeper.save(state)
    return Path(keeper.kept(state.step))


def test_what_was_saved_comes_back(keeper: RunCheckpoints, tiny: GPTConfig, make_state: MakeState) -> None:
    state = make_state(400)
    folder = saved(keeper, state)
    assert folder.name == "step-00000400"
    back = load_checkpoint(folder)
    assert back.step == 400
    assert back.loop == state.loop
    for ours, theirs in ((back.weights, state.weights), (back.optimizer, state.optimizer)):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert read_model_config(folder) == tiny


def test_the_folder_holds_what_other_tools_expect_and_no_pickle(keeper: RunCheckpoints, make_state: MakeState) -> None:
    folder = saved(keeper, make_state(1))
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for path in folder.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), f"{path.name} looks like a pickle or torch's zip of one"
        if path.suffix == ".json":
            json.loads(content)
        else:
            length = int.from_bytes(content[:8], "little")
            json.loads(content[8 : 8 + length])
    assert json.loads((folder / "config.json").read_text()).keys() == GPTConfig.model_fields.keys()


def test_a_models_tied_head_is_stored_once_and_comes_back(keeper: RunCheckpoints, tiny: GPTConfig) -> None:
    model = GPT(tiny)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    folder = saved(keeper, TrainingState(1, weights, {}, {}))
    stored = load_file(folder / "model.safetensors")
    assert set(stored) == {name for name, _ in model.named_parameters()}
    assert "lm_head.weight" not in stored
    other = GPT(tiny)
    other.load_state_dict(read_weights(folder))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_tensors_that_are_views_are_saved_as_they_look(keeper: RunCheckpoints) -> None:
    table = torch.arange(12.0).view(3, 4)
    state = TrainingState(
        1, {"across": table.T, "part": table[:, 1:3], "no grad": table.clone().requires_grad_()}, {}, {}
    )
    back = load_checkpoint(saved(keeper, state)).weights
    assert torch.equal(back["across"], table.T)
    assert torch.equal(back["part"], table[:, 1:3])


def test_the_newest_and_the_best_are_kept(keeper: RunCheckpoints, run: RunFolder, make_state: MakeState) -> None:
    for step in (100, 200, 300, 400):
        keeper.save(make_state(step))
        if step == 200:
            keeper.mark_best(200)
    assert names(run) == ["step-00000200", "step-00000300", "step-00000400"]
    best = best_checkpoint(run)
    assert best is not None
    assert best.name == "step-00000200"
    keeper.mark_best(400)
    keeper.save(make_state(500))
    assert names(run) == ["step-00000400", "step-00000500"]


def test_a_damaged_newer_checkpoint_does_not_push_out_good_ones(
    keeper: RunCheckpoints, run: RunFolder, make_state: MakeState
) -> None:
    """A run that fell back to step 300 saves at 350, while the damaged 400 is still there."""
    for step in (300, 400):
        keeper.save(make_state(step))
    (run.checkpoints_folder / "step-00000400" / "model.safetensors").unlink()
    RunCheckpoints(run, keeper.config, None, keep=1).save(make_state(350))
    path, problems = newest_good(run)
    assert path.name == "step-00000350"
    assert len(problems) == 1


def test_a_step_that_is_saved_again_replaces_its_checkpoint(
    keeper: RunCheckpoints, run: RunFolder, make_state: MakeState
) -> None:
    keeper.save(make_state(7))
    again = make_state(7)
    again.weights["transformer.ln_f.bias"].fill_(8.0)
    keeper.save(again)
    assert names(run) == ["step-00000007"]
    assert load_checkpoint(run.checkpoints()[0]).weights["transformer.ln_f.bias"][0] == 8
    assert [path.name for path in run.checkpoints_folder.iterdir()] == ["step-00000007"], "nothing is left beside it"


def test_what_killed_processes_left_behind_is_cleared_away(
    keeper: RunCheckpoints, run: RunFolder, make_state: MakeState
) -> None:
    """Half-written checkpoints would fill the disk, one crash at a time."""
    for name in (".step-00000400.1.tmp", ".step-00000002.1.old.tmp"):
        (run.checkpoints_folder / name).mkdir(parents=True)
        (run.checkpoints_folder / name / "model.safetensors").write_bytes(b"half")
    keeper.save(make_state(2))
    assert [path.name for path in run.checkpoints_folder.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checkpoint": "step-00000009"}', '{"checkpoint": null}'])
def test_a_best_mark_that_leads_nowhere_is_none(
    keeper: RunCheckpoints, run: RunFolder, make_state: MakeState, content: str
) -> None:
    keeper.save(make_state(1))
    assert best_checkpoint(run) is None
    (run.checkpoints_folder / "best.json").write_text(content)
    assert best_checkpoint(run) is None
    keeper.save(make_state(2))


def test_a_best_mark_cannot_leave_the_folder(keeper: RunCheckpoints, run: RunFolder, make_state: MakeState) -> None:
    keeper.save(make_state(1))
    for name in ("../../elsewhere", "/", "..", "."):
        (run.checkpoints_folder / "best.json").write_text(json.dumps({"checkpoint": name}))
        assert best_checkpoint(run) is None, name


def test_a_run_without_checkpoints_says_so(run: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"no usable checkpoint: .*holds none\.\n.*--out"):
        newest_good(run)


def test_a_manifest_of_a_later_format_is_left_to_a_later_version(keeper: RunCheckpoints, make_state: MakeState) -> None:
    folder = saved(keeper, make_state(1))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(CheckpointError, match=r"format version 2; this smallgpt reads 1"):
        verify(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{",
        '{"format_version": 1}',
        '{"format_version": 1, "files": {}}',
        '{"format_version": 1, "files": []}',
        '{"format_version": 1, "files": {"config.json": {}}}',
        '{"format_version": 1, "files": {"config.json": {"bytes": "many", "sha256": 1}}}',
        '{"format_version": 1, "files": {"config.json": null}}',
    ],
)
def test_a_manifest_that_makes_no_sense_is_named(keeper: RunCheckpoints, make_state: MakeState, manifest: str) -> None:
    folder = saved(keeper, make_state(1))
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=r"manifest\.json|config\.json"):
        verify(folder)


@pytest.mark.parametrize(
    "entry", [{"bytes": "x", "sha256": ""}, {"bytes": -1, "sha256": ""}, {"bytes": 1, "sha256": 1}]
)
def test_a_manifest_whose_figures_make_no_sense_is_named(
    keeper: RunCheckpoints, make_state: MakeState, entry: dict[str, Any]
) -> None:
    folder = saved(keeper, make_state(1))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        expected_files(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('{"n_embd": 30, "n_head": 4}', "multiple of n_head"),
        ('{"n_heads": 4}', "n_heads"),
        ('{"n_layer": "four"}', "n_layer"),
        ("[]", "no JSON object"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_model_configuration_that_is_none_is_named(tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_model_config(tmp_path)
    assert "config.json" in str(caught.value)


def test_weights_of_other_tools_may_hold_the_head_twice_or_not_at_all(tmp_path: Path) -> None:
    table = torch.randn(3, 2)
    save_file({"transformer.wte.weight": table}, tmp_path / "model.safetensors")
    assert torch.equal(read_weights(tmp_path)["lm_head.weight"], table)
    save_file({"transformer.wte.weight": table, "lm_head.weight": table + 1}, tmp_path / "model.safetensors")
    assert torch.equal(read_weights(tmp_path)["lm_head.weight"], table + 1)
    save_file({"something": table}, tmp_path / "model.safetensors")
    assert set(read_weights(tmp_path)) == {"something"}


def test_a_weight_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_weights(tmp_path)
