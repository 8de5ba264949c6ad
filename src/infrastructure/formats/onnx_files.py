"""ONNX: the model as one graph, `idx` (B, T) int64 -> `logits` (B, T, V) float32, for ONNX Runtime and what builds on it.

The graph's weights keep smallgpt's names and its metadata the configuration, so that our own files are read again. A graph of
another tool does not tell which model it computes.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.formats import plain
from smallgpt.infrastructure.formats.configs import model_config
from smallgpt.infrastructure.formats.portable import PortableModel, taken
from smallgpt.infrastructure.formats.ranges import overlap
from smallgpt.infrastructure.formats.single_file import single_file
from smallgpt.infrastructure.tokenizers import AnyTokenizer, load_tokenizer

FILE, DATA, TOKENIZER = "model.onnx", "model.onnx.data", "tokenizer.json"
CONFIG = "smallgpt.config"
"""The key of the metadata that holds a GPTConfig as JSON."""
OPSET = 20
"""The first with GELU as one operator."""
LARGEST = 1_900_000_000
"""Bytes of weights in the file itself: protobuf ends at 2 GiB, so that more go into a file beside it."""
HEAD, EMBEDDING, POSITIONS = "lm_head.weight", "transformer.wte.weight", "transformer.wpe.weight"


def recognises(path: Path) -> bool:
    """Is it such a file, or a folder with one?"""
    return path.suffix == ".onnx" or any(path.glob("*.onnx"))


def read(path: Path) -> PortableModel:
    """The model of a file that `write` wrote. Raises CheckpointError, for any other file too."""
    file = single_file(path, "ONNX")
    graph = _parsed(file)
    config = _config(graph, file)
    _check_apart(graph, file)
    tensors = {str(tensor.name): _tensor(tensor, file) for tensor in graph.graph.initializer}
    if HEAD in tensors:
        tensors.setdefault(EMBEDDING, tensors[HEAD])  # one and the same, so the graph has it once
    weights = taken(tensors, config, str(file))
    return PortableModel(config, weights, _tokenizer(file, config), name=file.absolute().parent.name)


def reader(path: Path) -> plain.Reader:
    """The graph as ONNX Runtime computes it. Raises CheckpointError for one that is not well formed or does not run."""
    onnx, onnxruntime = _package("onnx"), _package("onnxruntime")
    file = single_file(path, "ONNX")
    vocab_size = _config(_parsed(file), file).vocab_size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what matters is raised
    with _refusing(file):
        onnx.checker.check_model(str(file), full_check=True)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def logits(idx: Tensor) -> Tensor:
        with _refusing(file):
            (found,) = session.run(["logits"], {"idx": idx.numpy()})
        if found.shape != (*idx.shape, vocab_size):
            raise CheckpointError(
                f"{file} gives logits of shape {found.shape} for ids of {tuple(idx.shape)}; it is damaged"
            )
        return torch.from_numpy(found)

    return plain.Reader(f"ONNX Runtime {onnxruntime.__version__}", logits)


def write(model: PortableModel, folder: Path) -> tuple[str, ...]:
    """Write the model as a graph, and its tokenizer beside it, which no graph holds."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _package(name)
    graph = _graph(model)
    graph.model.metadata_props[CONFIG] = model.config.model_dump_json()
    _forget_sources(graph.model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.weights.values())
    graph.save(folder / FILE, external_data=size > LARGEST)
    if model.tokenizer is None:
        return ("the model has no tokenizer",)
    model.tokenizer.save(folder / TOKENIZER)
    return ()


def _graph(model: PortableModel) -> torch.onnx.ONNXProgram:
    """The model for any number of rows and tokens up to its context."""
    block = model.config.block_size
    time = {1: torch.export.Dim("time", max=block)} if block > 1 else {}  # a context of one token is no range
    with _quiet():
        program = torch.onnx.export(
            model.model(),
            (torch.zeros(2, min(2, block), dtype=torch.int64),),
            dynamo=True,
            verbose=False,
            optimize=False,  # it would keep transposed copies under names of its own
            opset_version=OPSET,
            input_names=["idx"],
            output_names=["logits"],
            dynamic_shapes={"idx": {0: torch.export.Dim("batch"), **time}},
        )
    assert program is not None, "or it would not be dynamo's"
    return program


