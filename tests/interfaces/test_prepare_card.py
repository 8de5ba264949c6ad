"""`smallgpt prepare card`: two files in a data folder, and the essentials on the screen."""

import json
from pathlib import Path

import numpy as np
import pytest

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.adopting import adopt_bins
from smallgpt.interfaces.card_plot import plot
from smallgpt.interfaces.cli.prepare_card import card
from tests.infrastructure.texts import write_texts

STORIES = [
    f"Story {at}. " + f"The {at}th cat sat on mat {at * at} and ran after dog {at + 7}. " * 3 for at in range(60)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data with one training document twice, one almost twice, and one in both splits."""
    train = [*STORIES[:50], STORIES[3], STORIES[4].replace("Story", "Stary"), STORIES[55]]
    write_texts(train, STORIES[50:], tmp_path / "data", name="stories")
    return tmp_path / "data"


def test_a_card_is_written_into_the_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in folder.iterdir()}
    card(folder)
    words = capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} - before == {"dataset.md", "lengths.png"}
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "1 training documents repeat one, 1 are in validation; 0 validation documents repeat one" in words
    assert words.endswith(f"wrote {folder / 'dataset.md'} and lengths.png\n")
    text = (folder / "dataset.md").read_text(encoding="utf-8")
    assert "| documents | 53 | 10 |" in text
    assert "| train 3 | train 50 | Story 3. The 3th cat sat |" in text


def test_copies_and_contamination_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rensa")
    card(folder, near_duplicates=True, contamination=True, json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["exact_duplicates"] == {
        "train": 1,
        "train_in_validation": 1,
        "validation": 0,
        "examples": [[["validation", 5], ["train", 52]], [["train", 3], ["train", 50]]][::-1],
    }
    assert [["train", 4], ["train", 51]] in facts["near_duplicates"]["examples"]
    assert facts["contamination"]["worst"][0] == {"document": 5, "share": 1.0}
    assert not list(folder.glob(".near-*"))


def test_the_same_folder_gives_the_same_card(folder: Path) -> None:
    card(folder, contamination=True)
    first = [(folder / name).read_bytes() for name in ("dataset.md", "lengths.png")]
    card(folder, contamination=True)
    assert first == [(folder / name).read_bytes() for name in ("dataset.md", "lengths.png")]


def test_adopted_tokens_tell_their_documents_by_end_of_text(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopt_bins(folder, tmp_path / "adopted")
    card(tmp_path / "adopted", json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["documents"] == 53
    assert facts["exact_duplicates"]["train"] == 1


def test_tokens_of_an_unknown_tokenizer_have_a_card_without_documents(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopt_bins(folder, tmp_path / "unknown", tokenizer="none")
    card(tmp_path / "unknown")
    assert "dataset.md\n" in capsys.readouterr().out
    assert not (tmp_path / "unknown" / "lengths.png").exists()
    with pytest.raises(DataError, match="do not tell where documents begin"):
        card(tmp_path / "unknown", contamination=True)


def test_a_folder_that_cannot_be_written_is_said_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallgpt.infrastructure import files

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(DataError, match=r"the card cannot be written \(No space left on device\)"):
        card(folder)


@pytest.mark.parametrize("lengths", [[1], [0, 0], [5, 5, 5], [3, 2_000_000], list(range(1, 4000))])
def test_any_lengths_can_be_drawn(lengths: list[int], tmp_path: Path) -> None:
    arrays = {"train": np.array(lengths, dtype=np.uint32), "validation": np.array([7], dtype=np.uint32)}
    plot(arrays, (128, 2048), tmp_path / "lengths.png")
    assert [path.name for path in tmp_path.iterdir()] == ["lengths.png"]
