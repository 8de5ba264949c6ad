"""Our reading of GGUF's container, beside the gguf package's."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Value

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats.gguf_container import read_gguf

VALUES = {
    Value.UINT8: 200,
    Value.INT8: -100,
    Value.UINT16: 60_000,
    Value.INT16: -30_000,
    Value.UINT32: 4_000_000_000,
    Value.INT32: -2_000_000_000,
    Value.FLOAT32: 0.25,
    Value.BOOL: True,
    Value.STRING: "naïve 中文",
    Value.UINT64: 2**63,
    Value.INT64: -(2**62),
    Value.FLOAT64: 0.1,
}


def written(path: Path, kinds: tuple[Kind, ...] = (Kind.F32,)) -> Path:
    writer = gguf.GGUFWriter(path, "gpt2")
    for type_, value in VALUES.items():
        writer.add_key_value(f"one.{type_.name}", value, type_)
        writer.add_key_value(f"many.{type_.name}", [value] * 3, Value.ARRAY, type_)
    numbers = np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    for kind in kinds:
        writer.add_tensor(f"as.{kind.name}", gguf.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_every_kind_of_value_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    theirs = {field.name: field.contents() for field in gguf.GGUFReader(path).fields.values()}
    ours = read_gguf(path).metadata
    assert ours == {name: value for name, value in theirs.items() if not name.startswith("GGUF.")}
    assert ours["one.UINT64"] == 2**63
    assert ours["many.STRING"] == ["naïve 中文"] * 3


def test_every_kind_of_tensor_that_is_read_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", (Kind.F32, Kind.F16, Kind.Q8_0, Kind.BF16))
    file = read_gguf(path)
    for tensor in gguf.GGUFReader(path).tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(file.tensor(tensor.name).numpy(), expected), tensor.name


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_1, Kind.TQ1_0])
def test_a_kind_that_is_not_read_is_named(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    numbers = np.zeros((2, 256), dtype=np.float32)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tensor("t", gguf.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    name = "kind 34" if kind == Kind.TQ1_0 else kind.name
    with pytest.raises(CheckpointError, match=f"t is quantized as {name}; smallgpt reads F32, F16, Q8_0, BF16"):
        read_gguf(path).tensor("t")


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A few bytes a name could make any number of large tensors out of one."""
    path = written(tmp_path / "a.gguf", (Kind.F32, Kind.F16))
    content = path.read_bytes()
    name = b"as.F16"
    start = content.index(name) + len(name) + 4 + 2 * 8 + 4  # dimensions, both of them, kind
    path.write_bytes(content[:start] + struct.pack("<Q", 0) + content[start + 8 :])
    with pytest.raises(CheckpointError, match=r"the tensors as\.F16 and as\.F32 share bytes"):
        read_gguf(path)
