"""`export --to peft`: computed by peft itself, by the formulas without it, and refused when it is another model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from smallgpt.domain.config import GPTConfig, RunConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.state import TrainingState
from smallgpt.domain.trainable import choose_trainable
from smallgpt.infrastructure.checkpoints import RunCheckpoints, read_base_weights
from smallgpt.infrastructure.competitors import gpt2, gpt2_weights
from smallgpt.infrastructure.formats import hugging_face, peft_files
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.interfaces.converting_adapter import export_adapter
from smallgpt.interfaces.opening import open_model
from tests.interfaces.conftest import Run


def write_run(folder: Path, model: GPTConfig, **training: Any) -> Path:
    """A run with a checkpoint of a model whose updates are not zero."""
    config = RunConfig.model_validate({"model": model, "training": training})
    gpt = GPT(model)
    choose_trainable(gpt, config.training)
    for name, parameter in gpt.named_parameters():
        if name.endswith(("lora_B", "bias")):
            nn.init.normal_(parameter, std=0.2)
    run = RunFolder(folder)
    run.write_config(config)
    weights = {name: tensor for name, tensor in gpt.state_dict().items() if name != "lm_head.weight"}
    RunCheckpoints(run, model, None, 1, config.training.lora_alpha).save(TrainingState(1, weights, {}, {}))
    return folder


@pytest.mark.parametrize(
    "training",
    [
        {"lora_rank": 4},
        {"lora_rank": 2, "lora_alpha": 3, "lora_targets": "c_attn,mlp.c_proj"},
        {"lora_rank": 1, "freeze": "blocks.0"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [{}, {"bias": False}, {"activation": "gelu_tanh"}], ids=str)
def test_peft_computes_the_runs_model(
    tiny: GPTConfig, tmp_path: Path, training: dict[str, Any], shape: dict[str, Any]
) -> None:
    opened = open_model(write_run(tmp_path / "run", tiny.model_copy(update=shape), init="openai/some-gpt2", **training))
    found = export_adapter(opened, tmp_path / "adapter")
    assert found.reader.startswith("peft")
    assert (found.parity.passed, found.exact, found.notes) == (True, True, ())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "openai/some-gpt2"
    assert json.loads((tmp_path / "adapter" / "parity.json").read_text())["format"] == "peft"


def test_the_files_work_as_peft_users_load_them(tiny: GPTConfig, tmp_path: Path) -> None:
    """With the matrices as the file has them, by the formula of peft's documentation, on transformers' own modules."""
    opened = open_model(write_run(tmp_path / "run", tiny, lora_rank=3))
    export_adapter(opened, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    base = load_file(opened.path / "model.safetensors")
    model = gpt2(opened.model.config)
    model.load_state_dict(gpt2_weights(base), strict=False)
    for module in config["target_modules"]:
        A, B = (tensors[f"base_model.model.{module}.lora_{which}.weight"] for which in "AB")
        model.get_submodule(module).weight.data += config["lora_alpha"] / config["r"] * (B @ A).T
    idx = torch.randint(tiny.vocab_size, (2, tiny.block_size))
    torch.testing.assert_close(model.eval()(input_ids=idx).logits, opened.model(idx), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", ["peft", "transformers"])
def test_without_the_libraries_the_formulas_prove_it(
    tiny: GPTConfig, tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    found = export_adapter(open_model(write_run(tmp_path / "run", tiny, lora_rank=3)), tmp_path / "adapter")
    assert found.reader.startswith("the formulas")
    assert found.parity.passed


def test_updates_that_are_scaled_otherwise_are_refused_and_leave_nothing(
    tiny: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(write_run(tmp_path / "run", tiny, lora_rank=3))
    right = peft_files._config
    monkeypatch.setattr(peft_files, "_config", lambda adapter, base: right(adapter, base) | {"lora_alpha": 17.0})
    with pytest.raises(CheckpointError, match="was not written: logits of peft"):
        export_adapter(opened, tmp_path / "adapter")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_run_without_updates_has_no_adapter(tiny: GPTConfig, tmp_path: Path) -> None:
    opened = open_model(write_run(tmp_path / "run", tiny, freeze="norms"))
    with pytest.raises(ConfigError, match="has no low-rank updates"):
        export_adapter(opened, tmp_path / "adapter")


def test_the_command_names_the_base_that_must_be_exported_too(tiny: GPTConfig, tmp_path: Path, run: Run) -> None:
    write_run(tmp_path / "run", tiny, lora_rank=3, init=str(tmp_path))
    code, out, _ = run("export", str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "adapter"))
    assert code == 0
    assert f"the base model is {tmp_path}: write it with `smallgpt export {tmp_path} --to hf" in " ".join(out.split())
    code, _, err = run("export", str(tmp_path / "run"), "--to", "peft", "--out", str(tmp_path / "adapter"))
    assert code == 2
    assert "is there already" in err


def test_a_base_that_was_replaced_since_is_not_named(tiny: GPTConfig, tmp_path: Path) -> None:
    base = tmp_path / "base"
    opened = open_model(write_run(tmp_path / "run", tiny, lora_rank=3, init=str(base)))
    assert export_adapter(opened, tmp_path / "gone").notes
    weights = read_base_weights(opened.path)
    weights.pop("lm_head.weight")
    base.mkdir()
    for by, named in ((0.0, str(base)), (0.1, None)):
        shifted = {name: tensor + by for name, tensor in weights.items()}
        hugging_face.write(PortableModel(tiny, shifted), base)
        export_adapter(opened, tmp_path / "adapter", overwrite=True)
        written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] == named


def test_an_adapter_does_not_replace_the_run_that_it_is_of(tiny: GPTConfig, tmp_path: Path) -> None:
    opened = open_model(write_run(tmp_path / "run", tiny, lora_rank=3))
    (tmp_path / "run" / "parity.json").write_text("{}")
    with pytest.raises(ConfigError, match="is to be read, and would be lost with"):
        export_adapter(opened, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "config.toml").exists()
