"""Models in and out, each conversion proved on what was written before it takes its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallgpt.application.parity import ABSOLUTE, RELATIVE, Logits, Parity, compare
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.domain.gpt import GPT
from smallgpt.infrastructure.files import check_replaceable, folder_written_whole, write_json
from smallgpt.infrastructure.formats import gguf_files, own
from smallgpt.infrastructure.formats.opening import FORMATS, format_of, read_foreign
from smallgpt.infrastructure.formats.plain import Reader
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.run_folder import RunFolder

REPORT = "parity.json"
WRITTEN = {**FORMATS, "smallgpt": own}


@dataclass(frozen=True)
class Conversion:
    """What was written, and the proof that it is the same model."""

    out: Path
    format: str
    reader: str
    """Who computed the other side of the proof."""
    parity: Parity
    """The file as its reader computes it, beside smallgpt with the file's weights and the reader's activation."""
    exact: bool
    """Are the weights and the model, read back, equal to the bit to what they were?"""
    change: Parity | None
    """Where they are not, or the reader's activation is another: the model before beside the model that it computes."""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For a program to read."""
        return {
            "out": str(self.out),
            "format": self.format,
            "reader": self.reader,
            "parity": self.parity.as_dict(),
            "exact": self.exact,
            "change": None if self.change is None else self.change.as_dict(),
            "notes": list(self.notes),
        }


def import_model(source: Path, out: Path, *, tokenizer: str | None = None, overwrite: bool = False) -> Conversion:
    """Write a model of another tool as a folder of smallgpt's, with the tokenizer that is named, or else its own.

    Raises CheckpointError, also when it is not the same model, and what `check_free` and `read_foreign` do.
    """
    check_free(out, overwrite, source)
    name = format_of(source)
    before = read_foreign(source, tokenizer)
    assert name is not None, "or it would not have been read"
    reader = FORMATS[name].reader(source)
    with drafted(out, overwrite) as draft:
        own.write(before, draft)
        after = own.read(draft)
        return _proved(before, after, reader, draft, out, name, before.notes, torch.equal)


def export_model(model: PortableModel, to: str, out: Path, *, overwrite: bool = False, **options: Any) -> Conversion:
    """Write a model in another tool's format. Raises CheckpointError, also when what was written is not the same one."""
    if to not in WRITTEN:
        raise ConfigError(f"format is {to!r}; choose {', '.join(WRITTEN)}")
    kept = partial(gguf_files.is_kept, dtype=options.get("dtype", "f32")) if to == "gguf" else torch.equal
    with drafted(out, overwrite) as draft:
        notes = WRITTEN[to].write(model, draft, **options)
        after, reader = WRITTEN[to].read(draft), WRITTEN[to].reader(draft)
        return _proved(model, after, reader, draft, out, to, notes, kept)


def _proved(
    before: PortableModel,
    after: PortableModel,
    reader: Reader,
    draft: Path,
    out: Path,
    format: str,
    notes: tuple[str, ...],
    kept: Callable[[Tensor, Tensor], bool],
) -> Conversion:
    """Compare, keep the report beside the model, and refuse what is not the same.

    `kept` says whether a tensor that was read back is the one that was written, as exactly as the format keeps numbers.
    """
    if not _is_equal(before, after, kept):
        raise CheckpointError(
            f"{out} was not written: what was written, read back, is another model. Please report this model's sizes."
        )
    there = _as_computed_by(reader, after)
    conversion = Conversion(
        out=out,
        format=format,
        reader=reader.words,
        parity=_compared(there, reader),
        exact=_is_equal(before, after),
        change=None if _is_equal(before, there) else _change(before, there),
        notes=notes,
    )
    if not conversion.parity.passed:
        raise CheckpointError(f"{out} was not written: {difference(conversion)}")
    write_json(draft / REPORT, conversion.as_dict())
    return conversion


def _as_computed_by(reader: Reader, model: PortableModel) -> PortableModel:
    """The model with the activation that the reader has for all models, so that like is compared with like."""
    if reader.activation is None:
        return model
    return replace(model, config=model.config.model_copy(update={"activation": reader.activation}))


def _change(before: PortableModel, after: PortableModel) -> Parity:
    return compare(logits_of(before.model()), logits_of(after.model()), after.config)


def _compared(model: PortableModel, reader: Reader) -> Parity:
    """In float32; where that does not do, and the reader can, in float64, which tells rounding from another model."""
    single = compare(logits_of(model.model()), reader.logits, model.config)
    if single.passed or reader.logits64 is None:
        return single
    return compare(logits_of(model.model().double()), reader.logits64, model.config, "float64")


def _is_equal(
    before: PortableModel, after: PortableModel, equal: Callable[[Tensor, Tensor], bool] = torch.equal
) -> bool:
    """Do both have the same sizes and weights? Dropout is for training, and not every format keeps it."""
    one, other = (model.config.model_copy(update={"dropout": 0.0}) for model in (before, after))
    return one == other and all(equal(tensor, after.weights[name]) for name, tensor in before.weights.items())


def difference(conversion: Conversion) -> str:
    """Why a conversion is refused, in words."""
    found = conversion.parity
    return (
        f"logits of {conversion.reader} differ from smallgpt's by up to {found.max_difference:.2g} "
        f"({found.relative:.2g} of the largest; {ABSOLUTE:g} and {RELATIVE:g} are allowed)\n"
        f"and {found.greedy_equal} of {found.greedy_tokens} greedy tokens are equal. Please report this model's sizes."
    )


def logits_of(model: GPT) -> Logits:
    """smallgpt's own way to compute a model."""
    return torch.inference_mode()(model.forward)


def check_free(out: Path, overwrite: bool, source: Path | None = None) -> None:
    """Raises ConfigError when `out` is taken, and when it is or holds `source`, the model that is to be written."""
    check_replaceable(out)
    if source is not None and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ConfigError(f"{source} is to be read, and would be lost with {out}; choose another --out")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} is there already; choose another --out, or add --overwrite")
    if overwrite and out.exists() and not (out / REPORT).is_file():
        raise ConfigError(f"{out} was not written by import or export, so it is not replaced; choose another --out")
    if overwrite and RunFolder(out).config_file.exists():
        raise ConfigError(f"{out} is a run's folder, so it is not replaced; choose another --out")


@contextmanager
def drafted(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that becomes `out` at the end. Raises ConfigError when `out` is taken."""
    check_free(out, overwrite)
    with folder_written_whole(out) as folder:
        yield folder
