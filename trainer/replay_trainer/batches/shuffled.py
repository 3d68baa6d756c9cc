"""The order of fine-tuning rows, as a function of the place in it, so that a job that resumes needs no state of it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from replay_service.sampling.injection import InjectionMode, rank_positions, target_rows
from replay_trainer.errors import InvalidTraining


@dataclass(slots=True)
class ShuffledRows:
    """An endless stream of rows, shuffled anew in every epoch.

    Place i of the stream is row `permutation(seed, i // n)[i % n]` of n rows.
    """

    num_rows: int
    seed: int
    _order: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)
    """The permutation of the epoch that was looked at last."""

    def rows_at(self, places: range) -> list[int]:
        """The rows at the given places of the stream."""
        return [self._row_at(place) for place in places]

    def _row_at(self, place: int) -> int:
        epoch, within = divmod(place, self.num_rows)
        if epoch not in self._order:
            self._order = {epoch: np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)}
        return int(self._order[epoch][within])


@dataclass(frozen=True, slots=True)
class StepShare:
    """The fine-tuning rows that one rank trains on in each step, where they leave room for rehearsed ones or not.

    Attributes:
        rows: the stream that the whole job trains on.
        run: its name.
        mode: of the run: with `replace`, rehearsed rows take the place of fine-tuning rows.
        global_batch_size: of the run.
        rank: in [0, world_size).
        world_size: ranks that share a step, at most global_batch_size.
        num_parts: micro-batches of a step, each of which has a row at least.
    """

    rows: ShuffledRows
    run: str
    mode: InjectionMode
    global_batch_size: int
    rank: int
    world_size: int
    num_parts: int = 1

    def __post_init__(self) -> None:
        if not self.rows.num_rows:
            raise InvalidTraining("there are no rows to train on")
        if not 0 <= self.rank < self.world_size <= self.global_batch_size:
            raise InvalidTraining(
                f"rank {self.rank} of {self.world_size} cannot share a step of run {self.run!r}, whose "
                f"global_batch_size is {self.global_batch_size}; each rank takes one row at least"
            )

    def parts(self, step: int, num_rehearsed: int, rehearsed_before: int) -> list[list[int]]:
        """The rows of each micro-batch of a step.

        Args:
            step: the global training step.
            num_rehearsed: how many rows the whole job rehearses in it.
            rehearsed_before: how many it rehearses in all the steps before.

        Raises:
            InvalidTraining: when there are fewer rows than micro-batches.
        """
        planned = (num_rehearsed, rehearsed_before) if self.mode == "replace" else (0, 0)
        places = target_rows(step, *planned, self.rank, self.world_size, self.global_batch_size)
        self._check_room(len(places))
        rows = self.rows.rows_at(places)
        return [rows[part_of(len(rows), part, self.num_parts)] for part in range(self.num_parts)]

    def check_room(self, num_rehearsed: int) -> None:
        """Check that every step in which the whole job rehearses so many rows leaves each rank enough.

        Raises:
            InvalidTraining: when there may be fewer rows than micro-batches.
        """
        size, world_size = self.global_batch_size, self.world_size
        turns = [rank_positions(size, 0, rank, world_size) for rank in range(world_size)]
        taken = [rank_positions(num_rehearsed, 0, rank, world_size) for rank in range(world_size)]
        self._check_room(min(len(all_) - len(some) for all_, some in zip(turns, taken, strict=True)))

    def _check_room(self, num_rows: int) -> None:
        if num_rows < self.num_parts:
            raise InvalidTraining(
                f"a step of run {self.run!r} leaves a rank {num_rows} fine-tuning rows beside the rehearsed ones, for "
                f"{self.num_parts} micro-batches; take a larger global_batch_size, a lower injection_ratio, or "
                "injection_mode add"
            )


def part_of(num_rows: int, part: int, num_parts: int) -> slice:
    """Which of the rows of a step its micro-batch `part` gets: as many as the others, or one more or less."""
    return slice(num_rows * part // num_parts, num_rows * (part + 1) // num_parts)
