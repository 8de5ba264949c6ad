"""Low-rank updates as Hugging Face's peft keeps them: adapter_config.json and adapter_model.safetensors.

An adapter is no model: it is put on a GPT2LMHeadModel whose weights are the base model's. Its matrices are called
base_model.model.MODULE.lora_A.weight, with our names for a block's modules, and lie as ours do.
"""

import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smallgpt.domain.errors import CheckpointError
from smallgpt.domain.lora import Adapter, merged
from smallgpt.infrastructure.competitors import gpt2, gpt2_weights
from smallgpt.infrastructure.files import write_json
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.configs import read_json
from smallgpt.infrastructure.formats.portable import PortableModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, SUFFIX = "base_model.model.", ".weight"


def write(adapter: Adapter, folder: Path, base: str | None) -> None:
    """Write the updates into an empty folder; `base` is where peft finds the model that they belong to."""
    tensors = {f"{PREFIX}{name}{SUFFIX}": tensor.contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    write_json(folder / CONFIG, _config(adapter, base))
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # the library writes for its owner alone


def _config(adapter: Adapter, base: str | None) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.modules),
        "fan_in_fan_out": True,  # GPT-2's matrices are Conv1D's, (inputs, outputs)
        "bias": "none",
        "inference_mode": True,
    }


def read(folder: Path) -> Adapter:
    """The updates in a folder. Raises CheckpointError."""
    config = read_json(folder / CONFIG)
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    names = {name: name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in tensors}
    return Adapter({names[name]: tensor for name, tensor in tensors.items()}, float(config["lora_alpha"]))


def reader(folder: Path, base: PortableModel) -> plain.Reader:
    """The base model with the folder's updates: as peft computes it, or by the formulas where it is not installed."""
    try:
        import transformers  # noqa: F401  # what competitors.gpt2 needs
        from peft import PeftModel
    except ImportError:
        weights = merged(base.weights, read(folder))
        return plain.reader(weights, plain.Layout({stem: stem for stem in plain.STEMS}), base.config)
    model = gpt2(base.config)
    model.load_state_dict(
        gpt2_weights(base.weights), strict=False
    )  # the tied head, and biases where there are none: zeros
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # from one library to the other
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    return plain.Reader("peft, on transformers' GPT2LMHeadModel", lambda idx: adapted(input_ids=idx).logits.detach())
