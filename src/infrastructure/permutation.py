"""A shuffle without a table: a keyed permutation of 0..n-1 that gives any one place in constant memory.

A Feistel network permutes a power of four that holds n; places that fall outside are permuted again until they fall
inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Integers only, so the order is
the same on every machine and with every version of numpy.
"""

import numpy as np
import numpy.typing as npt

UInts = npt.NDArray[np.uint64]
ROUNDS = 4


def permute(index: npt.NDArray[np.int64], n: int, key: UInts) -> npt.NDArray[np.int64]:
    """Where each index (rows,) in 0..n-1 goes under the permutation of its key (rows,). For a fixed key a bijection."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    place = _feistel(index.astype(np.uint64), key, half)
    while (outside := place >= n).any():
        place[outside] = _feistel(place[outside], key[outside], half)
    return place.astype(np.int64)


def mix(value: UInts) -> UInts:
    """A bijection of 64-bit integers that spreads every bit: SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _feistel(place: UInts, key: UInts, half: np.uint64) -> UInts:
    """A permutation of 0..4**half - 1: each round changes one half of the bits by a function of the other."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = place >> half, place & mask
    for turn in range(ROUNDS):
        left, right = right, left ^ (mix(mix(key + np.uint64(turn)) ^ right) & mask)
    return (left << half) | right