def _forget_sources(model: Any) -> None:
    """Remove what the exporter notes at every node: places in the source files of this machine."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _package(name: str) -> ModuleType:
    try:
        with _quiet():
            return import_module(name)
    except ImportError:
        raise ConfigError(f"ONNX needs the package {name}: pip install 'smallgpt[onnx]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch's exporter on packages and ways of its own that it does not like."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """CheckpointError for whatever the libraries raise, whose errors have no class in common."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(f"{file} does not run: {reason[0] if reason else type(error).__name__}") from None


def _parsed(file: Path) -> Any:
    """The graph, without weights in a file beside it. Its texts are bytes where they are no UTF-8: protobuf lets them pass."""
    onnx = _package("onnx")
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(file), load_external_data=False)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as ONNX: {error}; fetch or export it again") from None


def _config(graph: Any, file: Path) -> GPTConfig:
    """The configuration in the metadata, held against the weights' names and sizes. Raises CheckpointError."""
    text = next((entry.value for entry in graph.metadata_props if entry.key == CONFIG), None)
    if text is None:
        raise CheckpointError(
            f"{file} was not written by smallgpt's export, and a graph does not tell which model it computes;\n"
            "import the files that it was made from"
        )
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: {CONFIG} in its metadata is no JSON: {error}; it is damaged") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: {CONFIG} in its metadata is {values!r}, not a configuration; it is damaged")
    config = model_config(values, file)
    shapes = {str(tensor.name): tuple(tensor.dims) for tensor in graph.graph.initializer}
    tables = shapes.get(EMBEDDING, shapes.get(HEAD)), shapes.get(POSITIONS)
    told = (config.vocab_size, config.n_embd), (config.block_size, config.n_embd)
    if tables != told or config.n_layer > len(shapes):
        raise CheckpointError(
            f"{file} is damaged: {CONFIG} tells of {config.n_layer} blocks and embeddings of {told}, the graph has "
            f"{len(shapes)} weights and embeddings of {tables}; export it again"
        )
    return config


def _tensor(tensor: Any, file: Path) -> Tensor:
    """A weight, which is there as float32 in the file or in the one beside it. Raises CheckpointError."""
    shape, size = tuple(tensor.dims), prod(tensor.dims) * 4
    if tensor.data_type != 1 or min(shape, default=1) < 1:  # 1 is onnx.TensorProto.FLOAT
        raise CheckpointError(
            f"{file}: {tensor.name} of {shape} is of kind {tensor.data_type}, not float32; it is damaged"
        )
    data = _beside(tensor, file, size) if tensor.external_data else tensor.raw_data
    if len(data) != size:
        raise CheckpointError(
            f"{file} is damaged: {tensor.name} of {shape} has {len(data):,} bytes instead of {size:,}; export it again"
        )
    return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32).reshape(shape))


def _check_apart(graph: Any, file: Path) -> None:
    """Raises CheckpointError for weights that share bytes of the second file."""
    beside = [tensor for tensor in graph.graph.initializer if tensor.external_data]
    if shared := overlap((_start(tensor, file), prod(tensor.dims) * 4, str(tensor.name)) for tensor in beside):
        raise CheckpointError(f"{file} is damaged: {' and '.join(shared)} share bytes of {DATA}; export it again")


def _beside(tensor: Any, file: Path, size: int) -> bytes:
    """The bytes of a weight in the second file, of which no other name is believed."""
    path, start = file.with_name(DATA), _start(tensor, file)
    try:
        with path.open("rb") as content:
            if start + size > path.stat().st_size:
                raise CheckpointError(f"{path} is cut short: {tensor.name} ends after it; fetch or export it again")
            content.seek(start)
            return content.read(size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; it belongs to {file.name}") from None


def _start(tensor: Any, file: Path) -> int:
    """The first byte of a weight in the second file. Raises CheckpointError for one that is elsewhere."""
    place = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    if place.get("location") != DATA or not place.get("offset", "0").isdecimal():
        raise CheckpointError(f"{file}: {tensor.name} is at {place}, not in {DATA}; it is damaged")
    return int(place.get("offset", "0"))


def _tokenizer(file: Path, config: GPTConfig) -> AnyTokenizer | None:
    path = file.with_name(TOKENIZER)
    if not path.is_file():
        return None
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} ids, the model {config.vocab_size}: it is another model's; "
            "put the one that was exported with it in its place"
        )
    return tokenizer
