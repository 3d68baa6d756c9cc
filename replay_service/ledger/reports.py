"""Reports as they come: LOSS_ROW records, before it is known what was planned."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.errors import InvalidReport
from replay_service.sampling.events import MOST_NATS

Int64Array = NDArray[np.int64]

_MEASURED: Final = ("loss_nats", "num_tokens", "num_flips")

NUM_NAMED: Final = 5
"""How many of the things at fault an error names."""


CURRENT_ATTEMPT: Final = 0
"""What a report says that does not know of attempts."""


def is_current(rows: np.ndarray, attempt: int) -> NDArray[np.bool_]:
    """Which rows are of the run's current attempt; others are stale, from before a rewind."""
    said = np.ascontiguousarray(rows["attempt"])
    current: NDArray[np.bool_] = (said == attempt) | (said == CURRENT_ATTEMPT)
    return current


def by_step(step: Int64Array, places: Int64Array) -> list[tuple[int, Int64Array]]:
    """The places of each step, steps in order; each keeps the order of its places."""
    of_places = step[places]
    if not len(places):
        return []
    if (of_places == of_places[0]).all():
        return [(int(of_places[0]), places)]
    order = np.argsort(of_places, kind="stable")
    ends = np.flatnonzero(np.diff(of_places[order])) + 1
    return [(int(step[each[0]]), each) for each in np.split(places[order], ends)]


def by_step_and_rank(rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each step and rank, in the order of both; each group keeps its order, and none is empty."""
    step, rank = rows["step"], rows["rank"]
    if (step == step[0]).all() and (rank == rank[0]).all():
        return [rows]
    rows = rows[np.lexsort((rank, step))]
    changes = (np.diff(rows["step"]) != 0) | (np.diff(rows["rank"]) != 0)
    return np.split(rows, np.flatnonzero(changes) + 1)


def check_values(rows: np.ndarray) -> None:
    """Raises InvalidReport when a row cannot be right, whatever was planned."""
    loss, num_tokens, num_flips = (np.ascontiguousarray(rows[name]) for name in _MEASURED)
    right = (np.abs(loss) <= MOST_NATS) & (num_tokens >= 0) & (num_flips >= 0) & (num_flips <= num_tokens)
    if not (right & (rows["rank"] >= 0)).all():
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
