"""GGUF, the one file that llama.cpp and what is built on it run a model from, tokenizer included.

llama.cpp's GPT-2 has a GELU of its own: the tanh approximation. A model with the exact one keeps its weights and comes back
as it was, but there it computes something slightly different, which `reader` computes too, so that the difference is told.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.configs import model_config
from smallgpt.infrastructure.formats.gguf_container import GgufFile, read_gguf
from smallgpt.infrastructure.formats.gguf_tokens import add_tokens, tokenizer_of
from smallgpt.infrastructure.formats.portable import PortableModel, expected_shapes, taken
from smallgpt.infrastructure.formats.single_file import single_file

Dtype = Literal["f32", "f16", "q8_0"]

FILE = "model.gguf"
STEMS = (
    "token_embd",
    "position_embd",
    "blk.{}.attn_norm",
    "blk.{}.attn_qkv",
    "blk.{}.attn_output",
    "blk.{}.ffn_norm",
    "blk.{}.ffn_up",
    "blk.{}.ffn_down",
    "output_norm",
)
"""llama.cpp's names, in the order of plain.STEMS."""
LAYOUT = plain.Layout(dict(zip(plain.STEMS, STEMS, strict=True)))
THERE: Literal["gelu_tanh"] = "gelu_tanh"
"""The activation that llama.cpp computes, whatever the model was trained with."""
OTHER_GELU = (
    "llama.cpp computes the tanh approximation of GELU, this model the exact one: `change` tells what that costs"
)
QUANTIZED_ROW = 32
"""Q8_0 keeps so many numbers of a row together."""


def is_kept(before: Tensor, after: Tensor, dtype: Dtype) -> bool:
    """Is a tensor that was read back the one that was written, but for the rounding of dtype?

    Half a step: of float16 2^-11 of the number, of Q8_0 half of a 127th of the largest of its block, whose scale is itself
    rounded to float16. Vectors, and matrices that Q8_0 does not fit, may be exact.
    """
    if torch.equal(before, after):
        return True
    off = (before - after).abs()
    if dtype != "f32" and bool((off <= before.abs() * 2**-11 + 2**-25).all()):
        return True
    if dtype != "q8_0" or before.size(-1) % QUANTIZED_ROW:
        return False
    largest = before.view(-1, QUANTIZED_ROW).abs().amax(-1, keepdim=True) / 127
    return bool((off.view(-1, QUANTIZED_ROW) <= (0.5 + 127 * 2**-11) * largest + 2**-25).all())


def recognises(path: Path) -> bool:
    """Is it such a file, or a folder with one?"""
    return path.suffix == ".gguf" or any(path.glob("*.gguf"))


def read(path: Path) -> PortableModel:
    """The file's model, with the activation it was trained with where the file tells. Raises CheckpointError."""
    file = read_gguf(single_file(path, "GGUF"))
    config = _config(file)
    ours = {LAYOUT.theirs(name): name for name in expected_shapes(config.model_copy(update={"bias": True}))}
    ours |= {"output.weight": "lm_head.weight"}
    tensors = {ours.get(name, name): file.tensor(name) for name in file.places}
    if not config.bias:
        tensors = _without_biases(tensors, file.path)
    return PortableModel(
        config=config,
        weights=taken(tensors, config, str(file.path)),
        tokenizer=tokenizer_of(file.metadata, file.path),
        name=str(file.metadata.get("general.name", path.stem)),
        notes=() if config.activation == THERE else (OTHER_GELU,),
    )


def reader(path: Path) -> plain.Reader:
    """The model as llama.cpp computes it, from the tensors as the gguf package reads them."""
    gguf = _package()
    file = read_gguf(single_file(path, "GGUF"))  # checks the lengths, which the package trusts
    tensors = {
        tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(file.path).tensors
    }
    config = _config(file).model_copy(update={"activation": THERE})
    return plain.reader(tensors, LAYOUT, config)._replace(activation=THERE)


