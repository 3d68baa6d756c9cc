"""Reports as they come: LOSS_ROW records, before it is known what was planned."""

from typing import Final

import numpy as np

from replay_service.errors import InvalidReport

NUM_NAMED: Final = 5
"""How many of the things at fault an error names."""

_MOST_NATS: Final = 1e6
"""Products and sums of losses up to this are far from an overflow, which would spoil the run's statistics for good."""


def once_each(rows: np.ndarray) -> np.ndarray:
    """The first row of each sample of a step, in the order given; a second one, of any rank, is a duplicate."""
    _, first = np.unique(rows[["step", "sample_id"]], return_index=True)
    return rows[np.sort(first)]


def by_step_and_rank(rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each step and rank, in their order."""
    rows = rows[np.lexsort((rows["rank"], rows["step"]))]
    changes = (np.diff(rows["step"]) != 0) | (np.diff(rows["rank"]) != 0)
    return [group for group in np.split(rows, np.flatnonzero(changes) + 1) if len(group)]


def check_values(rows: np.ndarray) -> None:
    """Raises InvalidReport when a row cannot be right, whatever was planned."""
    rules = [
        (
            ~np.isfinite(rows["loss_nats"]),
            "loss_nats is not a finite number; leave such rows out of the report",
        ),
        (np.abs(rows["loss_nats"]) > _MOST_NATS, f"loss_nats is beyond {_MOST_NATS:,.0f} nats per token"),
        (rows["num_tokens"] < 1, "num_tokens is less than 1"),
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
