"""Which job uses a run: the job says so itself, now and then, and a second one is refused when it begins.

Claims are in the memory of the process that owns the runs. No plan depends on them. After a restart a run belongs to
the job that says so first.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from replay_service.errors import JobSuperseded, RunInUse

CLAIM_S: Final = 60.0
"""For how long a claim stands that is not renewed, seconds."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The job that uses a run.

    Attributes:
        job: its name.
        seen_at: when it last said so, seconds of a monotonic clock.
        superseded: the job that it took the run from, if any.
    """

    job: str
    seen_at: float
    superseded: str | None = None


@dataclass(slots=True)
class Claims:
    """The claims of all runs.

    Args:
        monotonic: a clock, seconds.
    """

    monotonic: Callable[[], float] = time.monotonic
    _claims: dict[str, Claim] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def claim(self, run: str, job: str, take_over: bool = False) -> bool:
        """Note that a job uses a run; whether that is news.

        Raises:
            JobSuperseded: when another job took the run from this one.
            RunInUse: when another job uses it.
        """
        with self._lock:
            now = self.monotonic()
            self._claims = {name: each for name, each in self._claims.items() if now - each.seen_at < CLAIM_S}
            held = self._claims.get(run)
            if held is None or held.job == job:
                self._claims[run] = Claim(job, now, None if held is None else held.superseded)
            elif take_over:
                self._claims[run] = Claim(job, now, held.job)
            elif held.superseded == job:
                raise JobSuperseded(f"job {held.job!r} has taken run {run!r} over from job {job!r}, which ends here")
            else:
                raise _in_use(run, held, now)
            return held is None or held.job != job

    def release(self, run: str, job: str) -> bool:
        """Note that a job no longer uses a run; whether it did."""
        with self._lock:
            held = self._claims.get(run)
            if held is None or held.job != job:
                return False
            del self._claims[run]
            return True


def _in_use(run: str, held: Claim, now: float) -> RunInUse:
    return RunInUse(
        f"run {run!r} is used by job {held.job!r}, last seen {now - held.seen_at:.0f} s ago; create a run of another "
        f"name, or stop that job. A job that was killed keeps its run for {CLAIM_S:.0f} s: to take the run from it at "
        "once, set the environment variable REPLAY_TAKE_OVER to 1",
        job=held.job,
    )
