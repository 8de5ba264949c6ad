"""One stream over many parts: the same ids as without the borders, and none that the vocabulary has not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure import tokens as module
from smallgpt.infrastructure.tokens import Tokens, file_part, highest_id
from tests.infrastructure.streams import stream


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    size=st.integers(2, 300),
    borders=st.lists(st.integers(0, 300), max_size=12),
    length=st.integers(1, 40),
    numbers=st.lists(st.integers(0, 10_000), min_size=1, max_size=8),
)
def test_borders_do_not_show(size: int, borders: list[int], length: int, numbers: list[int]) -> None:
    ids = np.random.default_rng(size).integers(0, 2**16, size).astype(np.uint16)
    parts = stream(ids, sorted(min(border, size) for border in borders))  # equal borders: empty parts
    assert (len(parts), parts.nbytes) == (size, 2 * size)
    assert parts.dtype == np.uint16
    assert np.array_equal(parts[:], ids)
    low, high = sorted((numbers[0] % size, numbers[-1] % size))
    assert np.array_equal(parts[low:high], ids[low:high])
    length = min(length, size)
    starts = np.array([number % (size - length + 1) for number in numbers])
    found = parts.windows(starts, length)
    assert found.shape == (len(starts), length)
    assert np.array_equal(found, stream(ids).windows(starts, length))
    assert found.dtype == np.uint16


@pytest.mark.parametrize("borders", [[], [5, 12]])
def test_an_id_that_the_vocabulary_has_not_is_refused_where_it_is_read(borders: list[int]) -> None:
    ids = np.arange(20, dtype=np.uint16)
    ids[13] = 60_000
    tokens = stream(ids, borders, vocab_size=50)
    tokens[:13], tokens[14:], tokens.windows(np.array([0, 14]), 6)
    words = r"train\.bin: token id 60000 at position 13 .* vocabulary ends at 49.*\n.*smallgpt prepare verify memory"
    with pytest.raises(DataError, match=words):
        tokens[3:15]
    with pytest.raises(DataError, match=words):
        tokens.windows(np.array([0, 10, 4]), 5)


def test_files_are_mapped_when_they_are_read_and_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    mapped = module.mapped

    def counted(path: Path, dtype: str) -> module.Ids:
        opened.append(path.name)
        return mapped(path, dtype)

    monkeypatch.setattr(module, "mapped", counted)
    for number in range(4):
        np.arange(10 * number, 10 * number + 10, dtype="<u4").tofile(tmp_path / f"{number}.bin")
    tokens = Tokens([file_part(tmp_path / f"{number}.bin", "uint32", 10) for number in range(4)], "uint32", 40)
    assert opened == []
    assert tokens[18:22].tolist() == [18, 19, 20, 21]
    assert tokens.windows(np.array([12, 23]), 3).tolist() == [[12, 13, 14], [23, 24, 25]]
    assert opened == ["1.bin", "2.bin"]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0:3][0] = 1


def test_more_files_than_may_be_open_are_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_maps_at_once", lambda: 3)
    for number in range(10):
        np.full(5, number, dtype="<u2").tofile(tmp_path / f"{number}.bin")
    tokens = Tokens([file_part(tmp_path / f"{number}.bin", "uint16", 5) for number in range(10)], "uint16", 10)
    for _ in range(2):
        assert tokens[:].tolist() == np.repeat(np.arange(10), 5).tolist()
        assert tokens.windows(np.array([48, 2, 23]), 2)[:, 0].tolist() == [9, 0, 4]


def test_the_highest_id_is_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCANNED_AT_ONCE", 7)
    assert highest_id(np.array([3, 1, 4, 1, 5, 9, 2, 6, 11, 3], dtype=np.uint32)) == 11
