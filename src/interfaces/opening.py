"""From a folder to a model: runs, checkpoints and exported folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from smallgpt.domain.config import Backend
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.ops import TORCH_OPS, Ops
from smallgpt.infrastructure import checkpoints, devices
from smallgpt.infrastructure.formats.opening import format_of, read_foreign
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.run_folder import RunFolder
from smallgpt.infrastructure.token_store import TokenStore, open_store
from smallgpt.infrastructure.tokenizers import AnyTokenizer, load_tokenizer
from smallgpt.interfaces.places import at_hand
from smallgpt.interfaces.run_figures import run_figures


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to be used, and where it came from."""

    model: GPT
    tokenizer: AnyTokenizer | None
    step: int | None
    path: Path
    run: RunFolder | None


def open_model(path: Path, device: str = "cpu", kernels: str = "torch") -> OpenedModel:
    """A run (its best checkpoint, else its newest good one), a checkpoint, a folder of weights and config, or another tool's.

    Raises CheckpointError, and KernelError, without a remedy, for kernels that do not run on the device.
    """
    place = devices.choose_device(device)
    if format_of(path) is not None:
        return _open_foreign(path, place, kernels)
    run, folder = _resolve(path)
    if (folder / checkpoints.MANIFEST).exists():
        try:
            checkpoints.verify(folder)
        except CheckpointError as error:
            words = str(error).rstrip(".")
            raise CheckpointError(f"{words}.\nName another checkpoint in {folder.parent}, or train anew.") from None
    model = GPT(checkpoints.read_model_config(folder), _inference_ops(kernels, place))
    try:
        model.load_state_dict(checkpoints.read_weights(folder))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: weights and config.json do not fit: {str(error).splitlines()[1].strip()}"
        ) from None
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = load_tokenizer(tokenizer_file) if tokenizer_file.exists() else None
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{tokenizer_file} has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}: "
            "it is another model's; put the one that this model was trained with in its place"
        )
    number = folder.name.removeprefix("step-")
    step = int(number) if number.isdecimal() else None
    return OpenedModel(model.to(place).eval(), tokenizer, step, folder, run)


def portable(opened: OpenedModel) -> PortableModel:
    """The opened model to be written in another format."""
    model = opened.model
    weights = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}  # the tied head comes once
    figures = {} if opened.run is None else run_figures(opened.run, opened.step)
    return PortableModel(model.config, weights, opened.tokenizer, name=_name(opened), figures=figures)


def open_data(opened: OpenedModel, data: Path | str | None, progress: Progress | None = None) -> TokenStore:
    """The data folder asked for, or the run's own one or ones, fetched from where they are.

    Raises CheckpointError when its ids mean other tokens.
    """
    folders = (data,) if data else opened.run.config().data.folders if opened.run is not None else ()
    if not folders:
        raise ConfigError(f"{opened.path} does not say what it was trained on; give --data FOLDER or --text FILE")
    store = open_store(*at_hand(folders, progress))
    theirs = store.manifest.tokenizer
    if opened.tokenizer and theirs and opened.tokenizer.fingerprint != theirs.fingerprint:
        raise CheckpointError(
            f"{opened.path} uses another tokenizer ({opened.tokenizer.fingerprint[:12]}) than {store.name} "
            f"({theirs.fingerprint[:12]});\nscore its text instead: --text FILE uses the model's own tokenizer"
        )
    if store.vocab_size > opened.model.config.vocab_size:
        raise CheckpointError(
            f"{store.name} has {store.vocab_size} token ids, the model {opened.model.config.vocab_size}; "
            "give data made with the model's tokenizer"
        )
    return store


def _name(opened: OpenedModel) -> str:
    return (opened.run.path if opened.run is not None else opened.path).resolve().name


def _open_foreign(path: Path, place: torch.device, kernels: str) -> OpenedModel:
    foreign = read_foreign(path)
    model = GPT(foreign.config, _inference_ops(kernels, place))
    model.load_state_dict(foreign.weights, strict=False)  # all but the tied head: the reader has checked
    return OpenedModel(model.to(place).eval(), foreign.tokenizer, None, path, None)


def _resolve(path: Path) -> tuple[RunFolder | None, Path]:
    if not path.exists():
        raise CheckpointError(
            f"{path} is not there. Train one: `smallgpt train demo`; or fetch one from the hub: "
            "`smallgpt import OWNER/NAME --out FOLDER`."
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} is no model that smallgpt knows. Name the folder of a run or of a model.")
    if (path / "adapter_config.json").exists():
        raise CheckpointError(f"{path} is an adapter, and no model by itself. Name the run that it came from.")
    if (path / "model.safetensors").exists() or (path / checkpoints.MANIFEST).exists():
        run = RunFolder(path.parent.parent)
        return (run if run.config_file.exists() else None), path
    run = RunFolder(path)
    if not run.config_file.exists():
        raise CheckpointError(f"{path} is neither a run (config.toml) nor a model (model.safetensors).")
    return run, checkpoints.best_checkpoint(run) or checkpoints.newest_good(run)[0]


def _inference_ops(kernels: str, device: torch.device) -> Ops:
    if kernels == "torch":
        return TORCH_OPS
    if kernels not in get_args(Backend):
        raise ConfigError(f"kernels is {kernels!r}; choose {', '.join(get_args(Backend))}")
    from smallgpt.kernels.select import select  # brings Triton, which most readers of a model never need

    return select(kernels, device).ops  # type: ignore[arg-type]
