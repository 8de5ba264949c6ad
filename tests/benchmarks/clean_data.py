"""Copies and contamination: how many near copies are found, how many found ones are none, and how fast the checks are.

    python tests/benchmarks/clean_data.py DATA_FOLDER [--json FILE]

Every training document stands beside a copy of itself in which 0 to 11 tokens were changed, at random places to random ids;
the truth is the exact Jaccard similarity of their sets of 5-grams. Speeds are processor time of one thread on the folder's
training documents, taken 40 times over.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallgpt.infrastructure.cleaning.contamination import contamination
from smallgpt.infrastructure.cleaning.documents import DocumentTokens, one_stream
from smallgpt.infrastructure.cleaning.duplicates import exact_duplicates
from smallgpt.infrastructure.cleaning.near_duplicates import near_duplicates
from smallgpt.infrastructure.ngrams import ngram_baselines
from smallgpt.infrastructure.provenance import record
from smallgpt.infrastructure.token_store import TokenStore, open_store

THRESHOLDS = (0.7, 0.8, 0.9)
TIMES = 40
GRAM = 5
MOST_CHANGES = 12
Ids = npt.NDArray[Any]


def documents(store: TokenStore, split: str) -> DocumentTokens:
    return one_stream(store.tokens(split), store.folders[0].starts(split), store.end_of_text)


def each_document(store: TokenStore) -> Iterator[Ids]:
    """The training documents without their end-of-text."""
    starts, tokens = store.folders[0].starts("train"), store.tokens("train")
    for start, end in zip(starts, np.append(starts[1:], len(tokens)), strict=True):
        yield tokens[int(start) : int(end) - 1]


def planted(store: TokenStore) -> tuple[DocumentTokens, npt.NDArray[np.float64]]:
    """Each document and its changed copy, in turn; and how similar each pair is."""
    assert store.end_of_text is not None
    random, streams, truth = np.random.default_rng(0), [], []
    for document in each_document(store):
        copy = document.copy()
        changes = min(int(random.integers(0, MOST_CHANGES)), len(document))
        copy[random.choice(len(document), changes, replace=False)] = random.integers(0, store.vocab_size - 1, changes)
        ours, theirs = grams(document), grams(copy)
        truth.append(len(ours & theirs) / max(1, len(ours | theirs)))
        streams += [np.append(document, store.end_of_text), np.append(copy, store.end_of_text)]
    starts = np.cumsum([0, *map(len, streams)])[:-1]
    tokens = np.concatenate(streams).astype(store.tokens("train").dtype)
    return one_stream(tokens, starts, store.end_of_text), np.array(truth)


def grams(document: Ids) -> set[bytes]:
    return {document[at : at + GRAM].tobytes() for at in range(len(document) - GRAM + 1)}


def accuracy(store: TokenStore) -> Iterator[dict[str, float]]:
    pairs, truth = planted(store)
    nothing = one_stream(np.zeros(0, pairs.pieces[0].tokens[:0].dtype), np.zeros(0, np.int64), store.end_of_text)
    for threshold in THRESHOLDS:
        with tempfile.TemporaryDirectory() as place:
            found = near_duplicates(pairs, nothing, Path(place), threshold=threshold)
        gone, near = ~found.keep_train[1::2], truth >= threshold
        yield {
            "threshold": threshold,
            "recall": round(float(gone[near].mean()), 4),
            "precision": round(float(near[gone].mean()), 4),
            "found_0.05_above": round(float(gone[truth >= threshold + 0.05].mean()), 4),
            "found_0.1_below": round(float(gone[truth <= threshold - 0.1].mean()), 4),
            "originals_removed": int((~found.keep_train[::2]).sum()),
        }


def speeds(store: TokenStore) -> Iterator[dict[str, Any]]:
    train, validation = documents(store, "train"), documents(store, "validation")
    many = DocumentTokens(train.pieces * TIMES, train.end_of_text)
    tokens = TIMES * len(store.tokens("train"))
    lines = np.resize(store.tokens("train")[:], 4_000_000), np.resize(store.tokens("validation")[:], 500_000)
    with tempfile.TemporaryDirectory() as place:
        checks: dict[str, tuple[int, int, Callable[[], object]]] = {
            "equal documents": (tokens, len(many), lambda: exact_duplicates(many, validation)),
            "near copies": (tokens, len(many), lambda: near_duplicates(many, validation, Path(place))),
            "validation in training": (tokens, len(many), lambda: contamination(many, validation)),
            "n-gram lines": (len(lines[0]), 0, lambda: ngram_baselines(*lines, store.vocab_size)),
        }
        for check, (tokens, count, run) in checks.items():
            began = time.process_time()
            run()
            seconds = time.process_time() - began
            row = {"check": check, "seconds": seconds, "tokens_per_second": tokens / seconds}
            yield row | ({"documents_per_second": count / seconds} if count else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    store = open_store(arguments.folder)
    settings = {"documents": store.documents("train"), "tokens": len(store.tokens("train"))}
    figures = record(settings, [*accuracy(store), *speeds(store)])
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
