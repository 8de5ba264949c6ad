"""Documents that are there more than once, token by token."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.cleaning.documents import DocumentTokens
from smallgpt.infrastructure.cleaning.hashes import Hashes, document_hashes, equal_runs, first_of_run

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Place = tuple[Literal["train", "validation"], int]
"""A split, and the number of a document in it."""
EXAMPLES = 5


@dataclass(frozen=True)
class Duplicates:
    """Which documents to keep so that nothing is there twice, and why the others may go."""

    keep_train: Mask
    keep_validation: Mask
    train: int
    """Training documents that another training document repeats."""
    across: int
    """Training documents that are in the validation split: the training copy goes, validation stays what it is."""
    validation: int
    """Validation documents that an earlier one repeats."""
    examples: tuple[tuple[Place, Place], ...]
    """Some pairs: the one that stays and the one that may go."""

    @property
    def removed(self) -> int:
        """Documents that may go."""
        return self.train + self.across + self.validation


def exact_duplicates(train: DocumentTokens, validation: DocumentTokens) -> Duplicates:
    """The first of equal documents stays; of copies in both splits, the one in validation.

    Memory: 8 bytes a document for its hash and 2 for marks, and 24 a copy. Different documents are taken for equal with
    the probability that `hashes` gives.
    """
    hashes = document_hashes(validation, train)
    numbers, firsts = _copies(hashes)
    return kept_firsts(len(validation), len(train), numbers, firsts)


def together(exact: Duplicates, near: Duplicates) -> Duplicates:
    """What two searches found, the second one among what the first one kept."""
    return Duplicates(
        keep_train=exact.keep_train & near.keep_train,
        keep_validation=exact.keep_validation & near.keep_validation,
        train=exact.train + near.train,
        across=exact.across + near.across,
        validation=exact.validation + near.validation,
        examples=(*exact.examples, *near.examples),
    )


def kept_firsts(validation: int, train: int, numbers: Numbers, firsts: Numbers) -> Duplicates:
    """Duplicates of documents numbered with validation's before train's: `numbers` (copies,) go for `firsts`, which stay."""
    keep = np.ones(validation + train, dtype=np.bool_)
    keep[numbers] = False
    across = (numbers >= validation) & (firsts < validation)
    within = int((numbers < validation).sum())

    def place(number: int) -> Place:
        return ("validation", number) if number < validation else ("train", number - validation)

    order = np.argsort(numbers)[:EXAMPLES]
    pairs = zip(firsts[order].tolist(), numbers[order].tolist(), strict=True)
    return Duplicates(
        keep_train=keep[validation:],
        keep_validation=keep[:validation],
        train=len(numbers) - within - int(across.sum()),
        across=int(across.sum()),
        validation=within,
        examples=tuple((place(first), place(number)) for first, number in pairs),
    )


def _copies(hashes: Hashes) -> tuple[Numbers, Numbers]:
    """Places whose value an earlier place has, and the first place that has it; in no order."""
    numbers, firsts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for at in equal_runs(hashes):
        first = first_of_run(hashes[at], at)
        numbers.append(at[first != at])
        firsts.append(first[first != at])
    return np.concatenate(numbers), np.concatenate(firsts)
