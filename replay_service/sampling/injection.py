"""Injection arithmetic: how many sequences of a step are rehearsal, and which of them a rank trains on.

Everything counts sequences (rows of a batch). With an injection ratio p and a global batch of B rows, the steps before
step t rehearse floor(p * B * t) rows. So over any window of steps the number of rehearsed rows is within one of p times
the rows trained on, whatever the world size, and nothing has to be remembered to know it.
"""

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Final, Literal

_DECIMAL: Final = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
"""How an injection ratio is written: ASCII digits, with a point or an exponent, and nothing else."""

_MOST_DIGITS: Final = 400
"""More than any float has; a longer number, "1e-999" say, is slow to reckon with."""

_OLDER_DIGITS: Final = 30


Ratio = Annotated[str, "an injection ratio"]
"""An injection ratio as the decimal that was written."""


def exact_ratio(ratio: float | str | Fraction) -> Fraction:
    """The injection ratio as the decimal that was written: 0.1 means 1/10 and not its binary neighbour.

    Raises:
        ValueError: when the ratio is not a number in [0, 1], or a string that is no plain decimal.
    """
    try:
        exact = ratio if isinstance(ratio, Fraction) else _fraction(str(ratio))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"injection_ratio must be a number in [0, 1], not {ratio!r}") from None
    if not 0 <= exact <= 1:
        raise ValueError(f"injection_ratio must lie in [0, 1], not {ratio}")
    return exact


def decimal_of(text: str) -> str:
    """A ratio as earlier releases took it, such as "1/3" or "0.1_0", as a decimal; a decimal stays as it is.

    What has no finite decimal is rounded up in its thirtieth place, so that no step rehearses fewer rows than before.

    Raises:
        ValueError: when it is no number.
    """
    if _DECIMAL.fullmatch(text):
        return text
    units = math.ceil(Fraction(text) * 10**_OLDER_DIGITS)
    return f"{units // 10**_OLDER_DIGITS}.{units % 10**_OLDER_DIGITS:0{_OLDER_DIGITS}}".rstrip("0")


def _fraction(text: str) -> Fraction:
    if not _DECIMAL.fullmatch(text):
        raise ValueError("no decimal")
    exponent = text.lower().partition("e")[2]
    if max(len(text), abs(int(exponent or 0))) > _MOST_DIGITS:
        raise ValueError(f"a number of more than {_MOST_DIGITS} digits")
    return Fraction(text)


def as_decimal(ratio: Fraction) -> str:
    """A ratio as a decimal string, to nine places, without zeros at its end."""
    return f"{float(ratio):.9f}".rstrip("0").rstrip(".")


InjectionMode = Literal["replace", "add"]


@lru_cache(256)
def rows_due(ratio: Fraction, mode: InjectionMode, global_batch_size: int) -> Fraction:
    """How many rows a step rehearses on average.

    `replace`: rehearsed rows take the place of fine-tuning rows, p * B of them. `add`: they come on top of B
    fine-tuning rows, p / (1 - p) * B of them, so that p is the share of the whole batch here too.
    """
    share = ratio if mode == "replace" else ratio / (1 - ratio)
    return share * global_batch_size


def rehearsed_before(step: int, ratio: Fraction, global_batch_size: int) -> int:
    """How many rows all the steps before `step` rehearse."""
    return int(ratio * global_batch_size * step)


def num_rehearsed(step: int, ratio: Fraction, global_batch_size: int) -> int:
    """How many rows of the global batch of `step` are rehearsal."""
    before = rehearsed_before(step, ratio, global_batch_size)
    return rehearsed_before(step + 1, ratio, global_batch_size) - before


def rank_positions(num_planned: int, step: int, rank: int, world_size: int) -> range:
    """The positions of a step's plan that `rank` trains on.

    Ranks take turns, and the turn moves on by one rank a step, so that a plan of one sample does not always fall to
    rank 0. The ranks' positions are disjoint and together are the whole plan.

    Raises:
        ValueError: when rank is not in [0, world_size).
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, world_size), but rank is {rank} and world_size is {world_size}")
    return range((rank - step) % world_size, num_planned, world_size)


def target_rows(
    step: int, num_planned: int, rehearsed_before: int, rank: int, world_size: int, global_batch_size: int
) -> range:
    """The places in the endless stream of fine-tuning rows that `rank` trains on in `step`.

    Args:
        step: the global training step.
        num_planned: how many rows the whole job rehearses in it.
        rehearsed_before: how many it rehearses in all the steps before.
        rank: in [0, world_size).
        world_size: at most global_batch_size.
        global_batch_size: rows of a step, rehearsed ones included.

    Rehearsed rows replace fine-tuning rows. The rows of a step are dealt out like those of a plan, so a rank has
    global_batch_size / world_size of them; where that is no whole number, ranks take turns in having one more. A change
    of world size or of the injection ratio leaves no fine-tuning row out and takes none twice, and no step has other
    rows for it.

    Raises:
        ValueError: when there are more ranks than rows, or rank is not in [0, world_size).
    """
    if world_size > global_batch_size:
        raise ValueError(f"world_size {world_size} is more than global_batch_size {global_batch_size}")

    def num_mine(each: int) -> int:
        whole = rank_positions(global_batch_size, step, each, world_size)
        return len(whole) - len(rank_positions(num_planned, step, each, world_size))

    first = step * global_batch_size - rehearsed_before + sum(map(num_mine, range(rank)))
    return range(first, first + num_mine(rank))
