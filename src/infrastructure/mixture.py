"""Several views dealt out by weight, and the view of a run's data folders."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from smallgpt.domain.errors import ConfigError
from smallgpt.infrastructure.packing import Packed
from smallgpt.infrastructure.permutation import key_of, permute
from smallgpt.infrastructure.token_store import DataFolder, TokenStore
from smallgpt.infrastructure.tokens import Places
from smallgpt.infrastructure.windows import Anywhere, FromDocuments, Rows, View

DEALT = 4096
"""Samples in which every view has its exact share."""


class Mixture:
    """Every block of DEALT samples has the same number of each view's, in an order of its own.

    Each view's own samples are taken from its first one on: as good as it would be alone, without replacement.
    """

    def __init__(self, views: Sequence[View], weights: Sequence[float], seed: int) -> None:
        self.views, self.block_size = tuple(views), views[0].block_size
        self.shares = shares(weights)
        self._end = np.cumsum(self.shares)
        self._seed = seed + 2**63  # views have the seeds below

    def rows(self, sample: Places) -> Rows:
        """See windows.View."""
        inputs = np.empty((len(sample), self.block_size), dtype=np.int64)
        targets = np.empty_like(inputs)
        chosen, own = self.deal(sample)
        for number, view in enumerate(self.views):
            mine = chosen == number
            if mine.any():
                inputs[mine], targets[mine] = view.rows(own[mine])
        return inputs, targets

    def deal(self, sample: Places) -> tuple[Places, Places]:
        """(n,) each: which view a sample comes from, and its number there."""
        block, index = sample // DEALT, sample % DEALT
        place = permute(index, DEALT, key_of(self._seed, block))
        chosen = np.searchsorted(self._end, place, side="right")
        share = self.shares[chosen]
        return chosen, block * share + place - (self._end[chosen] - share)


def shares(weights: Sequence[float]) -> Places:
    """(len(weights),): samples of DEALT for each weight, by the largest remainder. Raises ConfigError when one gets none."""
    exact = DEALT * np.asarray(weights, dtype=np.float64) / sum(weights)
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")  # the first of equal ones
    whole[largest[: DEALT - int(whole.sum())]] += 1
    if not whole.all():
        raise ConfigError(
            f"data.mixture: a weight of {weights[int(whole.argmin())]:g} among {sum(weights):g} is less than one sample "
            f"in {DEALT:,}; raise it, or leave its folder out"
        )
    return whole


def training_view(
    store: TokenStore,
    weights: Sequence[float],
    windows: Literal["anywhere", "documents", "packed"],
    *,
    block_size: int,
    seed: int,
) -> View:
    """What the model sees of a store's training split; weights are those of its folders, in their order."""
    # Folders of one size must not be read in one order: each has a seed of its own.
    views = [
        _view(folder, windows, block_size=block_size, seed=seed + (number << 32))
        for number, folder in enumerate(store.folders)
    ]
    return views[0] if len(views) == 1 else Mixture(views, weights, seed)


def _view(folder: DataFolder, windows: str, *, block_size: int, seed: int) -> View:
    tokens = folder.tokens("train")
    if windows == "anywhere":
        return Anywhere(tokens, block_size=block_size, seed=seed)
    starts = folder.starts("train")
    tokenizer = folder.manifest.tokenizer
    if tokenizer is None or tokenizer.end_of_text is None:
        raise ConfigError(
            f"{folder.path} has no end-of-text, which --data.windows {windows} puts before a document; "
            "train with --data.windows anywhere, or prepare the data again"
        )
    kind = FromDocuments if windows == "documents" else Packed
    return kind(tokens, starts, end_of_text=tokenizer.end_of_text, block_size=block_size, seed=seed)
