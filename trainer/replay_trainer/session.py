"""A rehearsal session: the stream of rehearsed samples and the reports of one rank, from the first step to the last.

Every loop has one: that of `replay-trainer train`, that of `transformers.Trainer`, and a loop of your own.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from replay_service.sampling.trained import TrainedCounts
from replay_trainer.errors import TrainerError
from replay_trainer.job_claim import JobClaim
from replay_trainer.rehearsal import RehearsalStream
from replay_trainer.reporting import LossReporter, TrainedReporter

_log = structlog.get_logger()


@dataclass(slots=True)
class RehearsalSession:
    """What one rank of a loop takes from the service and tells it.

    Raises, from every method that talks to the service, what RehearsalStream and LossReporter do.
    """

    stream: RehearsalStream
    reporter: LossReporter
    claim: JobClaim | None = field(default=None, kw_only=True)
    """Of rank 0."""
    trained_reporter: TrainedReporter = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.trained_reporter = TrainedReporter(self.reporter, self.stream.rank, self.stream.next_step)

    def rewind(self) -> None:
        """Make the run ready to go on at this session's next step; one rank calls this, before any asks for a batch."""
        client, run, step = self.stream.client, self.stream.run, self.stream.next_step
        if client.run(run)["next_step"] > step:
            client.rewind(run, step - 1)

    def without_effect(self) -> dict[str, int]:
        """How many rows this rank reported in vain so far, by name."""
        return {"num_duplicate_rows": self.reporter.num_duplicate, "num_rejected_rows": self.reporter.num_rejected}

    def flush(self) -> None:
        """Wait until all reports are durable."""
        self.reporter.flush()

    def finish(self) -> None:
        """Say that the job has ended, on rank 0; call it after `flush`, when no step will follow.

        The job has ended well whether the service hears of it or not, so a failure is logged and raises nothing.
        """
        if self.stream.rank != 0:
            return
        run, num_steps = self.stream.run, self.stream.next_step
        try:
            self.stream.client.finish_run(run, num_steps, self.stream.attempt)
        except TrainerError as error:
            _log.warning("end_not_told", run=run, num_steps=num_steps, problem=str(error))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold; waits until the reports of all steps before it are durable."""
        self.flush()
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the samples that came then; `rewind` must follow, on one rank."""
        self.stream.load_state_dict(state)
        self.count_from(TrainedCounts())

    def count_from(self, counts: TrainedCounts) -> None:
        """Report what is trained on from the stream's next step on, as more than these counts."""
        self.trained_reporter = replace(self.trained_reporter, next_step=self.stream.next_step, counts=counts)

    def check_claim(self) -> None:
        """Raises RunGone when another job has taken the run over."""
        if self.claim is not None:
            self.claim.check()

    def close(self) -> None:
        """End the background threads, and let go of the run; the client stays open."""
        if self.claim is not None:
            self.claim.close()
            self.claim = None
        self.stream.close()
        self.reporter.close()
