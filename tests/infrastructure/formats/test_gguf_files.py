"""GGUF files, beside what the gguf package reads and writes, and what GPT-2 in llama.cpp computes."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.formats import gguf_files
from smallgpt.infrastructure.formats.gguf_container import read_gguf
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer
from smallgpt.interfaces.cli import main
from smallgpt.interfaces.converting import export_model, import_model
from smallgpt.interfaces.opening import open_model, portable
from tests.infrastructure.formats.untrained import untrained

SHAPES: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"activation": "gelu_tanh"},
    {"n_layer": 1, "n_embd": 34, "block_size": 1},
    {"n_layer": 3, "vocab_size": 257},
    {"bias": False, "activation": "gelu_tanh", "vocab_size": 384, "n_embd": 16},
]
IDX = torch.arange(24).view(2, 12)


def logits(model: PortableModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.model()(IDX)
    return found


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def written(model: PortableModel, folder: Path, **options: Any) -> PortableModel:
    gguf_files.write(model, folder, **options)
    return gguf_files.read(folder)


def rewritten(path: Path, out: Path, more: dict[str, Any], without: str) -> Path:
    """A copy of a file by the package alone, as another program would write it, with more tensors and less metadata."""
    source = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "gpt2")
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name.startswith(without):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for name, tensor in ({tensor.name: np.array(tensor.data) for tensor in source.tensors} | more).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ours_to_gguf_to_ours_is_equal_to_the_bit(shape: dict[str, Any], tmp_path: Path) -> None:
    before = untrained(**shape)
    after = written(before, tmp_path)
    assert after.config == before.config
    assert after.weights.keys() == before.weights.keys()
    assert all(torch.equal(after.weights[name], tensor) for name, tensor in before.weights.items())
    assert after.tokenizer is not None
    assert before.tokenizer is not None
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.name == "untrained"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_proof_passes_and_tells_what_the_other_gelu_changes(shape: dict[str, Any], tmp_path: Path) -> None:
    conversion = export_model(untrained(**shape), "gguf", tmp_path / "out")
    assert conversion.exact
    exact_gelu = shape.get("activation") is None
    assert (conversion.change is not None) == exact_gelu
    assert any("tanh" in note for note in conversion.notes) == exact_gelu
    if conversion.change is not None:
        assert 1e-6 < conversion.change.max_difference < 0.1


def test_an_import_gives_back_the_exact_gelu_and_says_what_llama_cpp_makes_of_it(tmp_path: Path) -> None:
    model = untrained()
    export_model(model, "gguf", tmp_path / "there")
    conversion = import_model(tmp_path / "there" / "model.gguf", tmp_path / "back")
    assert (conversion.format, conversion.exact) == ("gguf", True)
    assert [note for note in conversion.notes if "tanh" in note]
    assert conversion.change is not None
    back = portable(open_model(tmp_path / "back"))
    assert torch.equal(logits(back), logits(model))


def test_the_package_finds_all_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    model = untrained(vocab_size=384)
    gguf_files.write(model, tmp_path)
    source = gguf.GGUFReader(tmp_path / "model.gguf")
    values = {field.name: field.contents() for field in source.fields.values()}
    expected = {
        "general.architecture": "gpt2",
        "general.name": "untrained",
        "general.file_type": 0,
        "gpt2.context_length": 16,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2,
        "gpt2.vocab_size": 384,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: values.get(key) for key in expected} == expected
    assert values["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    tokens = values["tokenizer.ggml.tokens"]
    assert tokens[32] == "Ġ"
    assert tokens[256:258] == ["<|endoftext|>", "[PAD257]"]
    assert values["tokenizer.ggml.token_type"] == [1] * 256 + [3] + [5] * 127
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in source.tensors}  # innermost first
    assert shapes["token_embd.weight"] == (32, 384)
    assert shapes["blk.1.ffn_up.weight"] == (32, 128)
    assert shapes["blk.1.ffn_down.weight"] == (128, 32)
    assert "output.weight" not in shapes


@pytest.mark.parametrize(("dtype", "kind"), [("f16", "F16"), ("q8_0", "Q8_0")])
def test_matrices_are_kept_as_asked_for_and_all_else_as_float32(dtype: Any, kind: str, tmp_path: Path) -> None:
    before = untrained()
    after = written(before, tmp_path, dtype=dtype)
    matrix = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors_of(tmp_path / "model.gguf").items():
        small = tensor.shape.size == 1 or name == "position_embd.weight"
        assert tensor.tensor_type.name == ("F32" if small else kind), name
    for name, weight in before.weights.items():
        kept = weight.dim() == 1 or name == "transformer.wpe.weight"
        expected = weight.numpy() if kept else gguf.dequantize(gguf.quantize(weight.numpy(), matrix), matrix)
        assert np.array_equal(after.weights[name].numpy(), expected), name


def test_a_width_that_q8_0_does_not_divide_is_kept_as_f16_and_said(tmp_path: Path) -> None:
    notes = gguf_files.write(untrained(n_embd=36), tmp_path, dtype="q8_0")
    assert "a width of 36 is no multiple of Q8_0's 32, so the matrices are F16" in notes
    kinds = {tensor.tensor_type.name for tensor in tensors_of(tmp_path / "model.gguf").values()}
    assert kinds == {"F32", "F16"}
    assert gguf_files.read(tmp_path).config.n_embd == 36


def test_numbers_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    model = untrained()
    model.weights["transformer.h.1.mlp.c_fc.weight"][3, 4] = 70_000
    with pytest.raises(
        ConfigError, match=r"--dtype f16 cannot hold transformer\.h\.1\.mlp\.c_fc\.weight's 70000; choose f32"
    ):
        export_model(model, "gguf", tmp_path / "out", dtype="f16")
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_program_has_gpt2s_gelu_and_may_store_the_head_twice(tmp_path: Path) -> None:
    before = untrained(activation="gelu_tanh")
    gguf_files.write(before, tmp_path)
    head = before.weights["transformer.wte.weight"].numpy()
    theirs = rewritten(tmp_path / "model.gguf", tmp_path / "theirs.gguf", {"output.weight": head}, "smallgpt.")
    assert torch.equal(logits(gguf_files.read(theirs)), logits(before))
    untied = rewritten(tmp_path / "model.gguf", tmp_path / "untied.gguf", {"output.weight": head + 1}, "smallgpt.")
    with pytest.raises(CheckpointError, match=r"untied\.gguf: its output head is a matrix of its own"):
        gguf_files.read(untied)


def test_bf16_is_read(tmp_path: Path) -> None:
    kind, table = gguf.GGMLQuantizationType.BF16, torch.randn(5, 32)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gpt2")
    writer.add_tensor("token_embd.weight", gguf.quantize(table.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert torch.equal(read_gguf(tmp_path / "a.gguf").tensor("token_embd.weight"), table.bfloat16().float())


# --- tokenizers


def texts() -> list[str]:
    return ["Once upon a time, there was a naïve dog.", "It's 17 o'clock!\n\n  \t Über 中文 🎉"] * 20


@pytest.mark.parametrize("vocab_size", [300, 384])
def test_a_bpe_comes_back_as_it_was_whatever_the_padding(vocab_size: int, tmp_path: Path) -> None:
    tokenizer = train_bpe(texts(), 300)
    after = written(untrained(vocab_size=vocab_size, tokenizer=tokenizer), tmp_path).tokenizer
    assert after is not None
    assert after.fingerprint == tokenizer.fingerprint


def test_special_tokens_stay_special(tmp_path: Path) -> None:
    bytes_ = byte_tokenizer().rules
    tokenizer = Tokenizer(bytes_.vocabulary, [], {"<|user|>": 257, "<|endoftext|>": 256})
    after = written(untrained(tokenizer=tokenizer), tmp_path).tokenizer
    assert after is not None
    assert after.specials == {"<|endoftext|>": 256, "<|user|>": 257}


def test_a_tokenizer_without_an_end_of_text_is_told_of(tmp_path: Path) -> None:
    endless = Tokenizer(byte_tokenizer().rules.vocabulary, [], {"<|user|>": 256})
    (note, _) = gguf_files.write(untrained(tokenizer=endless), tmp_path)
    assert "llama.cpp stops at id 11" in note


def test_no_tokenizer_and_a_table_of_characters_are_refused(tmp_path: Path) -> None:
    model = untrained()
    with pytest.raises(ConfigError, match=r"the model has no tokenizer, and llama\.cpp cannot answer without one"):
        gguf_files.write(PortableModel(model.config, model.weights), tmp_path)
    characters: Any = object()
    with pytest.raises(ConfigError, match="no tokenizer like this model's, a table of characters"):
        gguf_files.write(PortableModel(model.config, model.weights, characters), tmp_path)


# --- the command


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code, capsys.readouterr().err


def test_dtype_is_gguf_s_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf_files.write(untrained(), tmp_path)
    words = ["export", str(tmp_path), "--to", "seed", "--out", str(tmp_path / "out"), "--dtype", "f16"]
    assert refused(words, capsys) == (
        2,
        "smallgpt: --dtype f16 is for --to gguf; seed keeps float32, so leave it out\n",
    )
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path), "--to", "gguf", "--out", str(tmp_path / "out"), "--dtype", "f16"])
    assert left.value.code == 0
    assert "weights     equal" not in capsys.readouterr().out


def test_reading_needs_no_package_and_writing_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf_files.write(untrained(), tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert gguf_files.read(tmp_path).config.n_layer == 2
    words = ["export", str(tmp_path), "--to", "gguf", "--out", str(tmp_path / "out")]
    assert refused(words, capsys) == (2, "smallgpt: GGUF needs the package gguf: pip install 'smallgpt[gguf]'\n")
