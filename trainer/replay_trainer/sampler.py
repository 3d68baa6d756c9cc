"""A sampler for DataLoaders of map-style datasets that leaves out rows for rehearsed ones."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Sampler

from replay_trainer.batches.shuffled import ShuffledRows, StepShare
from replay_trainer.errors import InvalidTraining
from replay_trainer.fixed_injection import FixedInjection


class ReplaceSampler(Sampler[list[int]]):
    """The `batch_sampler` of a run with injection_mode `replace`: it leaves out as many rows as the rank rehearses.

        sampler = ReplaceSampler(client.run("my-run"), len(rows))
        with Rehearsal(client, "my-run").open(injection_mode="replace") as loop:
            for step, inputs in enumerate(DataLoader(rows, batch_sampler=sampler, num_workers=2)):
                batch = loop.mix(step, inputs)

    The run must be made with `injection_fixed`: the rows of a step are dealt out before its plan is asked for, by
    arithmetic alone. So the loader may have any number of workers, and each iteration gives the same rows. They are
    shuffled anew in every epoch, and end with `num_steps` alone. No row is left out for good: a step goes on where the
    one before ended, on whatever number of ranks.

    Args:
        run: as `ReplayClient.run` describes it.
        num_rows: of the dataset.
        rank: in [0, world_size).
        world_size: ranks that share a step. Do not let another library deal out the batches of this loader again.
        num_steps: where it ends; None: never.
        first_step: where each iteration begins; also an attribute, to be set after a checkpoint was loaded.
        num_parts: micro-batches of a step; each of its batches is one.
        seed: of the order of the rows; by default the run's.

    Raises:
        InvalidTraining: when the run has another injection_mode or no `injection_fixed`, or a step may leave a rank
            fewer rows than it has micro-batches.
    """

    def __init__(
        self,
        run: Mapping[str, Any],
        num_rows: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        num_steps: int | None = None,
        first_step: int = 0,
        num_parts: int = 1,
        seed: int | None = None,
    ) -> None:
        config = run["config"]
        fixed = FixedInjection.of_run(dict(run), rank, world_size)
        if config["injection_mode"] != "replace" or fixed is None:
            raise InvalidTraining(
                f"run {run['run']!r} has injection_mode {config['injection_mode']!r} and injection_fixed "
                f"{str(bool(config.get('injection_fixed'))).lower()}, but a sampler deals out the rows of steps that "
                "have no plan yet; make a run with injection_mode 'replace' and injection_fixed true, or take a "
                "RehearsalDataset, which asks for each plan"
            )
        self.first_step = first_step
        self._num_steps, self._num_parts, self._fixed = num_steps, num_parts, fixed
        rows = ShuffledRows(num_rows, config["seed"] if seed is None else seed)
        share = (config["injection_mode"], config["global_batch_size"], rank, world_size, num_parts)
        self._share = StepShare(rows, run["run"], *share)
        self._share.check_room(math.ceil(fixed.rows_a_step))

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while self._num_steps is None or step < self._num_steps:
            yield from self._share.parts(step, *self._fixed.counts(step))
            step += 1

    def __len__(self) -> int:
        if self._num_steps is None:
            raise TypeError("a ReplaceSampler without num_steps has no end")
        return max(0, self._num_steps - self.first_step) * self._num_parts
