"""A shuffle without a table: a keyed permutation of 0..n-1 that gives any one place in constant memory.

A Feistel network permutes a power of four that holds n; places that fall outside are permuted again until they fall
inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Integers only, so the order is
the same on every machine and with every version of numpy.
"""

import numpy as np
import numpy.typing as npt

UInts = npt.NDArray[np.uint64]
ROUNDS = 4


def permute(index: npt.NDArray[np.int64], n: int | npt.NDArray[np.int64], key: UInts) -> npt.NDArray[np.int64]:
    """Where each index (rows,) in 0..n-1 goes under the permutation of its key (rows,). For a fixed key a bijection.

    n is one number below 2**53, or one for each row.
    """
    sizes = np.broadcast_to(np.asarray(n, dtype=np.uint64), index.shape)
    _, bits = np.frexp((sizes - np.uint64(1)).astype(np.float64))  # exact: the bit length of n - 1
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    rounds = mix(key + np.arange(ROUNDS, dtype=np.uint64)[:, None])  # (ROUNDS, rows)
    place = _feistel(index.astype(np.uint64), rounds, half)
    while len(outside := np.flatnonzero(place >= sizes)):
        place[outside] = _feistel(place[outside], rounds[:, outside], half[outside])
    return place.astype(np.int64)


def key_of(seed: int, number: npt.NDArray[np.int64]) -> UInts:
    """A key for each number (rows,), of an epoch or the like, under a seed."""
    return mix(mix(np.full(number.shape, seed, dtype=np.uint64)) ^ number.astype(np.uint64))


def mix(value: UInts) -> UInts:
    """A bijection of 64-bit integers that spreads every bit: SplitMix64's finalizer (Steele, Lea and Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


def _feistel(place: UInts, rounds: UInts, half: UInts) -> UInts:
    """A permutation of 0..4**half - 1: each round changes one half of the bits by a function of the other.

    rounds (ROUNDS, rows) are keys.
    """
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = place >> half, place & mask
    for key in rounds:
        left, right = right, left ^ (mix(key ^ right) & mask)
    return (left << half) | right
