"""The samples of planned steps that still await a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.events import PLANNED_ROW, stacked
from replay_service.sampling.step_slices import StepSlice, order_in_steps, step_slices

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_PLANNED_BYTES: Final = np.dtype((np.void, PLANNED_ROW.itemsize))
"""Arrays of them are laid end to end in less time than records, whose fields numpy would compare first."""


@dataclass(slots=True, eq=False)
class Pending:
    """The samples of one planned step that still await a report."""

    planned: np.ndarray
    """The bytes of PLANNED_ROW, by sample_id. A sample drawn twice in one step stands once: it is measured once."""
    sample_id: Int64Array
    """Of each of them."""
    awaited: BoolArray
    """Which of them still await a report."""
    num_awaited: int

    @classmethod
    def of(cls, rows: np.ndarray) -> "Pending":
        """All samples of a plan (PLANNED_ROW [n], n at least 1)."""
        return cls.of_steps({0: rows})[0]

    @classmethod
    def of_steps(cls, plans: Mapping[int, np.ndarray]) -> "dict[int, Pending]":
        """All samples of the plans (PLANNED_ROW [n]) of ascending steps; steps without any are left out."""
        rows, step = stacked([*plans.values()]), np.repeat([*plans], [len(each) for each in plans.values()])
        sample_id = np.ascontiguousarray(rows["sample_id"])
        order = order_in_steps(step, sample_id)
        sample_id = sample_id[order]
        is_again = (sample_id[1:] == sample_id[:-1]) & (step[1:] == step[:-1])
        if np.count_nonzero(is_again):
            is_first = np.append(True, ~is_again)
            order, sample_id, step = order[is_first], sample_id[is_first], step[is_first]
        planned, awaited = rows.take(order).view(_PLANNED_BYTES), np.ones(len(order), dtype=bool)
        return {
            each: cls(planned[begin:end], sample_id[begin:end], awaited[begin:end], end - begin)
            for each, begin, end in step_slices(step)
        }

    @property
    def rows(self) -> np.ndarray:
        """PLANNED_ROW [num_awaited], by sample_id."""
        rows: np.ndarray = self.planned[self.awaited].view(PLANNED_ROW)
        return rows


_NOTHING: Final = Pending(np.zeros(1, dtype=_PLANNED_BYTES), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool), 0)
"""A sample that awaits no report: the last of those that are looked through, at place -1."""


class Awaited:
    """What reported samples are among those that await a report: all steps in one pass, their samples end to end."""

    def __init__(self, pending: dict[int, Pending], slices: Sequence[StepSlice], sample_id: Int64Array) -> None:
        """Look up each `sample_id` (int64 [n]), of the steps that `slices` say."""
        self._pending = pending
        self._of_step = {step: pending[step] for step, _, _ in slices if step in pending}
        parts = [*self._of_step.values(), _NOTHING]
        *firsts, last = accumulate((len(each.sample_id) for each in parts[:-1]), initial=0)
        self._begin = dict(zip(self._of_step, firsts, strict=True))
        self._place = np.empty(len(sample_id), dtype=np.int64)
        for step, begin, end in slices:
            # What would stand after the last sample is compared with the last one, and is not found.
            own = self._of_step.get(step, _NOTHING).sample_id[:-1]
            self._place[begin:end] = own.searchsorted(sample_id[begin:end]) + self._begin.get(step, last)
        self._awaited = np.concatenate([each.awaited for each in parts])
        is_found = np.concatenate([each.sample_id for each in parts]).take(self._place) == sample_id
        is_found &= self._awaited.take(self._place)
        if np.count_nonzero(is_found) < len(is_found):
            self._place[~is_found] = -1

    def are_first(self) -> BoolArray:
        """Which samples await a report, bool [n]; of equal ones of a step the first."""
        order, first = np.arange(len(self._place)), np.empty(len(self._awaited), dtype=np.int64)
        # Of values for one slot the last one stays.
        first[self._place[::-1]] = order[::-1]
        is_first: BoolArray = (first.take(self._place) == order) & (self._place >= 0)
        return is_first

    def take(self) -> np.ndarray:
        """The samples, PLANNED_ROW [n], all different and all awaited; from now on they await no report."""
        assert not np.count_nonzero(self._place < 0), "a report names a sample that awaits none"
        self._awaited[self._place] = False
        for step, begin in self._begin.items():
            each = self._of_step[step]
            each.awaited = self._awaited[begin : begin + len(each.awaited)]
            each.num_awaited = int(np.count_nonzero(each.awaited))
            if not each.num_awaited:
                del self._pending[step]
        planned = stacked([each.planned for each in self._of_step.values()])
        return planned.take(self._place).view(PLANNED_ROW)
