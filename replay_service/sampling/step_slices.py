"""Rows of several steps, laid end to end so that one call of numpy serves all of them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


class StepSlice(NamedTuple):
    """A stretch of rows of one step, which is a part of a whole."""

    step: int
    begin: int
    end: int
    """The place after its last row."""


def step_slices(step: Int64Array) -> list[StepSlice]:
    """The stretches of equal neighbours in int64 [n]."""
    if not len(step):
        return []
    begin = [0, *((step[1:] != step[:-1]).nonzero()[0] + 1).tolist()]
    return list(map(StepSlice, step[begin].tolist(), begin, [*begin[1:], len(step)]))


def order_in_steps(step: Int64Array, key: NDArray[np.int64] | NDArray[np.uint64]) -> Int64Array:
    """The places, int64 [n], in the order of `step` (int64 [n]), which ascends, and of those in the order of `key` [n].

    Places of equal step and key keep their order.
    """
    order = key.argsort(kind="stable")
    if not len(step) or step[0] == step[-1]:
        return order
    # Few different steps fit into a byte or two; numbers as short as that are sorted without being compared.
    short = (step - step[0]).astype(np.min_scalar_type(int(step[-1] - step[0])))
    ordered: Int64Array = order[short[order].argsort(kind="stable")]
    return ordered
