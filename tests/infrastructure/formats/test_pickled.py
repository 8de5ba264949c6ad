"""Files of torch.save: tensors alone, whole, and nothing that runs."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import CheckpointError
from smallgpt.infrastructure.formats.pickled import load_plain, load_tensors

GOOD = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_tensors_come_without_the_prefixes_of_wrappers(prefix: str, new: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({f"{prefix}{name}": tensor for name, tensor in GOOD.items()}, path, _use_new_zipfile_serialization=new)
    found = load_tensors(path)
    assert found.keys() == GOOD.keys()
    assert all(torch.equal(found[name], GOOD[name]) for name in GOOD)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_code_does_not_run_and_is_named(new: bool, tmp_path: Path) -> None:
    path, proof = tmp_path / "x.pt", tmp_path / "proof"
    torch.save({**GOOD, "c": Payload(proof)}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=rf"would import {os.name}\.system, .*nothing in it was run") as refused:
        load_plain(path)
    assert not proof.exists()
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.nn.Linear(1, 1), r"would import torch\.nn\.modules\.linear\.Linear"),
        (torch.ones(2), "is no state_dict: it holds a Tensor"),
        ({**GOOD, "step": 5}, "its 'step' is a int, not a tensor"),
        ({**GOOD, "module.a": GOOD["a"]}, r"has tensors twice, with and without module\. or _orig_mod\."),
    ],
)
def test_what_is_no_state_dict(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02.", b"PK\x03\x04" + bytes(99), b"\x80\x02}q\x00."])
def test_what_is_no_file_of_torch(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt cannot be read: \S"):
        load_plain(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"y\.pt is missing"):
        load_plain(tmp_path / "y.pt")


def test_a_damaged_file_is_refused_or_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(GOOD, path)
    whole = path.read_bytes()

    @settings(max_examples=400)
    @given(at=st.integers(0, len(whole) * 8 - 1), cut=st.booleans())
    def stays_safe(at: int, cut: bool) -> None:
        place, bit = divmod(at, 8)
        bad = whole[:place] + (b"" if cut else bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        path.write_bytes(bad)
        try:
            found = load_tensors(path)
        except CheckpointError:
            return
        assert found.keys() == GOOD.keys()
        assert all(torch.equal(found[name], GOOD[name]) for name in GOOD)

    stays_safe()
