"""Counter-based randomness: every draw is a pure function of a key, so no generator state is ever saved."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64Array = NDArray[np.uint64]
Int64Array = NDArray[np.int64]

_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1
_NUM_ROUNDS: Final = 24
"""So many that the orders of a handful of places are even too, which ten rounds leave visibly uneven."""


def mix64(words: UInt64Array) -> UInt64Array:
    """Scramble 64-bit words so that every input bit reaches every output bit.

    The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def keys(*words: ArrayLike) -> UInt64Array:
    """One 64-bit key for each row of the broadcast integer `words`: uint64, of their common shape (at least 1-d)."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(word, dtype=np.int64)) for word in words))
    key = np.zeros(arrays[0].shape, dtype=np.uint64)
    for array in arrays:
        key = mix64((key ^ array.astype(np.uint64)) + np.uint64(_GOLDEN))
    return key


def uniform(*words: int) -> float:
    """A number in [0, 1) that depends on `words` alone, with 53 random bits."""
    return int(keys(*words)[0] >> np.uint64(11)) * 2.0**-53


def permute(key: UInt64Array, size: Int64Array, position: Int64Array) -> Int64Array:
    """Where `position` goes under the keyed permutation of [0, size), element by element.

    Args:
        key: uint64 [n], one key a row; equal keys and sizes mean the same permutation.
        size: int64 [n], each at least 1 and at most 2**62.
        position: int64 [n], each in [0, size).

    Returns:
        int64 [n], each in [0, size); a bijection of [0, size) for every key and size.

    A Feistel network on the smallest power of two that holds `size`, walked along its cycle until it lands inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): fewer than two passes on average.
    """
    bits = _bit_length(size - 1)
    result = position.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        result[outside] = _feistel(key[outside], bits[outside], result[outside])
        outside = outside[result[outside] >= size[outside].astype(np.uint64)]
    return result.astype(np.int64)


def _bit_length(values: Int64Array) -> UInt64Array:
    powers = np.left_shift(np.int64(1), np.arange(63, dtype=np.int64))
    return np.searchsorted(powers, values, side="right").astype(np.uint64)


def _feistel(key: UInt64Array, bits: UInt64Array, value: UInt64Array) -> UInt64Array:
    one = np.uint64(1)
    low_bits = bits - bits // np.uint64(2)
    low_mask = (one << low_bits) - one
    high_mask = (one << (bits // np.uint64(2))) - one
    low, high = value & low_mask, value >> low_bits
    for index in range(_NUM_ROUNDS):
        round_key = key + np.uint64(_GOLDEN * (index + 1) & _WORD)
        if index % 2:
            high = high ^ (mix64(low ^ round_key) & high_mask)
        else:
            low = low ^ (mix64(high ^ round_key) & low_mask)
    return (high << low_bits) | low
