"""Reports as they come: LOSS_ROW records, before it is known what was planned."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import InvalidReport
from replay_service.wire.losses import GAINS_NOT_TOLD, MOST_NATS

Int64Array = NDArray[np.int64]

_MEASURED: Final = ("loss_nats", "num_tokens", "num_flips", "num_gains")

NUM_NAMED: Final = 5
"""How many of the things at fault an error names."""


CURRENT_ATTEMPT: Final = 0
"""The attempt in a report of a client that knows no attempts."""


def is_current(rows: np.ndarray, attempt: int) -> NDArray[np.bool_]:
    """Which rows are of the run's current attempt; others are stale, from before a rewind."""
    said = np.ascontiguousarray(rows["attempt"])
    current: NDArray[np.bool_] = (said == attempt) | (said == CURRENT_ATTEMPT)
    return current


def in_order_of_steps(step: Int64Array, places: Int64Array) -> Int64Array:
    """The places in the order of their steps; those of one step keep their order."""
    of_places = step[places]
    return places[np.argsort(of_places, kind="stable")]


def by_step_and_rank(rows: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Rows in the order of steps and ranks; and of each group its step, its rank and its place, from first to end.

    Takes rows, at least one, in the order of their steps; each group keeps its order.
    """
    step, rank = (np.ascontiguousarray(rows[name]) for name in ("step", "rank"))
    is_same = step[1:] == step[:-1]
    if np.count_nonzero(is_same & (rank[1:] < rank[:-1])):
        order = np.lexsort((rank, step))
        rows, rank = rows.take(order), rank[order]
    is_same &= rank[1:] == rank[:-1]
    begin = [0, *((~is_same).nonzero()[0] + 1).tolist()]
    return rows, list(zip(step[begin].tolist(), rank[begin].tolist(), begin, [*begin[1:], len(rows)], strict=True))


def check_values(rows: np.ndarray) -> None:
    """Raises InvalidReport when a row cannot be right, whatever was planned."""
    loss, num_tokens, num_flips, num_gains = (np.ascontiguousarray(rows[name]) for name in _MEASURED)
    right = (np.abs(loss) <= MOST_NATS) & (num_tokens >= 0) & (num_flips >= 0) & (num_flips <= num_tokens)
    right &= (num_gains >= GAINS_NOT_TOLD) & (num_gains <= num_tokens - num_flips)
    if np.count_nonzero(right & (rows["rank"] >= 0)) < len(rows):
        _say_what_is_wrong(rows)


def _say_what_is_wrong(rows: np.ndarray) -> None:
    rules = [
        (
            ~np.isfinite(rows["loss_nats"]),
            "loss_nats is not a finite number; report such rows with num_tokens 0: they could not be measured",
        ),
        (np.abs(rows["loss_nats"]) > MOST_NATS, f"loss_nats is beyond {MOST_NATS:,.0f} nats per token"),
        (rows["num_tokens"] < 0, "num_tokens is negative"),
        (
            (rows["num_flips"] < 0) | (rows["num_flips"] > rows["num_tokens"]),
            "num_flips is not in [0, num_tokens]",
        ),
        (rows["num_gains"] < GAINS_NOT_TOLD, "num_gains is negative"),
        (
            rows["num_gains"] > rows["num_tokens"] - rows["num_flips"],
            "num_gains is more than num_tokens - num_flips; a gain is a prediction that the base model got wrong, and "
            "a flip one that it got right, so none is both",
        ),
        (rows["rank"] < 0, "rank is negative"),
    ]
    for broken, what in rules:
        if broken.any():
            where = np.flatnonzero(broken)
            raise InvalidReport(
                f"{len(where)} of {len(rows)} rows: {what} (first at row {where[0]}, sample "
                f"{rows['sample_id'][where[0]]}); nothing was folded in",
                rows=where[:NUM_NAMED].tolist(),
            )
