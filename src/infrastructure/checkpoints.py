"""Checkpoints: folders that appear whole, prove their content, and hold no pickle.

step-00000400/
  model.safetensors      weights by name; the tied output head once
  lora.safetensors       low-rank updates, of a run that trains such: the weights beside them are then the base model's
  config.json            exactly the keys of GPTConfig
  tokenizer.json         as in the data folder
  optimizer.safetensors  PARAMETER/STATE
  shard-*.safetensors    instead of weights and optimizer, where each process wrote its share of both
  state.json             step, scaler, planned steps, counters, seconds
  manifest.json          size and SHA-256 of every other file
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.lora import Adapter, merged, split
from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.files import folder_written_whole, sha256, write_json
from smallgpt.infrastructure.formats.configs import model_config, read_json
from smallgpt.infrastructure.run_folder import RunFolder

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ADAPTER = "lora.safetensors"
REQUIRED = {"config.json", "state.json"}
TENSORS = {"model.safetensors", "optimizer.safetensors"}
SHARDS = "shard-*.safetensors"


class RunCheckpoints:
    """The checkpoints of one run being written: the newest `keep`, and the best."""

    shards = False

    def __init__(
        self,
        run: RunFolder,
        config: GPTConfig,
        tokenizer_file: Path | None,
        keep: int,
        lora_alpha: float = 1.0,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """`lora_alpha` is that of the low-rank updates, where a state has any; `saved` hears of each state that is kept."""
        self.run, self.config, self.tokenizer_file, self.keep = run, config, tokenizer_file, keep
        self.lora_alpha, self.saved = lora_alpha, saved

    def save(self, state: TrainingState) -> None:
        """Write the state. Raises CheckpointError."""
        target = self._folder(state.step)
        self.run.check_held()
        self._clear_drafts()
        try:
            with folder_written_whole(target, self.run.check_held) as folder:
                weights, updates = split(state.weights)
                save_file(_contiguous(weights), folder / "model.safetensors")
                if updates:
                    save_file(_contiguous(updates), folder / ADAPTER, {"alpha": str(self.lora_alpha)})
                save_file(_contiguous(state.optimizer), folder / "optimizer.safetensors")
                self._write_facts(folder, state)
                write_manifest(folder)
        except (OSError, SafetensorError) as error:
            raise self._not_written(target, error) from None
        self._prune(target)
        self.saved()

    def _write_facts(self, folder: Path, state: TrainingState) -> None:
        """All but tensors and manifest."""
        write_json(folder / "config.json", self.config.model_dump())
        write_json(folder / "state.json", {"step": state.step, **state.loop})
        for path in folder.glob("*.safetensors"):  # the library writes them for their owner alone
            path.chmod((folder / "config.json").stat().st_mode)
        if self.tokenizer_file is not None:
            shutil.copyfile(self.tokenizer_file, folder / "tokenizer.json")

    def _not_written(self, target: Path, error: Exception) -> CheckpointError:
        earlier = self.run.checkpoints()
        then = f"go on with `smallgpt train --resume {self.run.path}`" if earlier else "train anew with --out DIR"
        return CheckpointError(
            f"checkpoint {target} could not be written: {error}.\n"
            f"{len(earlier)} earlier ones are untouched; free the disk, then {then}."
        )

    def mark_best(self, step: int) -> None:
        """Remember the checkpoint of `step` as the best; it outlives `keep`. Raises CheckpointError."""
        path = self.run.checkpoints_folder / "best.json"
        self.run.check_held()
        try:
            write_json(path, {"checkpoint": self._folder(step).name})
        except OSError as error:
            raise CheckpointError(
                f"{path} could not be written: {error}. The checkpoints are untouched; free the disk, "
                f"then `smallgpt train --resume {self.run.path}`."
            ) from None

    def kept(self, step: int) -> str:
        """See application.ports.Checkpoints."""
        return str(self._folder(step))

    def finish(self) -> None:
        """Nothing is left to do when a save returns."""

    def _folder(self, step: int) -> Path:
        return self.run.checkpoints_folder / f"step-{step:08d}"

    def _prune(self, saved: Path) -> None:
        """Remove what is older than the newest `keep`.

        Checkpoints later than `saved` do not count: the run went back past them because they are damaged.
        """
        best = best_checkpoint(self.run)
        for path in [path for path in self.run.checkpoints() if path <= saved][: -self.keep]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)  # an old one that stays does no harm

    def _clear_drafts(self) -> None:
        """Remove what killed processes left half-written; the run is locked, so no other process is at it."""
        for draft in self.run.checkpoints_folder.glob(".step-*.tmp"):
            shutil.rmtree(draft, ignore_errors=True)


class NoCheckpoints:
    """Of a process that leaves writing to the first one."""

    shards = False

    def save(self, state: TrainingState) -> None:
        """See application.ports.Checkpoints."""

    def mark_best(self, step: int) -> None:
        """See application.ports.Checkpoints."""

    def kept(self, step: int) -> str:
        """See application.ports.Checkpoints."""
        return f"step {step}"

    def finish(self) -> None:
        """See application.ports.Checkpoints."""


def best_checkpoint(run: RunFolder) -> Path | None:
    """The checkpoint with the lowest validation loss, when one has been marked and is still there."""
    try:
        name = json.loads((run.checkpoints_folder / "best.json").read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    path = run.checkpoints_folder / str(name)
    return path if path in run.checkpoints() else None


def newest_good(run: RunFolder) -> tuple[Path, list[str]]:
    """The newest checkpoint whose content is as its manifest says, and what was wrong with newer ones.

    Raises CheckpointError when there is none.
    """
    problems = []
    for path in reversed(run.checkpoints()):
        try:
            verify(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return path, problems
    found = "; ".join(problems) or f"{run.checkpoints_folder} holds none"
    raise CheckpointError(
        f"{run.path} has no usable checkpoint: {found}.\nStart anew with `smallgpt train` in another folder (--out)."
    )


def verify(folder: Path) -> None:
    """Compare every file with the manifest. Raises CheckpointError that names the first difference."""
    for name, expected in expected_files(folder).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}")
        if sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")


def expected_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file: bytes, sha256. Raises CheckpointError where it cannot be used."""
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {manifest.get('format_version')}; this smallgpt reads {FORMAT_VERSION}. "
            "Use the version of smallgpt that wrote it."
        )
    files = manifest.get("files")
    if not _is_complete(files):
        raise CheckpointError(f"{folder / MANIFEST} is damaged: it does not describe every file of a checkpoint")
    return {Path(name).name: expected for name, expected in files.items()}


