"""The feed: one rank's batch of every step, fine-tuning rows and rehearsed ones together."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from replay_service.corpus.shards.sources import Columns
from replay_service.language.packing import Ends
from replay_service.language.tokenizer import ends_of
from replay_service.sampling.injection import target_rows
from replay_service.sampling.trained import TrainedCounts
from replay_service.wire.batches import Batch
from replay_trainer.batches.mixing import MixedBatch, mix
from replay_trainer.batches.target import TargetRows, TrainingRows, load_target, packed_by_domain
from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.config import DataConfig, TrainConfig
from replay_trainer.errors import InvalidTraining
from replay_trainer.estimates import Estimates
from replay_trainer.job.evaluation import TARGET, HeldOut
from replay_trainer.job_claim import JobClaim
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter
from replay_trainer.session import RehearsalSession

_PATIENT: Final = RetryPolicy(first_contact_s=math.inf)
"""The job has reached the service before its workers began, so one that is not there now comes back."""


@dataclass(slots=True)
class Feed:
    """Gives the batch of each step, in order, and takes the losses of what was rehearsed in it.

    Attributes:
        session: None where the job rehearses nothing.
        adds_rows: whether rehearsed rows come on top of the global batch, instead of taking the place of fine-tuning
            rows.
        estimates: of the service; None where the job rehearses nothing.
    """

    target: TargetRows
    global_batch_size: int
    rank: int
    world_size: int
    session: RehearsalSession | None = None
    rehearsal_weight: float = 1.0
    adds_rows: bool = False
    estimates: Estimates | None = None
    _counts: TrainedCounts = field(default_factory=TrainedCounts, init=False, repr=False)
    _next_step: int = field(default=0, init=False, repr=False)

    def next(self, step: int) -> MixedBatch:
        """The batch of `step`; steps come in order, from the first one or from the one a state was loaded for."""
        if self.session is not None:
            self.session.check_claim()
        rehearsed = None if self.session is None else next(self.session.stream)
        planned, before = (0, 0) if rehearsed is None or self.adds_rows else _counts(rehearsed)
        places = target_rows(step, planned, before, self.rank, self.world_size, self.global_batch_size)
        return mix(self.target.take(places), rehearsed, self.rehearsal_weight)

    def rewind(self) -> None:
        """Make the run ready to go on at the next step; one rank calls this, before any asks for a batch."""
        if self.session is not None:
            self.session.rewind()

    def report(self, rows: np.ndarray) -> None:
        if self.session is not None:
            self.session.reporter.send(rows)

    def count(self, step: int, counts: TrainedCounts) -> None:
        """Count what the whole job has trained on in a step; rank 0 tells the service now and then, and in `flush`."""
        self._counts, self._next_step = self._counts.plus(counts), step + 1
        if self.session is not None and self.session.trained_reporter.is_due:
            self._report_trained(self.session)

    def without_effect(self) -> dict[str, int]:
        """How many rows this rank reported in vain so far, by name, where there are any."""
        counts = {} if self.session is None else self.session.without_effect()
        return {name: count for name, count in counts.items() if count}

    def flush(self) -> None:
        """Wait until all reports are durable."""
        if self.session is not None:
            self._report_trained(self.session)
            self.session.flush()

    def finish(self) -> None:
        """Wait until all reports are durable, and say that the job has ended."""
        self.flush()
        if self.session is not None:
            self.session.finish()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; waits until the reports of all steps before it are durable."""
        self.flush()
        return {} if self.session is None else self.session.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.session is not None:
            self.session.load_state_dict(state)

    def _report_trained(self, session: RehearsalSession) -> None:
        if self.rank == 0:
            session.trained_reporter.send(self._next_step, self._counts)


def _counts(rehearsed: Batch) -> tuple[int, int]:
    """How many rows the whole job rehearses in the step, and in all the steps before."""
    return rehearsed.only_step.num_rehearsed, rehearsed.only_step.rehearsed_before


@contextmanager
def open_feed(config: TrainConfig, tokenizer: Any, rank: int, world_size: int) -> Iterator[Feed]:
    """The feed of one rank; its connections are closed at the end."""
    ends = document_ends(config, tokenizer)
    target = TargetRows(load_target(config.data, config.flow, tokenizer, ends), config.seed)
    rehearsal = config.rehearsal
    if rehearsal is None:
        yield Feed(target, config.global_batch_size, rank, world_size)
        return
    with ReplayClient(rehearsal.service_url, retry=_PATIENT) as client:
        stream = RehearsalStream(
            client,
            rehearsal.run,
            rank,
            world_size,
            config.num_steps,
            rehearsal.window_steps,
            topk=rehearsal.needs_topk,
        )
        # Workers that begin anew, and a job that goes on in its folder, are the same job.
        claim = JobClaim.of(client, rehearsal.run, str(config.output)) if rank == 0 else None
        session = RehearsalSession(stream, LossReporter(client, rehearsal.run), claim=claim)
        adds_rows = rehearsal.run_settings()["injection_mode"] == "add"
        try:
            yield Feed(
                target,
                config.global_batch_size,
                rank,
                world_size,
                session,
                rehearsal.rehearsal_weight,
                adds_rows,
                Estimates(client, rehearsal.run, config.num_steps),
            )
        finally:
            session.close()


def with_teacher(config: TrainConfig) -> TrainConfig:
    """The job with its `auto` teacher chosen, by what its corpus stores.

    Raises:
        ServiceError: when the service cannot be asked.
    """
    rehearsal = config.rehearsal
    if rehearsal is None or not rehearsal.is_distilled or rehearsal.teacher != "auto":
        return config
    with ReplayClient(rehearsal.service_url, retry=_PATIENT) as client:
        return config.with_teacher(stores_topk=bool(client.corpus(rehearsal.corpus).topk))


def document_ends(config: TrainConfig, tokenizer: Any) -> Ends:
    """The tokens around documents: those of the corpus to rehearse from, else those that the tokenizer has.

    Raises:
        ServiceError: when the service cannot be asked.
    """
    if config.rehearsal is None:
        return ends_of(tokenizer, config.data.bos)
    with ReplayClient(config.rehearsal.service_url, retry=_PATIENT) as client:
        corpus = client.corpus(config.rehearsal.corpus)
    return Ends(corpus.separator_id, corpus.bos_id)


def load_heldout(data: DataConfig, tokenizer: Any, ends: Ends | None = None) -> HeldOut:
    """The held-out rows of every pretraining domain, and of the fine-tuning domain.

    Those of the fine-tuning domain are laid out as the rows to train on: of examples the responses count alone.
    """
    ends = ends or ends_of(tokenizer, data.bos)
    rows: dict[str, TrainingRows] = {}
    if data.heldout_pretraining is not None:
        packed = packed_by_domain(data.heldout_pretraining, _columns(data), tokenizer, data.seq_len, ends)
        rows |= {domain: TrainingRows(each.input_ids, each.length) for domain, each in packed.items()}
        if TARGET in rows:
            raise InvalidTraining(f"a held-out pretraining domain cannot be called {TARGET!r}; rename it")
    if data.heldout_target is not None:
        rows[TARGET] = load_target(data.model_copy(update={"target": data.heldout_target}), None, tokenizer, ends)
    return HeldOut(rows)


def _columns(data: DataConfig) -> Columns:
    return Columns(data.text_column, data.tokens_column, data.domain_column)
