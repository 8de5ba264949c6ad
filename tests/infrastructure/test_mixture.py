"""Several folders by weight: exact shares, nothing twice, and any number of processes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.adopting import adopt_bins
from smallgpt.infrastructure.mixture import DEALT, Mixture, shares, training_view
from smallgpt.infrastructure.token_store import open_store
from smallgpt.infrastructure.windows import Anywhere, Batches
from tests.infrastructure.streams import stream
from tests.infrastructure.texts import write_texts


def mixture(*weights: float, seed: int = 5) -> Mixture:
    """Views of streams whose ids tell them apart: those of number k begin at 100,000 k."""
    views = [
        Anywhere(
            stream(np.arange(100_000 * k, 100_000 * k + 40_001, dtype=np.uint32)), block_size=8, seed=seed + (k << 32)
        )
        for k in range(len(weights))
    ]
    return Mixture(views, weights, seed)


@pytest.mark.parametrize(
    ("weights", "dealt"),
    [
        ((0.7, 0.3), [2867, 1229]),
        ((7, 3), [2867, 1229]),
        ((1, 1, 1), [1366, 1365, 1365]),
        ((0.9999, 0.0001 * 2.5), [4095, 1]),
    ],
)
def test_shares_are_exact_in_every_block(weights: tuple[float, ...], dealt: list[int]) -> None:
    assert shares(weights).tolist() == dealt
    mixed = mixture(*weights)
    for block in (0, 1, 7):
        chosen, _ = mixed.deal(np.arange(block * DEALT, (block + 1) * DEALT))
        assert [Counter(chosen.tolist())[k] for k in range(len(weights))] == dealt


def test_each_folder_is_read_as_it_would_be_alone() -> None:
    mixed = mixture(0.7, 0.3)
    chosen, own = mixed.deal(np.arange(3 * DEALT))
    for k in (0, 1):
        mine = own[chosen == k]
        assert np.array_equal(np.sort(mine), np.arange(len(mine)))  # the first ones, each of them once
    inputs, targets = mixed.rows(np.arange(64))
    assert np.array_equal(inputs // 100_000, np.repeat(chosen[:64, None], 8, axis=1))
    assert np.array_equal(targets, inputs + 1)
    assert 1 < len(set(chosen[:64].tolist())) < 64
    assert (np.diff(chosen[:DEALT]) != 0).sum() > DEALT / 4  # well mixed, not one after the other


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_any_number_of_processes_sees_the_same_mixture(processes: int) -> None:
    found = Batches(mixture(0.5, 0.3, 0.2), 24)
    for step in (0, 170, 171):  # around the end of a block of samples
        whole = found.rows(step, range(24))
        for rank in range(processes):
            x, _ = found.rows(step, range(rank, 24, processes))
            assert torch.equal(x, whole[0][rank::processes])


def test_a_weight_of_less_than_a_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a weight of 1e-05 among 1.* one sample in 4,096"):
        shares((1.0, 1e-5))


# --- folders

TEXTS = [f"Story {n}: once upon a time there was a dog." for n in range(60)]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    write_texts(TEXTS, TEXTS[:4], tmp_path / "a", name="a")
    write_texts([text.upper() for text in TEXTS], TEXTS[4:7], tmp_path / "b", name="b")
    return tmp_path / "a", tmp_path / "b"


def test_folders_are_one_store(folders: tuple[Path, Path]) -> None:
    store, (a, b) = open_store(*folders), (open_store(folder) for folder in folders)
    for split in ("train", "validation"):
        assert store.tokens(split)[:].tolist() == [*a.tokens(split)[:].tolist(), *b.tokens(split)[:].tolist()]
        assert store.text_bytes(split) == (a.text_bytes(split) or 0) + (b.text_bytes(split) or 0)
    assert store.documents("validation") == 7
    assert store.sha256("train") not in (a.sha256("train"), b.sha256("train"))
    assert store.baselines == {} != a.baselines
    assert store.name == f"{folders[0]} + {folders[1]}"


@pytest.mark.parametrize("windows", ["anywhere", "documents", "packed"])
def test_every_kind_of_row_can_be_mixed(windows: str, folders: tuple[Path, Path]) -> None:
    view = training_view(open_store(*folders), (3, 1), windows, block_size=16, seed=1)  # type: ignore[arg-type]
    inputs, _ = view.rows(np.arange(DEALT))
    shouted = [bytes(i for i in row if i < 256).decode().isupper() for row in inputs.tolist()]
    assert sum(shouted) >= DEALT // 4  # a whole quarter of them, and windows of digits alone count as neither
    assert sum(shouted) < DEALT // 3
    one = training_view(open_store(folders[0]), (), windows, block_size=16, seed=1)  # type: ignore[arg-type]
    assert one.rows(np.arange(3))[0].shape == (3, 16)


def test_folders_of_different_tokenizers_are_not_mixed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_texts(TEXTS, TEXTS[:4], tmp_path / "c", "bpe", name="c")
    with pytest.raises(DataError, match=r"a and .*c were made with different tokenizers \(bytes \w+, bpe \w+\)"):
        open_store(folders[0], tmp_path / "c")
    (tmp_path / "bins").mkdir()
    for name in ("train.bin", "validation.bin"):
        (tmp_path / "bins" / name).write_bytes((folders[1] / name).read_bytes())
    adopt_bins(tmp_path / "bins", tmp_path / "d", tokenizer="none")
    with pytest.raises(DataError, match=r"d does not say which tokenizer made its tokens, so .*a and .*d cannot"):
        open_store(folders[0], tmp_path / "d")
    with pytest.raises(ConfigError, match=r"d does not say where documents start; .*--data.windows anywhere"):
        training_view(open_store(tmp_path / "d"), (), "packed", block_size=8, seed=0)
