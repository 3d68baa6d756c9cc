"""Points of the curves of forgetting, and the table that keeps them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from sqlalchemy import Engine, Row, bindparam, delete, select, text
from sqlalchemy.exc import IntegrityError

from replay_service.ledger.schema import forgetting_points

ESTIMATE_ROW: Final = np.dtype([("group", "<i4"), ("nats", "<f8"), ("low", "<f8"), ("high", "<f8")])
"""An estimate of a domain, by the number of its group, or of the corpus. NaN where nothing can be said."""
CORPUS: Final = -1
"""The group of an estimate of the corpus."""

Rewind = tuple[int, int]
"""The number of a rewind, and the step that it went back to."""


@dataclass(frozen=True, slots=True, eq=False)
class CurvePoint:
    """Estimates after the first `seq` events of a run.

    Attributes:
        step: the latest step that was reported, which the estimates are of.
        next_step: the first step that had no plan.
        injection_ratio: of that step.
        achieved_ratio: the share of the rows trained on until then that was rehearsed; None if nobody told.
        estimates: ESTIMATE_ROW [n], of the corpus, and at some points of the largest domains.
    """

    seq: int
    step: int
    next_step: int
    injection_ratio: float
    achieved_ratio: float | None
    estimates: np.ndarray

    def stands(self, rewinds: Sequence[Rewind]) -> bool:
        """Whether no later rewind has forgotten a step that was planned then."""
        return all(self.next_step <= step + 1 for seq, step in rewinds if seq >= self.seq)


class PointTable:
    """Keeps points. Any process may write them: those of one event are the same, and none is ever changed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def standing(self, run: str, incarnation: str, rewinds: Sequence[Rewind], end_seq: int) -> list[CurvePoint]:
        """The points of the events before `end_seq` that stand, in their order; the others are removed."""
        each = forgetting_points.c
        mine = (each.run == run, each.incarnation == incarnation, each.seq <= end_seq)
        query = select(forgetting_points).where(*mine).order_by(each.seq)
        with self._engine.connect() as connection:
            points = [_point(row) for row in connection.execute(query)]
        self._remove(run, [point.seq for point in points if not point.stands(rewinds)])
        return [point for point in points if point.stands(rewinds)]

    def _remove(self, run: str, seqs: Sequence[int]) -> None:
        if seqs:
            one = (forgetting_points.c.run == run) & (forgetting_points.c.seq == bindparam("the_seq"))
            with self._engine.begin() as connection:
                connection.execute(delete(forgetting_points).where(one), [{"the_seq": each} for each in seqs])

    def keep(self, run: str, incarnation: str, points: Sequence[CurvePoint]) -> None:
        """Write points down; of a run that was deleted meanwhile, nothing."""
        rows = [
            {
                "run": run,
                "seq": each.seq,
                "incarnation": incarnation,
                "step": each.step,
                "next_step": each.next_step,
                "injection_ratio": each.injection_ratio,
                "achieved_ratio": each.achieved_ratio,
                "estimates": each.estimates.tobytes(),
            }
            for each in points
        ]
        if rows:
            with suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(_INSERT, rows)


_NAMES: Final = tuple(each.name for each in forgetting_points.c)
_INSERT: Final = text(
    f"INSERT INTO forgetting_points ({', '.join(_NAMES)}) VALUES ({', '.join(f':{name}' for name in _NAMES)}) "
    "ON CONFLICT DO NOTHING"
)


def _point(row: Row[tuple[object, ...]]) -> CurvePoint:
    estimates = np.frombuffer(row.estimates, dtype=ESTIMATE_ROW)
    return CurvePoint(row.seq, row.step, row.next_step, row.injection_ratio, row.achieved_ratio, estimates)
