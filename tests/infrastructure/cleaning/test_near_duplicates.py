"""Near copies are found about as often as the mathematics says, and nothing else is."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.cleaning.duplicates import exact_duplicates
from smallgpt.infrastructure.cleaning.near_duplicates import PLACES, NearDuplicates, near_duplicates, rows_for
from tests.infrastructure.cleaning.made import split_of

pytest.importorskip("rensa")


def grams(text: Sequence[int]) -> set[tuple[int, ...]]:
    return {tuple(text[at : at + 5]) for at in range(len(text) - 4)}


def jaccard(left: Sequence[int], right: Sequence[int]) -> float:
    a, b = grams(left), grams(right)
    return len(a & b) / len(a | b)


def random_text(length: int, seed: int) -> list[int]:
    texts: list[int] = np.random.default_rng(seed).integers(0, 5000, length).tolist()
    return texts


def changed(text: list[int], places: int, seed: int) -> list[int]:
    """The text with some tokens replaced, far apart from each other."""
    copy, generator = list(text), np.random.default_rng(seed)
    for at in np.linspace(5, len(text) - 6, places).astype(int):
        copy[at] = int(generator.integers(5000, 6000))
    return copy


def found_in(
    folder: Path, train: list[list[int]], validation: list[list[int]], threshold: float = 0.8
) -> NearDuplicates:
    return near_duplicates(split_of(train, pieces=2), split_of(validation), folder, threshold=threshold)


def test_planted_near_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    """200 tokens of which 1 to 12 are changed: similarities from 0.95 to 0.53, on both sides of the threshold."""
    train, planted = [random_text(200, seed) for seed in range(600)], dict[int, float]()
    for seed in range(0, 600, 2):
        train[seed + 1] = changed(train[seed], 1 + seed // 2 % 12, 1000 + seed)
        planted[seed + 1] = jaccard(train[seed], train[seed + 1])
    found = found_in(tmp_path, train, [random_text(200, 5000)])
    gone = set(np.flatnonzero(~found.keep_train).tolist())
    assert gone <= set(planted), "unrelated documents stay"
    sure = {number for number, similarity in planted.items() if similarity >= 0.88}
    different = {number for number, similarity in planted.items() if similarity <= 0.68}
    assert len(sure) >= 50
    assert len(different) >= 50
    assert sure <= gone
    assert not different & gone
    positive = {number for number, similarity in planted.items() if similarity >= 0.8}
    assert len(gone & positive) / len(positive) > 0.85  # recall and precision, the doubtful ones near 0.8 included
    assert len(gone & positive) / len(gone) > 0.85
    assert found.clusters == found.train == found.removed == len(gone)


def test_a_cluster_keeps_its_first_and_validation_before_training(tmp_path: Path) -> None:
    a, b, c = (random_text(300, seed) for seed in range(3))
    train = [changed(a, 1, 1), b, changed(b, 1, 2), changed(a, 2, 3), c]
    validation = [random_text(300, 9), a, changed(a, 1, 4)]
    found = found_in(tmp_path, train, validation)
    assert found.keep_train.tolist() == [False, True, False, False, True]
    assert found.keep_validation.tolist() == [True, True, False]
    assert (found.train, found.across, found.validation, found.clusters) == (1, 2, 1, 2)
    assert (("validation", 1), ("train", 0)) in found.examples


def test_similarity_is_chained(tmp_path: Path) -> None:
    chain = [random_text(400, 0)]
    for seed in range(1, 8):
        chain.append(changed(chain[-1][7:] + random_text(7, 50 + seed), 1, seed))
    assert jaccard(chain[0], chain[-1]) < 0.8 < min(map(jaccard, chain, chain[1:]))
    found = found_in(tmp_path, chain, [random_text(200, 99)])
    assert found.keep_train.tolist() == [True] + [False] * 7
    assert found.clusters == 1


def test_the_same_result_every_time_and_in_every_cut(tmp_path: Path) -> None:
    train = [changed(random_text(100, seed % 40), seed // 40, seed) for seed in range(120)]
    once = found_in(tmp_path, train, train[:3])
    whole = near_duplicates(split_of(train), split_of(train[:3]), tmp_path)
    assert once.keep_train.tolist() == whole.keep_train.tolist()
    assert once.examples == whole.examples


def test_short_documents_are_left_to_the_exact_comparison(tmp_path: Path) -> None:
    found = found_in(tmp_path, [[1, 2, 3, 4], [1, 2, 3, 4], [5]], [[1, 2, 3, 4]])
    assert found.removed == found.clusters == 0


def test_what_the_exact_comparison_found_is_left_out(tmp_path: Path) -> None:
    text = random_text(50, 0)
    train, validation = split_of([text, text, changed(text, 1, 1)]), split_of([random_text(50, 7)])
    exact = exact_duplicates(train, validation)
    found = near_duplicates(train, validation, tmp_path, exact=exact, threshold=0.7)
    assert found.keep_train.tolist() == [True, True, False]
    assert (exact.keep_train & found.keep_train).tolist() == [True, False, False]


@pytest.mark.parametrize(("threshold", "rows"), [(0.5, 3), (0.7, 4), (0.8, 6), (0.9, 10), (1.0, 128)])
def test_bands_let_documents_at_the_threshold_meet(threshold: float, rows: int) -> None:
    assert rows_for(threshold) == rows
    assert 1 - (1 - threshold**rows) ** (PLACES // rows) >= 0.99


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_impossible_thresholds(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        found_in(tmp_path, [[1]], [[2]], threshold=threshold)


def test_without_the_library_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ConfigError, match=r"pip install 'smallgpt\[clean\]'"):
        found_in(tmp_path, [[1]], [[2]])
