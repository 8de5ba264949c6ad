"""From a path to a model: runs, checkpoints, and folders of weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import smallgpt
from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.checkpoints import RunCheckpoints
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.tokenizers import byte_tokenizer
from smallgpt.interfaces.opening import open_model


@pytest.fixture
def run(tmp_path: Path, tiny: GPTConfig) -> RunFolder:
    """Checkpoints of steps 1, 2 and 3; each one's first embedding is its step; the best is 2."""
    run = RunFolder(tmp_path / "run")
    run.write_config(RunConfig(model=tiny))
    keeper = RunCheckpoints(run, tiny, None, keep=3)
    for step in (1, 2, 3):
        weights = dict(GPT(tiny).named_parameters())
        with torch.no_grad():
            weights["transformer.wte.weight"][0] = step
        keeper.save(TrainingState(step, {name: p.detach() for name, p in weights.items()}, {}, {}))
    keeper.mark_best(2)
    return run


def first_number(model: GPT) -> float:
    return model.transformer.wte.weight[0, 0].item()


def test_a_run_means_its_best_checkpoint_else_its_newest_good_one(run: RunFolder) -> None:
    assert first_number(open_model(run.path).model) == 2
    assert open_model(run.path).step == 2
    (run.checkpoints_folder / "best.json").unlink()
    (run.checkpoints()[-1] / "model.safetensors").write_bytes(b"")
    opened = open_model(run.path)
    assert (first_number(opened.model), opened.step) == (2, 2)


def test_a_checkpoint_can_be_named_itself_and_knows_its_run(run: RunFolder) -> None:
    opened = open_model(run.checkpoints()[0])
    assert (first_number(opened.model), opened.step) == (1, 1)
    assert opened.run is not None
    assert opened.run.path == run.path


def test_load_gives_a_model_that_is_ready_to_use(run: RunFolder) -> None:
    model = smallgpt.load(str(run.path))
    assert not model.training
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.generate(torch.tensor([[1, 2]]), 3).shape == (1, 5)


@pytest.mark.parametrize("name", ["mine", "step-by-step", "step-00000003-copy"])
def test_weights_and_config_alone_are_a_model_whatever_their_folder_is_called(
    tmp_path: Path, tiny: GPTConfig, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(tiny.model_dump_json())
    save_file({n: p.detach() for n, p in GPT(tiny).named_parameters()}, folder / "model.safetensors")
    opened = open_model(folder)
    assert (opened.step, opened.run, opened.tokenizer) == (None, None, None)


def test_what_is_no_model_is_an_error_with_a_remedy(run: RunFolder, tmp_path: Path, tiny: GPTConfig) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not there.*smallgpt train"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a run"):
        open_model(tmp_path)
    newest = run.checkpoints()[-1]
    (newest / "manifest.json").unlink()
    (newest / "config.json").write_text(json.dumps({**tiny.model_dump(), "n_layer": 3}))
    with pytest.raises(CheckpointError, match=r"weights and config\.json do not fit: .*transformer\.h\.2"):
        open_model(newest)


def test_a_tokenizer_of_another_model_is_an_error(tmp_path: Path, tiny: GPTConfig) -> None:
    (tmp_path / "config.json").write_text(tiny.model_dump_json())
    save_file({n: p.detach() for n, p in GPT(tiny).named_parameters()}, tmp_path / "model.safetensors")
    byte_tokenizer().save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 257 ids, the model 61"):
        open_model(tmp_path)
