"""The claim of a job on its run, by which a second job is refused that would use the same one."""

import os
import socket
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from replay_trainer.client import ReplayClient, RetryPolicy
from replay_trainer.errors import RunGone, RunInUse, TrainerError

JOB_VARIABLE: Final = "REPLAY_JOB"
"""The environment variable that names the job."""
TAKE_OVER_VARIABLE: Final = "REPLAY_TAKE_OVER"
"""The environment variable that takes a run from the job that uses it: 1."""

RENEW_S: Final = 20.0
"""Between two claims, a third of the time for which the service keeps one."""
_HASTY: Final = RetryPolicy(give_up_after_s=5.0, first_contact_s=1.0)
_MOST_CHARACTERS: Final = 200

_log = structlog.get_logger()


@dataclass(slots=True, weakref_slot=True)
class JobClaim:
    """Tells the service in the background that a job uses a run, until it is closed; rank 0 of a job has one.

    Attributes:
        job: its name, the same after a restart of the job.
    """

    client: ReplayClient
    run: str
    job: str
    renew_s: float = RENEW_S
    _lost: RunGone | None = field(default=None, init=False, repr=False)
    _ends: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _thread: threading.Thread = field(init=False, repr=False)

    @classmethod
    def of(
        cls,
        client: ReplayClient,
        run: str,
        job: str | None = None,
        environment: Mapping[str, str] = os.environ,
        renew_s: float = RENEW_S,
    ) -> "JobClaim":
        """Claim a run, for a job that is named by `job` or by its environment (`job_name`).

        Raises:
            RunInUse: when another job uses the run, unless REPLAY_TAKE_OVER is 1.
            ServiceError: as ReplayClient does.
        """
        name = (job or job_name(environment))[-_MOST_CHARACTERS:]
        client.claim(run, name, take_over=environment.get(TAKE_OVER_VARIABLE) == "1")
        return cls(client.with_retry(_HASTY), run, name, renew_s)

    def __post_init__(self) -> None:
        work = (weakref.ref(self), self._ends, self.renew_s)
        self._thread = threading.Thread(target=_renew, args=work, name="claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RunGone when another job has taken the run over."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Let go of the run; a service that does not answer does so by itself."""
        self._ends.set()
        self._thread.join()
        with suppress(TrainerError):
            self.client.release(self.run, self.job)

    def renew(self) -> None:
        """Claim the run again; a failure is told by `check`, or is the next time's to mend."""
        try:
            self.client.claim(self.run, self.job)
        except RunGone as error:
            self._lost = error
        except RunInUse as error:
            _log.warning("run_used_by_another_job", run=self.run, problem=str(error))
        except TrainerError as error:
            _log.debug("claim_not_renewed", run=self.run, problem=str(error))


def _renew(claim_of: "weakref.ref[JobClaim]", ends: threading.Event, renew_s: float) -> None:
    """Renew a claim until it is closed, or nobody has it any more."""
    while not ends.wait(renew_s):
        claim = claim_of()
        if claim is None:
            return
        claim.renew()
        del claim


def job_name(environment: Mapping[str, str]) -> str:
    """A name that a job has again after a restart, where its launcher gives one: that of REPLAY_JOB, torchrun's
    `--rdzv-id`, or Slurm's job; else the host and process."""
    elastic = environment.get("TORCHELASTIC_RUN_ID", "none")
    slurm = environment.get("SLURM_JOB_ID")
    named = (
        environment.get(JOB_VARIABLE),
        elastic if elastic != "none" else None,
        f"slurm-{slurm}" if slurm else None,
    )
    return next((each for each in named if each), f"{socket.gethostname()}-{os.getpid()}")
