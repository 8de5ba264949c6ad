"""Damaged, foreign and lying GGUF and ONNX files: one or two lines with the value, and never a huge allocation."""

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import torch

from smallgpt.domain.errors import CheckpointError, SmallGPTError
from smallgpt.infrastructure.formats import gguf_files, onnx_files
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer
from smallgpt.interfaces.cli import main
from tests.infrastructure.formats.untrained import untrained

FORMATS = {"gguf": gguf_files, "onnx": onnx_files}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each format."""
    files = {}
    for name, module in FORMATS.items():
        folder = tmp_path_factory.mktemp(name)
        module.write(untrained(n_layer=1), folder)
        files[name] = (folder / module.FILE).read_bytes()
    return files


def examined(module: ModuleType, path: Path) -> str:
    """What is said of a file, "" where nothing is wrong with it; anything but our own errors passes through."""
    try:
        module.read(path)
        module.reader(path).logits(torch.tensor([[1, 2, 3]]))
    except SmallGPTError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_refused_by_name(name: str, good: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"cut.{name}"
    size = len(good[name])
    for length in [0, 1, 3, 4, 8, 23, 24, 100, *range(1000, size, size // 60), size - 50, size - 1]:
        path.write_bytes(good[name][:length])
        said = examined(FORMATS[name], path)
        assert str(path) in said, length
        assert len(said.splitlines()) <= 2


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits_are_refused_or_harmless_and_never_a_traceback(
    name: str, good: dict[str, bytes], tmp_path: Path
) -> None:
    pick, path = random.Random(0), tmp_path / f"flipped.{name}"
    structure = 8000 if name == "gguf" else len(good[name])  # a GGUF file's numbers are all at its end
    for _ in range(100):
        content = bytearray(good[name])
        content[pick.randrange(structure)] ^= 1 << pick.randrange(8)
        path.write_bytes(content)
        assert len(examined(FORMATS[name], path).splitlines()) <= 2


def test_a_lying_length_reserves_nothing(good: dict[str, bytes], tmp_path: Path) -> None:
    """Wherever a length can stand, a huge one."""
    path = tmp_path / "lying.gguf"
    end = good["gguf"].index(b"token_embd.weight")
    tracemalloc.start()
    try:
        for place in [8, 16, *range(24, end, 31)]:
            content = bytearray(good["gguf"])
            content[place : place + 8] = struct.pack("<Q", 2**60 + 1)
            path.write_bytes(content)
            examined(gguf_files, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1, old
    return content.replace(old, new)


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def value(key: str, kind: int, number: int) -> bytes:
    return key.encode() + struct.pack("<II", kind, number)


NAMES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "architecture": (
        lambda c: changed(c, b"architecture\x08\0\0\0" + text("gpt2"), b"architecture\x08\0\0\0" + text("bert")),
        "is a model of the architecture 'bert'; smallgpt's models are 'gpt2'",
    ),
    "blocks": (
        lambda c: changed(c, value("gpt2.block_count", 4, 1), value("gpt2.block_count", 4, 2**31)),
        "tells of 2147483648 blocks, and holds 16 tensors",
    ),
    "one block more": (
        lambda c: changed(c, value("gpt2.block_count", 4, 1), value("gpt2.block_count", 4, 2)),
        r"transformer\.h\.1\..* and 9 more are missing",
    ),
    "width": (
        lambda c: changed(c, value("gpt2.embedding_length", 4, 32), value("gpt2.embedding_length", 4, 2**31)),
        "its tables are not of the context of 16 and the width of 2147483648",
    ),
    "context": (
        lambda c: changed(c, value("gpt2.context_length", 4, 16), value("gpt2.context_length", 4, 17)),
        "its tables are not of the context of 17 and the width of 32",
    ),
    "heads": (
        lambda c: changed(c, value("gpt2.attention.head_count", 4, 2), value("gpt2.attention.head_count", 4, 5)),
        r"n_embd \(32\) must be a multiple of n_head \(5\)",
    ),
    "epsilon": (
        lambda c: changed(c, struct.pack("<If", 6, 1e-5), struct.pack("<If", 6, 1e-6)),
        "its layer norms add 9.99.*e-07; smallgpt's add 1e-05",
    ),
    "missing key": (lambda c: changed(c, b"gpt2.block_count", b"gpt2.block_cound"), "has no gpt2.block_count"),
    "missing tensor": (lambda c: changed(c, b"blk.0.attn_qkv.bias", b"blk.0.attn_qkv.bios"), "c_attn.bias is missing"),
    "no position table": (lambda c: changed(c, b"position_embd", b"position_embe"), "no matrix position_embd.weight"),
    "version": (lambda c: b"GGUF\x01" + c[5:], "is GGUF of version 1; smallgpt reads versions 2 and 3"),
    "big-endian": (lambda c: b"GGUF\0\0\0\x03" + c[8:], "perhaps a big-endian file"),
    "no GGUF": (lambda c: b"GGML" + c[4:], "is no GGUF file: it does not begin with GGUF"),
    "sentencepiece": (
        lambda c: changed(c, b"ggml.model\x08\0\0\0" + text("gpt2"), b"ggml.model\x08\0\0\0" + text("t5xx")),
        "a tokenizer of the kind 't5xx', not a byte-level BPE",
    ),
    "splitting": (
        lambda c: changed(c, text("gpt-2"), text("qwen2")),
        "its tokenizer splits text as 'qwen2' does",
    ),
    "not finite": (lambda c: c[:-4] + struct.pack("<f", float("nan")), "holds numbers that are not finite"),
    "biases of none": (
        lambda c: changed(c, b"smallgpt.bias\x07\0\0\0\x01", b"smallgpt.bias\x07\0\0\0\0"),
        "smallgpt.bias is false, but .*bias is not zero",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_wrong_gguf_file_is_refused_with_what_is_wrong(case: str, good: dict[str, bytes], tmp_path: Path) -> None:
    change, words = NAMES[case]
    path = tmp_path / "wrong.gguf"
    path.write_bytes(change(good["gguf"]))
    with pytest.raises(CheckpointError, match=f"(?s)wrong.gguf.*{words}"):
        gguf_files.read(path)


def test_a_quantized_llama_is_refused_for_being_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = gguf.GGUFWriter(tmp_path / "llama.gguf", "llama")
    kind = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("token_embd.weight", gguf.quantize(np.zeros((4, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SystemExit) as left:
        main(["import", str(tmp_path / "llama.gguf"), "--out", str(tmp_path / "out")])
    assert left.value.code == 4
    path = tmp_path / "llama.gguf"
    assert capsys.readouterr().err == (
        f"smallgpt: {path} is a model of the architecture 'llama'; smallgpt's models are 'gpt2'\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_with_two_files_asks_for_one(name: str, tmp_path: Path) -> None:
    for letter in "ab":
        (tmp_path / f"{letter}.{name}").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"holds 2 {name.upper()} files; name one, such as .*a\.{name}"):
        FORMATS[name].read(tmp_path)


def onnx_with(content: bytes, change: Callable[[Any], None]) -> bytes:
    model = onnx.load_from_string(content)
    change(model)
    changed_content: bytes = model.SerializeToString()
    return changed_content


def config_text(old: str, new: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        assert old in model.metadata_props[0].value
        model.metadata_props[0].value = model.metadata_props[0].value.replace(old, new)

    return change


def weight(name: str, change: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda model: change(next(tensor for tensor in model.graph.initializer if tensor.name == name))


LN_F = "transformer.ln_f.bias"
GRAPHS: dict[str, tuple[Callable[[Any], None], str]] = {
    "no JSON": (config_text("{", "["), "smallgpt.config in its metadata is no JSON"),
    "a list": (lambda model: setattr(model.metadata_props[0], "value", "[]"), r"is \[\], not a configuration"),
    "a key": (config_text("bias", "bios"), "wrong.onnx is no model of smallgpt: bios"),
    "blocks": (config_text('"n_layer":1', '"n_layer":1000000000'), "tells of 1000000000 blocks"),
    "width": (config_text('"n_embd":32', '"n_embd":4611686018427387904'), "embeddings of .*4611686018427387904"),
    "context": (config_text('"block_size":16', '"block_size":17'), r"\(17, 32\).*\(16, 32\)"),
    "missing": (weight(LN_F, lambda tensor: setattr(tensor, "name", "other")), "transformer.ln_f.bias is missing"),
    "kind": (weight(LN_F, lambda tensor: setattr(tensor, "data_type", 10)), "is of kind 10, not float32"),
    "short": (weight(LN_F, lambda t: setattr(t, "raw_data", t.raw_data[:-4])), "has 124 bytes instead of 128"),
    "long": (weight(LN_F, lambda tensor: tensor.dims.append(2**40)), "has 128 bytes instead of 140,737,488,355,328"),
    "negative": (weight(LN_F, lambda tensor: tensor.dims.append(-1)), r"\(32, -1\) is of kind 1"),
    "surplus": (
        lambda model: model.graph.initializer.add(name="x", data_type=1, dims=[1], raw_data=b"\0" * 4),
        "x is unknown to a GPT-2",
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_wrong_onnx_file_is_refused_with_what_is_wrong(case: str, good: dict[str, bytes], tmp_path: Path) -> None:
    change, words = GRAPHS[case]
    path = tmp_path / "wrong.onnx"
    path.write_bytes(onnx_with(good["onnx"], change))
    with pytest.raises(CheckpointError, match=f"(?s)wrong.onnx.*{words}"):
        onnx_files.read(path)


def test_a_graph_that_does_not_run_is_refused(good: dict[str, bytes], tmp_path: Path) -> None:
    def rename(model: Any) -> None:
        model.graph.node[5].op_type = "NoSuchOperator"

    (tmp_path / "a.onnx").write_bytes(onnx_with(good["onnx"], rename))
    with pytest.raises(CheckpointError, match=r"a\.onnx does not run: .*NoSuchOperator"):
        onnx_files.reader(tmp_path)


def test_the_tokenizer_of_another_model_is_refused(good: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(good["onnx"])
    specials = {f"<|{number}|>": number for number in range(256, 400)}
    Tokenizer(byte_tokenizer().rules.vocabulary, [], specials).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 400 ids, the model 260: it is another model's"):
        onnx_files.read(tmp_path)
