"""A fine-tuned run's low-rank updates for peft, proved on the base model that they belong to."""

from pathlib import Path

import torch

from smallgpt.application.parity import compare
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure import checkpoints
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.formats import peft_files
from smallgpt.infrastructure.formats.opening import format_of, read_foreign
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.interfaces.converting import REPORT, Conversion, check_free, difference, drafted, logits_of
from smallgpt.interfaces.opening import OpenedModel


def export_adapter(opened: OpenedModel, out: Path, *, overwrite: bool = False) -> Conversion:
    """Write the updates of an opened run or checkpoint as peft loads them.

    Raises ConfigError when it has none, CheckpointError when peft, or the formulas, compute another model from them, and
    what `check_free` does.
    """
    check_free(out, overwrite, opened.path)
    adapter = checkpoints.read_adapter(opened.path)
    if adapter is None:
        raise ConfigError(f"{opened.path} has no low-rank updates; peft's files are for runs with --training.lora-rank")
    weights = checkpoints.read_base_weights(opened.path)
    weights.pop("lm_head.weight")
    base = PortableModel(opened.model.config, weights)
    init = None if opened.run is None else opened.run.config().training.init
    name = _loadable(init, base)
    note = (
        f"the base model is {init}: write it with `smallgpt export {init} --to hf --out BASE`, "
        f"and name that folder in {peft_files.CONFIG}"
    )
    with drafted(out, overwrite) as draft:
        peft_files.write(adapter, draft, name)
        back = peft_files.read(draft)
        reader = peft_files.reader(draft, base)
        conversion = Conversion(
            out=out,
            format="peft",
            reader=reader.words,
            parity=compare(logits_of(opened.model), reader.logits, base.config),
            exact=all(torch.equal(tensor, back.tensors[key]) for key, tensor in adapter.tensors.items()),
            change=None,
            notes=() if name else (note,),
        )
        if not (conversion.parity.passed and conversion.exact):
            raise CheckpointError(f"{out} was not written: {difference(conversion)}")
        write_json(draft / REPORT, conversion.as_dict())
        return conversion


def _loadable(init: str | None, base: PortableModel) -> str | None:
    """Where the run started, if transformers can load the base from there: a name on the hub, or a folder as it was."""
    if init is None or not Path(init).is_absolute():  # composition keeps paths absolute, and names as they are
        return init
    if format_of(Path(init)) != "hf":
        return None
    there = read_foreign(Path(init)).weights
    cut = {name: tensor[: len(base.weights[name])] for name, tensor in there.items() if name in base.weights}
    same = cut.keys() == base.weights.keys() and all(torch.equal(cut[name], base.weights[name]) for name in cut)
    return init if same else None
