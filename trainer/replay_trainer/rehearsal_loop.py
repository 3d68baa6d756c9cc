"""The rehearsal of one rank of a training loop, step by step: rows to train on, and reports of their losses."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any

import torch

from replay_service.wire.batches import Batch
from replay_trainer.batches.added import Added, Losses
from replay_trainer.batches.apart import ApartInputs, tokens_saved
from replay_trainer.batches.distilled import Distillation
from replay_trainer.batches.loader_batches import add, check_named
from replay_trainer.batches.padding_free import check_isolation, is_padding_free
from replay_trainer.batches.rows import check_learned
from replay_trainer.batches.samples import Prepare, try_tensors
from replay_trainer.batches.shuffled import part_of
from replay_trainer.beginning import Beginning
from replay_trainer.errors import InvalidTraining
from replay_trainer.estimates import Estimates, figures
from replay_trainer.session import RehearsalSession
from replay_trainer.trained import Tally, Trained


@dataclass(slots=True)
class RehearsalLoop(RehearsalSession):
    """The rehearsal of one rank, step by step; `Rehearsal.open` makes one.

    Leaving its block without an error waits for all reports, and says that the job has ended.

    Raises, from every method that talks to the service, what RehearsalStream and LossReporter do.
    """

    rehearsal_weight: float = 1.0
    prepare: Prepare | None = None
    distillation: Distillation | None = None
    beginning: Beginning | None = None
    tally: Tally = field(default_factory=Tally)
    _current: Batch | None = field(default=None, init=False, repr=False)
    _keeps_apart: bool = field(default=False, init=False, repr=False)
    _has_tried: bool = field(default=False, init=False, repr=False)
    _estimates: Estimates = field(init=False, repr=False)

    def __post_init__(self) -> None:
        RehearsalSession.__post_init__(self)
        self._estimates = Estimates(self.stream.client, self.stream.run, self.stream.num_steps)

    def __enter__(self) -> "RehearsalLoop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def check_model(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Check that a model, as it is called in training, keeps the samples of flat batches like this one apart.

        Raises:
            InvalidTraining: when tokens attend to the samples before their own.
        """
        if is_padding_free(inputs) and not self._keeps_apart:
            check_isolation(model, inputs)
            self._keeps_apart = True

    def mix(
        self,
        step: int,
        inputs: Mapping[str, Any],
        *,
        part: int = 0,
        num_parts: int = 1,
        is_last: bool = False,
        apart: bool = False,
    ) -> Added:
        """The batch of an optimizer step with what this rank rehearses in it; see `add_rows` and `add_samples`.

        Steps come in order. The last one may be asked for again, until its losses are reported.

        Args:
            step: of the optimizer, counted from 0.
            inputs: the loader's batch: a mapping with `labels`.
            part: which micro-batch of the step it is, where the gradient is accumulated over several.
            num_parts: how many micro-batches the step has. Each gets its share of the step's rehearsed rows; together
                they get each row once.
            is_last: whether this is the step's last part, though it may have fewer than `num_parts`, as at the end of
                an epoch. The last part gets all rows that are left.
            apart: whether rehearsed rows of tokens take a forward pass of their own (`replay_trainer.batches.apart`).
                Then `inputs` stays the loader's batch. Where any rank rehearses in the step, all ranks call the model
                with `rehearsed_inputs` too.

        Raises:
            InvalidTraining: when the step is not the next one, was reported already, or has not as many rows as the
                run's global_batch_size says; when the batch cannot be mixed; when gradients are off, as in an
                evaluation.
        """
        check_named(inputs)
        _check_learns()
        if not apart:
            self._check_kept_apart(is_padding_free(inputs))
        rehearsed = self._rows_of(step, part, num_parts)
        share = part_of(len(rehearsed), part, num_parts)
        if is_last:
            share = slice(share.start, len(rehearsed))
            self.tally.end_after(part)
        rows = rehearsed.rows(share)
        added = add(inputs, rows, self.rehearsal_weight, self.prepare, self.distillation, apart=apart)
        mixed = replace(added, part=part)
        if not (self._has_tried or mixed.num_rehearsed):
            try_tensors(inputs, rehearsed, self.prepare)
        self._has_tried = True
        self.tally.add(mixed)
        return mixed

    def tokens_saved(self, step: int, parts: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Tokens that this rank saves in a step if rehearsed rows take a pass of their own, and tokens of one pass.

        (0, 1) where the rows cannot take one: in flat batches, and of samples to classify.

        Raises:
            InvalidTraining: as `mix` does.
        """
        for each in parts:
            check_named(each)
        rehearsed = self._rows_of(step, 0, len(parts))
        if rehearsed.header.kind != "language" or any(is_padding_free(each) for each in parts):
            return 0, 1
        for each in parts:
            check_learned(each, rehearsed)
        return tokens_saved(parts, rehearsed)

    def spread(self, step: int, parts: Sequence[Mapping[str, Any]], *, apart: bool = False) -> list[Added]:
        """Mix all micro-batches of a step at once, at least one; see `mix`.

        Raises:
            InvalidTraining: as `mix` does.
        """
        num_parts = len(parts)
        return [self.mix(step, each, part=i, num_parts=num_parts, apart=apart) for i, each in enumerate(parts)]

    def take(self, parts: Sequence[Added]) -> list[Added]:
        """The micro-batches of the next step as a RehearsalDataset mixed them, in place of `mix`.

        Raises:
            InvalidTraining: when they are of another step, or the step has not as many rows as the run's
                global_batch_size says.
        """
        _check_learns()
        rehearsed = parts[0].rehearsed
        self._check_kept_apart(any(each.is_flat and not isinstance(each, ApartInputs) for each in parts))
        self._begin(rehearsed.only_step.step, 0, len(parts))
        self.stream.passed(rehearsed)
        self._current = rehearsed
        taken = [
            replace(each, rehearsal_weight=self.rehearsal_weight, distillation=self.distillation) for each in parts
        ]
        for each in taken:
            self.tally.add(each)
        return taken

    def report(self, batch: Added, losses: Losses) -> None:
        """Send the losses of a batch's rehearsed rows, without waiting; call it before the optimizer's step.

        Raises:
            InvalidTraining: when those of this part of the step were reported already.
        """
        self.tally.report(batch)
        if batch.num_rehearsed:
            self.reporter.send(batch.loss_rows(losses, self.stream.rank))

    @property
    def trained(self) -> Trained:
        """Counts of the rows and tokens that this rank has trained on so far.

        They are reported to the service now and then, and by `flush`.
        """
        return self.tally.trained

    def metrics(self) -> dict[str, float]:
        """Figures of this rank to log: what it has trained on, and the reported rows that had no effect."""
        counts = {"num_unmeasured_rows": self.reporter.num_unmeasured, **self.without_effect()}
        return {**self.trained.metrics(), **counts}

    def estimates(self, step: int) -> dict[str, float]:
        """Figures of the whole job to log, from the service: forgetting with its interval, nats per token
        (`forgetting_nats`, `forgetting_low`, `forgetting_high`), `rows_due`, `rows_rehearsed` and `late_steps`.

        Rank 0 asks a hundred times in a job and after its last step; nothing else is asked for, and gives nothing.

        Args:
            step: of the optimizer, counted from 0, that has ended.
        """
        return figures(self._estimates.after(step)) if self.stream.rank == 0 else {}

    def flush(self) -> None:
        """Wait until all reports are durable: losses, and the counts of what was trained on."""
        self._report_trained()
        RehearsalSession.flush(self)

    def finish(self) -> None:
        """Wait until all reports are durable, and say that the job has ended; leaving the loop's block does so.

        A loop that was opened and mixed nothing has not trained, so it says nothing.
        """
        self.flush()
        if self._current is not None:
            RehearsalSession.finish(self)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint; waits until the reports of all steps before it are durable."""
        return {**RehearsalSession.state_dict(self), "trained": asdict(self.trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the samples that came then.

        `rewind` must follow, on one rank, unless the loop was opened with on_existing "rewind".
        """
        RehearsalSession.load_state_dict(self, state)
        trained = Trained(**state.get("trained", {}))
        self.tally.go_on_from(trained, self.stream.next_step)
        self.count_from(trained.counts)
        self._current = None

    def settle(self) -> None:
        """Refuse or rewind a run that is ahead of the loop, as it was opened to; the first `mix` does so by itself.

        Raises:
            InvalidTraining, ServiceUnavailable: as `Beginning.settle` does.
        """
        if self.beginning is not None:
            self.beginning.settle(self.stream)
            self.beginning = None

    def _report_trained(self) -> None:
        next_step, trained = self.tally.finished()
        attempt = 0 if self._current is None else self._current.header.attempt
        self.trained_reporter.send(next_step, trained.counts, attempt)

    def _rows_of(self, step: int, part: int, num_parts: int) -> Batch:
        """The rehearsed rows of this rank in a step."""
        if self._current is not None and step == self.stream.next_step - 1:
            self.tally.begin(step, part, num_parts)
            return self._current
        self._begin(step, part, num_parts)
        self._current = next(self.stream, None)
        if self._current is None:
            raise InvalidTraining(
                f"step {step} was asked for, but the loop was opened for {step} steps; open it for more"
            )
        return self._current

    def _begin(self, step: int, part: int, num_parts: int) -> None:
        """Begin a step; all checks come before anything is asked for."""
        self.check_claim()
        if step != self.stream.next_step:
            raise InvalidTraining(
                f"step {step} was asked for, but the next one is {self.stream.next_step}; steps come in order, and "
                "load_state_dict goes back to that of a checkpoint"
            )
        if self.trained_reporter.is_due:
            self._report_trained()
        self.tally.begin(step, part, num_parts)
        self.settle()

    def _check_kept_apart(self, is_flat: bool) -> None:
        if is_flat and not self._keeps_apart:
            raise InvalidTraining(
                "the batches are flat, and not every model keeps their samples apart; call check_model before the first"
            )


def _check_learns() -> None:
    if not torch.is_grad_enabled():
        raise InvalidTraining(
            "a batch is mixed without gradients, as in an evaluation; rehearsed rows join batches of training alone: "
            "give the model the batch as it is, or mix outside of torch.no_grad()"
        )