def load_checkpoint(folder: Path) -> TrainingState:
    """Read a checkpoint that `newest_good` gave, or `verify` passed; low-rank updates by themselves, of shards no tensor.

    Raises CheckpointError.
    """
    loop = read_json(folder / "state.json")
    if is_sharded(folder):
        return TrainingState(loop.pop("step"), {}, {}, loop, shares=True)
    weights, adapter = read_base_weights(folder), read_adapter(folder)
    weights |= {} if adapter is None else adapter.tensors
    return TrainingState(loop.pop("step"), weights, load_file(folder / "optimizer.safetensors"), loop)


def read_model_config(folder: Path) -> GPTConfig:
    """config.json as a GPTConfig. Raises CheckpointError."""
    path = folder / "config.json"
    return model_config(read_json(path), path)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the model that a folder holds, low-rank updates added, with the output head tied again.

    Raises CheckpointError.
    """
    weights, adapter = read_base_weights(folder), read_adapter(folder)
    if adapter is None:
        return weights
    try:
        return merged(weights, adapter)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / ADAPTER} does not fit model.safetensors: {error}") from None


def read_base_weights(folder: Path) -> dict[str, Tensor]:
    """model.safetensors, or the shards of it, with the output head tied again. Raises CheckpointError."""
    weights = _read_shards(folder) if is_sharded(folder) else _read_whole(folder / "model.safetensors")
    if "transformer.wte.weight" in weights:
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    return weights


def _read_whole(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return weights


def _read_shards(folder: Path) -> dict[str, Tensor]:
    from smallgpt.infrastructure.sharded_checkpoints import read_whole_weights  # loads torch.distributed

    return read_whole_weights(folder)


def read_adapter(folder: Path) -> Adapter | None:
    """lora.safetensors; None where there is none. Raises CheckpointError."""
    path = folder / ADAPTER
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            alpha = float((file.metadata() or {})["alpha"])
            return Adapter({name: file.get_tensor(name) for name in file.keys()}, alpha)  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def write_manifest(folder: Path, known: dict[str, Any] | None = None) -> None:
    """Write down every file of a checkpoint; `known` are the digests that are there already."""
    files = known or {}
    files |= digests(path for path in folder.iterdir() if path.name not in files)
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": dict(sorted(files.items()))})


def digests(paths: Iterable[Path]) -> dict[str, Any]:
    """Size and SHA-256 of files, by their names."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}


def is_sharded(folder: Path) -> bool:
    """Did several processes write its tensors, each its share?"""
    return bool(list(folder.glob(SHARDS)))


def _is_complete(files: object) -> TypeGuard[dict[str, Any]]:
    """Does a manifest's list name all that a checkpoint needs?"""
    if not isinstance(files, dict) or not files.keys() >= REQUIRED or not all(map(_is_entry, files.values())):
        return False
    return files.keys() >= TENSORS or any(Path(name).match(SHARDS) for name in files)


def _is_entry(value: object) -> bool:
    match value:
        case {"bytes": int(size), "sha256": str()}:
            return size >= 0
    return False


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
