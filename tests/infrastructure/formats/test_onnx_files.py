"""ONNX files in ONNX Runtime and back, beside the formulas."""

import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from smallgpt.domain.errors import CheckpointError, ConfigError
from smallgpt.infrastructure.formats import onnx_files, plain
from smallgpt.infrastructure.formats.portable import PortableModel
from smallgpt.interfaces.cli import main
from smallgpt.interfaces.converting import export_model, import_model
from tests.infrastructure.formats.untrained import untrained

BLOCK = 16


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `write` filled."""
    folder = tmp_path_factory.mktemp("onnx")
    onnx_files.write(untrained(block_size=BLOCK), folder)
    return folder


def formulas(model: PortableModel) -> plain.Logits:
    return plain.reader(model.weights, plain.Layout({stem: stem for stem in plain.STEMS}), model.config).logits


def is_equal(one: PortableModel, other: PortableModel) -> bool:
    equal = all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    return one.config == other.config and one.weights.keys() == other.weights.keys() and equal


def test_ours_to_onnx_to_ours_is_equal_to_the_bit(exported: Path) -> None:
    before, after = untrained(block_size=BLOCK), onnx_files.read(exported)
    assert is_equal(before, after)
    assert after.tokenizer is not None
    assert before.tokenizer is not None
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint


def test_any_number_of_rows_and_of_tokens_up_to_the_context_is_computed(exported: Path) -> None:
    expected, model = formulas(untrained(block_size=BLOCK)), onnx_files.reader(exported)
    generator = torch.Generator().manual_seed(1)
    for length in range(1, BLOCK + 1):
        for rows in (1, 2, 5):
            idx = torch.randint(260, (rows, length), generator=generator)
            found = model.logits(idx)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected(idx), rtol=1e-5, atol=2e-5)


def test_the_graph_is_a_plain_one_that_tells_nothing_of_this_machine(exported: Path) -> None:
    graph = onnx.load(str(exported / "model.onnx"))
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 20)]
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("idx", "tensor(int64)", ["batch", "time"])
    assert (found.name, found.type, found.shape) == ("logits", "tensor(float)", ["batch", "time", 260])
    content = (exported / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path(__file__).parents[3]).encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"bias": False, "activation": "gelu_tanh"},
        {"block_size": 1, "n_layer": 1},
        {"block_size": 2, "n_embd": 34},
        {"n_layer": 3, "vocab_size": 384},
    ],
    ids=str,
)
def test_the_proof_passes_there_and_back(shape: dict[str, Any], tmp_path: Path) -> None:
    model = untrained(**shape)
    there = export_model(model, "onnx", tmp_path / "there")
    assert (there.exact, there.change) == (True, None)
    assert there.reader.startswith("ONNX Runtime")
    back = import_model(tmp_path / "there", tmp_path / "back")
    assert (back.exact, back.change) == (True, None)


def test_weights_too_large_for_one_file_go_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_files, "LARGEST", 1000)
    model = untrained(n_layer=1)
    onnx_files.write(model, tmp_path)
    assert capfd.readouterr() == ("", ""), "the exporter's remarks are for its developers"
    assert (tmp_path / "model.onnx.data").stat().st_size > 60_000
    assert is_equal(onnx_files.read(tmp_path), model)
    idx = torch.arange(12).view(2, 6)
    torch.testing.assert_close(onnx_files.reader(tmp_path).logits(idx), formulas(model)(idx), rtol=1e-5, atol=2e-5)
    content = (tmp_path / "model.onnx.data").read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"model\.onnx\.data is cut short: lm_head"):
        onnx_files.read(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(content)
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "0" if entry.key == "offset" else entry.value
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(CheckpointError, match=r"share bytes of model\.onnx\.data; export it again"):
        onnx_files.read(tmp_path)
    (tmp_path / "model.onnx").write_bytes(whole)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(
        CheckpointError, match=r"model\.onnx\.data cannot be read: No such file.*belongs to model\.onnx"
    ):
        onnx_files.read(tmp_path)


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd", "other.data"])
def test_no_other_file_is_opened_whatever_the_graph_says(location: str, exported: Path, tmp_path: Path) -> None:
    graph = onnx.load(str(exported / "model.onnx"))
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "a.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(CheckpointError, match=r"not in model\.onnx\.data; it is damaged"):
        onnx_files.read(tmp_path)


def test_a_graph_of_another_tool_is_refused_with_the_reason(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "a.onnx"))
    with pytest.raises(CheckpointError, match="a graph does not tell which model it computes;\nimport the files"):
        onnx_files.read(tmp_path)


def test_a_graph_that_computes_another_model_is_not_taken_over(exported: Path, tmp_path: Path) -> None:
    graph = onnx.load(str(exported / "model.onnx"))
    (tmp_path / "there").mkdir()
    for node in graph.graph.node:
        if node.op_type == "Gelu":
            node.attribute[0].s = b"tanh"
    onnx.save(graph, str(tmp_path / "there" / "model.onnx"))
    with pytest.raises(CheckpointError, match=r"was not written: logits of ONNX Runtime .* differ"):
        import_model(tmp_path / "there", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"ONNX needs the package {name}: pip install 'smallgpt\[onnx\]'"):
        export_model(untrained(), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_every_command_takes_the_file(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "generate",
        str(exported / "model.onnx"),
        "--prompt",
        "Once",
        "--max-new-tokens",
        "3",
        "--temperature",
        "0",
    ]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("Once")
