"""A dataset whose items are the optimizer steps of one rank, fine-tuning and rehearsed rows together.

stage                  takes                        does                                         gives
RehearsalDataset       rows, the plan of a step     picks the step's rows, adds rehearsed ones   micro-batches
DataLoader             micro-batches                carries them out of its workers              micro-batches
RehearsalLoop.take     micro-batches                counts them, says what they learn            micro-batches
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch.utils.data import IterableDataset, default_collate, get_worker_info

from replay_service.wire.batches import Batch
from replay_trainer.batches.added import Added
from replay_trainer.batches.loader_batches import add, check_named
from replay_trainer.batches.samples import try_tensors
from replay_trainer.batches.shuffled import ShuffledRows, StepShare, part_of
from replay_trainer.beginning import OnExisting
from replay_trainer.errors import InvalidTraining
from replay_trainer.plain import Rehearsal
from replay_trainer.rehearsal import STATE_VERSION, RehearsalStream
from replay_trainer.rehearsal_loop import RehearsalLoop


class RehearsalDataset(IterableDataset[list[Added]]):
    """The steps of one rank, each a list of micro-batches, mixed in the workers of a DataLoader.

        dataset = RehearsalDataset(Rehearsal(client, "my-run"), rows, num_steps=1000)
        with dataset.open() as loop:
            for parts in DataLoader(dataset, batch_size=None, num_workers=2):
                for batch in loop.take(parts):
                    output = model(**batch.inputs)
                    loop.report(batch, batch.losses(output.logits))

    The run decides whether rehearsed rows replace rows of the dataset or come on top (`injection_mode`). No row is left
    out for good: a step goes on in the stream of rows, shuffled anew in every epoch, where the one before ended.

    Workers share the steps: worker i of n makes the steps first + i, first + i + n, ..., so a loader gives the steps in
    order, and each step's plan is asked for once. Forked and spawned workers ask by connections of their own; a client
    that was given its token cannot be sent to a spawned one (set REPLAY_TOKEN instead). A fenced run is asked ahead by
    `prefetch_factor * num_workers` steps; its plans come when the reports that they await have come.

    An iteration begins at `next_step`. With torchdata's StatefulDataLoader its state is in the loader's; else give
    `load_state_dict` the state of the loop. The same steps hold the same rows, whatever the number of workers, in a run
    that the loop has rewound.

    Args:
        rehearsal: what to rehearse.
        rows: the fine-tuning rows: anything with a length whose items `collate_fn` makes a batch of, as a loop's own
            batches are (`replay_trainer.plain`).
        rank: in [0, world_size).
        world_size: ranks that share a step.
        num_steps: where it ends; None: never.
        num_parts: micro-batches of a step.
        apart: whether rehearsed rows of tokens take a forward pass of their own, as in `RehearsalLoop.mix`.
        seed: of the order of the rows; by default the run's.
        collate_fn: makes a batch of a list of rows.

    Raises:
        InvalidTraining: when there are no rows, or more ranks than a step has rows.
        ServiceError: as ReplayClient does.

    Raises, from an iteration:
        InvalidTraining: when a step leaves this rank fewer rows than it has micro-batches, or they cannot be mixed.
        RunGone, ServiceError: as RehearsalStream does. From a worker, torch makes RuntimeErrors of them that say the
            same.
    """

    def __init__(
        self,
        rehearsal: Rehearsal,
        rows: Any,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_steps: int | None = None,
        num_parts: int = 1,
        apart: bool = False,
        seed: int | None = None,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        config = rehearsal.client.run(rehearsal.run)["config"]
        order = ShuffledRows(len(rows), config["seed"] if seed is None else seed)
        share = (config["injection_mode"], config["global_batch_size"], rank, world_size, num_parts)
        self._share = StepShare(order, rehearsal.run, *share)
        self._rows, self._collate_fn, self._num_steps, self._apart = rows, collate_fn, num_steps, apart
        self._client, self._run, self._prepare = rehearsal.client, rehearsal.run, rehearsal.prepare
        self._topk = rehearsal.rehearsal_loss != "cross_entropy" and rehearsal.teacher == "stored"
        self._window_steps = rehearsal.window_steps
        self._rehearsal: Rehearsal | None = rehearsal
        self._num_workers = 0
        """Of the loader, in a worker that knows its place among them."""
        self._has_tried = False
        self.next_step = 0

    def open(self, *, on_existing: OnExisting = "refuse", model: Any = None, tokenizer: Any = None) -> RehearsalLoop:
        """The loop of this rank, which begins at `next_step`; open it in the training process, before any iteration.

        Args:
            on_existing, model, tokenizer: as for `Rehearsal.open`. With `rewind` it waits until the run is rewound.

        Raises:
            InvalidTraining, CorpusMismatch, ServiceError: as `Rehearsal.open` does.
        """
        assert self._rehearsal is not None
        loop = self._rehearsal.open(
            self._share.rank,
            self._share.world_size,
            first_step=self.next_step,
            num_steps=self._num_steps,
            on_existing=on_existing,
            injection_mode=self._share.mode,
            model=model,
            tokenizer=tokenizer,
        )
        if on_existing == "rewind":
            loop.settle()
        return loop

    def __iter__(self) -> Iterator[list[Added]]:
        worker = get_worker_info()
        if worker is not None and not self._num_workers:
            self.next_step, self._num_workers = self.next_step + worker.id, worker.num_workers
        return self._steps()

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands: the next step, and of how many workers it is one."""
        return {
            "version": STATE_VERSION,
            "run": self._run,
            "next_step": self.next_step,
            "num_workers": self._num_workers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, by a loop or by this dataset.

        Raises:
            InvalidTraining: when it is of another version, of another run, or of a worker among another number of them.
        """
        if state.get("version") != STATE_VERSION or state["run"] != self._run:
            raise InvalidTraining(
                f"the state is of version {state.get('version')} and run {state.get('run')!r}; this release reads "
                f"version {STATE_VERSION}, and the dataset is of run {self._run!r}"
            )
        worker, num_workers = get_worker_info(), state.get("num_workers", 0)
        if num_workers not in (0, 0 if worker is None else worker.num_workers):
            raise InvalidTraining(
                f"the state is of one of {num_workers} workers; give the loader as many, or the dataset the state of "
                "the loop"
            )
        self.next_step, self._num_workers = state["next_step"], num_workers

    def __getstate__(self) -> dict[str, Any]:
        """Of what to rehearse only what a worker needs, so neither models nor tokenizers."""
        return {**self.__dict__, "_rehearsal": None}

    def _steps(self) -> Iterator[list[Added]]:
        stream = RehearsalStream(
            self._client,
            self._run,
            self._share.rank,
            self._share.world_size,
            self._num_steps,
            self._window_steps,
            self._topk,
            self.next_step,
            stride=max(1, self._num_workers),
        )
        try:
            for rehearsed in stream:
                self.next_step = stream.next_step
                yield self._mixed(rehearsed)
        finally:
            stream.close()

    def _mixed(self, rehearsed: Batch) -> list[Added]:
        step, num_parts = rehearsed.only_step, self._share.num_parts
        parts = self._share.parts(step.step, step.num_rehearsed, step.rehearsed_before)
        return [
            self._mixed_part(rows, rehearsed.rows(part_of(len(rehearsed), part, num_parts)), part)
            for part, rows in enumerate(parts)
        ]

    def _mixed_part(self, rows: list[int], rehearsed: Batch, part: int) -> Added:
        inputs = self._collate_fn([self._rows[row] for row in rows])
        check_named(inputs)
        if not (self._has_tried or len(rehearsed)):
            try_tensors(inputs, rehearsed, self._prepare)
        self._has_tried = True
        return replace(add(inputs, rehearsed, prepare=self._prepare, apart=self._apart), part=part)
