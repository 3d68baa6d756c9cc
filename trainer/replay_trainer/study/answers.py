"""Right and wrong answers to multiple-choice questions, before and after tuning.

Shapes: Q questions, K tasks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answers:
    """Counts of questions of each task, [K].

    Attributes:
        num_flips: questions that the base model answers right and the tuned one wrong.
        num_gains: the reverse.
    """

    tasks: tuple[str, ...]
    num_questions: tuple[int, ...]
    num_base_right: tuple[int, ...]
    num_flips: tuple[int, ...]
    num_gains: tuple[int, ...]

    @classmethod
    def counted(cls, tasks: Iterable[str], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> "Answers":
        """From the task of each question and whether it is answered right, bool [Q]."""
        names, task = np.unique(list(tasks), return_inverse=True)

        def number(which: NDArray[np.bool_]) -> tuple[int, ...]:
            return tuple(np.bincount(task[which], minlength=len(names)).tolist())

        everything = np.ones(len(task), dtype=bool)
        counts = (number(each) for each in (everything, before, before & ~after, ~before & after))
        return cls(tuple(map(str, names)), *counts)

    @classmethod
    def from_json(cls, values: dict[str, list[object]]) -> "Answers":
        return cls(**{name: tuple(each) for name, each in values.items()})  # type: ignore[arg-type]

    def shares(self, task: str | None = None) -> Float64Array:
        """Of the questions of one task, or of all: right before, right after, flips, gains; float64 [4]."""
        chosen = [task is None or each == task for each in self.tasks]
        columns = (self.num_questions, self.num_base_right, self.num_flips, self.num_gains)
        num, base, flips, gains = (float(np.sum(np.array(each)[chosen])) for each in columns)
        return np.array([base, base - flips + gains, flips, gains]) / num
