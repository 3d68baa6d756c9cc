"""Counter-based randomness: every draw is a pure function of a key, so no generator state is ever saved."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt64Array = NDArray[np.uint64]
Int64Array = NDArray[np.int64]

_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1
_FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS: Final = (30, 27, 31)

# Arrays without a dimension: numpy takes a number of another kind apart at every call, which for a few dozen words
# costs as much as the arithmetic.
_FACTORS_64: Final = tuple(np.array(factor, dtype=np.uint64) for factor in _FACTORS)
_SHIFTS_64: Final = tuple(np.array(shift, dtype=np.uint64) for shift in _SHIFTS)
_GOLDEN_64: Final = np.array(_GOLDEN, dtype=np.uint64)
_ROOM: Final = np.array(1, dtype=np.uint64)
"""Bits that a random word gives up, so that a sum with it does not leave the 64."""

_NUM_ROUNDS: Final = 10
_ROUND_KEYS: Final = np.array([_GOLDEN * (index + 1) & _WORD for index in range(_NUM_ROUNDS)], dtype=np.uint64)[:, None]
_MOST_RANKED: Final = 16
"""Positions of so few are ranked by random words: a Feistel network evens out the orders of a handful of places only
after many more rounds."""


def _mix_in_place(words: UInt64Array, scratch: UInt64Array) -> None:
    """Scramble 64-bit words so that every input bit reaches every output bit.

    The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). New arrays
    would cost more than the arithmetic for a few dozen words.
    """
    np.right_shift(words, _SHIFTS_64[0], scratch)
    np.bitwise_xor(words, scratch, words)
    np.multiply(words, _FACTORS_64[0], words)
    np.right_shift(words, _SHIFTS_64[1], scratch)
    np.bitwise_xor(words, scratch, words)
    np.multiply(words, _FACTORS_64[1], words)
    np.right_shift(words, _SHIFTS_64[2], scratch)
    np.bitwise_xor(words, scratch, words)


def _mix_one(word: int) -> int:
    """The same of one word."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        word = (word ^ (word >> shift)) * factor & _WORD
    return word ^ (word >> _SHIFTS[-1])


def key_of(*words: int) -> int:
    """One 64-bit key of integers."""
    key = 0
    for word in words:
        key = _mix_one(((key ^ word & _WORD) + _GOLDEN) & _WORD)
    return key


def keys(*words: ArrayLike) -> UInt64Array:
    """One 64-bit key for each row of the broadcast integer `words`: uint64, of their common shape (at least 1-d)."""
    first: list[int] = []
    for word in words:
        if not isinstance(word, int):
            break
        first.append(word)
    key = np.array([key_of(*first)], dtype=np.uint64)
    for word in words[len(first) :]:
        key = key ^ np.asarray(word, dtype=np.int64).view(np.uint64)
        np.add(key, _GOLDEN_64, key)
        _mix_in_place(key, np.empty_like(key))
    return key


def uniforms(key: UInt64Array) -> NDArray[np.float64]:
    """A number in [0, 1) of each key, with 53 random bits."""
    numbers: NDArray[np.float64] = (key >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def permute(key: UInt64Array, size: Int64Array, position: Int64Array) -> Int64Array:
    """Where `position` goes under the keyed permutation of [0, size), element by element.

    Args:
        key: uint64 [n], one key a row; equal keys and sizes mean the same permutation.
        size: int64 [n], each at least 1 and at most 2**62.
        position: int64 [n], each in [0, size).

    Returns:
        int64 [n], each in [0, size); a bijection of [0, size) for every key and size.

    A Feistel network over pairs of residues, on the smallest a x b that holds `size` with a about its square root,
    walked along its cycle until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002):
    fewer than a of the a * b places lie outside, so of a large size hardly any row takes a second pass.
    """
    is_small = size <= _MOST_RANKED
    if is_small.any():
        result = np.empty(len(size), dtype=np.int64)
        result[is_small] = _ranked(key[is_small], size[is_small], position[is_small])
        result[~is_small] = _walked(key[~is_small], size[~is_small], position[~is_small])
        return result
    return _walked(key, size, position)


def _ranked(key: UInt64Array, size: Int64Array, position: Int64Array) -> Int64Array:
    """The rank of the position's random word among those of all positions, of which there are a few."""
    places = np.arange(_MOST_RANKED)
    words = keys(key[:, None].view(np.int64), places)
    mine = words[np.arange(len(size)), position][:, None]
    is_before = (words < mine) | ((words == mine) & (places < position[:, None]))
    ranks: Int64Array = (is_before & (places < size[:, None])).sum(axis=1)
    return ranks


def _walked(key: UInt64Array, size: Int64Array, position: Int64Array) -> Int64Array:
    num_low = np.ceil(np.sqrt(size)).astype(np.int64)
    num_high = -(-size // num_low)
    sides = num_low.astype(np.uint64), num_high.astype(np.uint64)
    result, limit = position.astype(np.uint64), size.astype(np.uint64)
    result = _feistel(key, *sides, result)
    outside = np.flatnonzero(result >= limit)
    while len(outside):
        result[outside] = _feistel(key[outside], sides[0][outside], sides[1][outside], result[outside])
        outside = outside[result[outside] >= limit[outside]]
    return result.view(np.int64)


def _feistel(key: UInt64Array, num_low: UInt64Array, num_high: UInt64Array, value: UInt64Array) -> UInt64Array:
    """A bijection of [0, num_low * num_high), element by element."""
    high, low = np.divmod(value, num_low)
    words, scratch = key + _ROUND_KEYS, np.empty_like(value)
    for index, word in enumerate(words):
        half, other, num = (high, low, num_low) if index % 2 == 0 else (low, high, num_high)
        np.bitwise_xor(word, half, word)
        _mix_in_place(word, scratch)
        np.right_shift(word, _ROOM, word)
        np.add(other, word, other)
        np.remainder(other, num, other)
    return high * num_low + low