def write(model: PortableModel, folder: Path, *, dtype: Dtype = "f32") -> tuple[str, ...]:
    """Write the model as llama.cpp loads it; what could not be kept, a sentence each.

    dtype is of the matrices and the embedding of tokens; all else is float32, as llama.cpp wants it. Raises ConfigError for no
    tokenizer or one that llama.cpp does not know, and for numbers that are too large for the dtype.
    """
    gguf, config = _package(), model.config
    writer = gguf.GGUFWriter(folder / FILE, "gpt2")
    writer.add_name(model.name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(plain.EPS)
    writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("smallgpt.activation", config.activation)
    writer.add_bool("smallgpt.bias", config.bias)
    notes = add_tokens(writer, model.tokenizer, config.vocab_size)
    for ours in expected_shapes(config.model_copy(update={"bias": True})):
        kind = gguf.GGMLQuantizationType[_kind(ours, config, dtype)]
        numbers = _numbers(model, ours)
        if kind != gguf.GGMLQuantizationType.F32 and numbers.abs().max() > torch.finfo(torch.float16).max:
            raise ConfigError(f"--dtype {dtype} cannot hold {ours}'s {numbers.abs().max():g}; choose f32")
        data = gguf.quantize(numbers.numpy(), kind)
        writer.add_tensor(LAYOUT.theirs(ours), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (*notes, *_notes(config, dtype))


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise ConfigError("GGUF needs the package gguf: pip install 'smallgpt[gguf]'") from None
    return gguf


def _config(file: GgufFile) -> GPTConfig:
    """The model's sizes. Raises CheckpointError for a model of another kind."""
    architecture = file.value("general.architecture")
    if architecture != "gpt2":
        raise CheckpointError(
            f"{file.path} is a model of the architecture {architecture!r}; smallgpt's models are 'gpt2'"
        )
    if file.metadata.get("split.count", 1) != 1:
        raise CheckpointError(
            f"{file.path} is one of several parts; join them with llama.cpp's llama-gguf-split --merge"
        )
    epsilon = file.value("gpt2.attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or abs(epsilon - plain.EPS) > 1e-9:
        raise CheckpointError(f"{file.path}: its layer norms add {epsilon}; smallgpt's add {plain.EPS:g}")
    sizes = {
        "block_size": file.value("gpt2.context_length"),
        "n_layer": file.value("gpt2.block_count"),
        "n_head": file.value("gpt2.attention.head_count"),
        "n_embd": file.value("gpt2.embedding_length"),
    }
    rows, width = _table(file, "token_embd.weight")
    if _table(file, "position_embd.weight") != (sizes["block_size"], sizes["n_embd"]) or width != sizes["n_embd"]:
        raise CheckpointError(
            f"{file.path}: its tables are not of the context of {sizes['block_size']} and the width of {sizes['n_embd']} "
            "that it tells; metadata and weights belong to different models"
        )
    if sizes["n_layer"] > len(file.places):
        raise CheckpointError(f"{file.path} tells of {sizes['n_layer']} blocks, and holds {len(file.places)} tensors")
    own = {key: file.metadata.get(f"smallgpt.{key}", usual) for key, usual in (("activation", THERE), ("bias", True))}
    return model_config({**sizes, "vocab_size": rows, "dropout": 0.0, **own}, file.path)


def _table(file: GgufFile, name: str) -> tuple[int, int]:
    """The rows and the width of an embedding."""
    shape = file.places[name].shape if name in file.places else ()
    if len(shape) != 2:
        raise CheckpointError(f"{file.path} has no matrix {name}; it is incomplete, or no GPT-2")
    return shape[0], shape[1]


def _without_biases(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The tensors of a model that has no biases, which llama.cpp wants to be there."""
    wrong = next((name for name, tensor in tensors.items() if name.endswith(".bias") and tensor.any()), None)
    if wrong is not None:
        raise CheckpointError(f"{where}: smallgpt.bias is false, but {LAYOUT.theirs(wrong)} is not zero; it is damaged")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}


def _numbers(model: PortableModel, ours: str) -> Tensor:
    """A parameter, zeros for a bias that the model does not have."""
    if ours in model.weights:
        return model.weights[ours].contiguous()
    return torch.zeros(len(model.weights[f"{ours.removesuffix('bias')}weight"]))


def _kind(ours: str, config: GPTConfig, dtype: Dtype) -> str:
    """What a parameter is kept as."""
    if ours == "transformer.wpe.weight" or not ours.endswith(".weight") or ".ln" in ours:
        return "F32"
    if dtype == "q8_0" and config.n_embd % QUANTIZED_ROW:
        return "F16"
    return dtype.upper()


def _notes(config: GPTConfig, dtype: Dtype) -> tuple[str, ...]:
    return tuple(
        words
        for words, holds in (
            (OTHER_GELU, config.activation != THERE),
            ("the model has no biases: llama.cpp wants some, so zeros were written", not config.bias),
            (
                f"a width of {config.n_embd} is no multiple of Q8_0's {QUANTIZED_ROW}, so the matrices are F16",
                dtype == "q8_0" and config.n_embd % QUANTIZED_ROW,
            ),
        )
        if holds
    )
