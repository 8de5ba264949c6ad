"""Checkpoints of low-rank updates: the base untouched, the updates beside it, and merged for every reader but one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.lora import add_lora
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.checkpoints import (
    ADAPTER,
    RunCheckpoints,
    load_checkpoint,
    read_adapter,
    read_weights,
    verify,
)
from smallgpt.infrastructure.run_folder import RunFolder

ALPHA, RANK = 6.0, 2
NAME = "transformer.h.1.mlp.c_fc"


@pytest.fixture
def model(tiny: GPTConfig) -> GPT:
    model = GPT(tiny)
    add_lora(model, RANK, ALPHA, ("c_fc",))
    torch.nn.init.normal_(model.get_parameter(f"{NAME}.lora_B"))
    return model


@pytest.fixture
def folder(model: GPT, tmp_path: Path) -> Path:
    keeper = RunCheckpoints(RunFolder(tmp_path), model.config, None, keep=1, lora_alpha=ALPHA)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    keeper.save(TrainingState(7, weights, {}, {}))
    return Path(keeper.kept(7))


def test_the_base_model_and_the_updates_are_files_of_their_own(model: GPT, folder: Path) -> None:
    base, updates = load_file(folder / "model.safetensors"), load_file(folder / ADAPTER)
    assert sorted(updates) == sorted(f"transformer.h.{n}.mlp.c_fc.lora_{x}" for n in (0, 1) for x in "AB")
    assert sorted(base) == sorted(name for name, _ in GPT(model.config).named_parameters())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in (base | updates).items())


def test_a_run_goes_on_with_both_and_everyone_else_sees_the_sum(model: GPT, folder: Path) -> None:
    state, expected = load_checkpoint(folder), model.state_dict()
    assert state.weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.weights.items())
    seen = read_weights(folder)
    product = expected[f"{NAME}.lora_B"] @ expected[f"{NAME}.lora_A"]
    torch.testing.assert_close(seen[f"{NAME}.weight"], expected[f"{NAME}.weight"] + ALPHA / RANK * product)
    GPT(model.config).load_state_dict(seen)  # as an ordinary model's: nothing is left over


def test_the_manifest_watches_the_updates(folder: Path) -> None:
    *content, last = (folder / ADAPTER).read_bytes()
    (folder / ADAPTER).write_bytes(bytes([*content, last ^ 1]))
    with pytest.raises(CheckpointError, match=r"lora.safetensors is damaged"):
        verify(folder)
    (folder / ADAPTER).unlink()
    with pytest.raises(CheckpointError, match=r"lora.safetensors is missing"):
        verify(folder)


def test_updates_that_cannot_be_read_or_fit_no_matrix_are_refused(folder: Path) -> None:
    adapter = read_adapter(folder)
    assert adapter is not None
    save_file(adapter.tensors, folder / ADAPTER)
    with pytest.raises(CheckpointError, match=r"lora.safetensors cannot be read: 'alpha'"):
        read_weights(folder)
    wide = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in adapter.tensors.items()}
    save_file(wide, folder / ADAPTER, {"alpha": "1"})
    with pytest.raises(CheckpointError, match=r"lora.safetensors does not fit model.safetensors"):
        read_weights(folder)
    (folder / ADAPTER).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"lora.safetensors cannot be read"):
        read_weights(folder)
