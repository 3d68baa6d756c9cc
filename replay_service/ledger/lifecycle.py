"""The state of a run as operators see it: a pure function of the times of its events and of a few facts."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

Lifecycle = Literal["waiting", "running", "stale", "finished", "closed", "damaged"]
LIFECYCLES: Final[tuple[Lifecycle, ...]] = get_args(Lifecycle)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts that the state of a run follows from.

    Attributes:
        next_step: the first step that has no plan yet.
        closed: whether an operator has closed the run.
        job_end: the first step that is none of the job's, as it said when it ended; -1 if it has not.
        heard_at: when a rank last had a step planned, reported losses or reported what it trained on, in milliseconds
            since 1970; None if that is not known.
        problem: what is damaged of its corpus or its journal; None if nothing is known to be.
    """

    next_step: int
    closed: bool
    job_end: int
    heard_at: int | None
    problem: str | None = None

    def silent_s(self, now_ms: int) -> float | None:
        """For how long nothing was heard of the job, seconds; None if it is not known when something was."""
        return None if self.heard_at is None else max(0, now_ms - self.heard_at) / 1000.0


def lifecycle_of(facts: RunFacts, now_ms: int, stale_after_s: float) -> Lifecycle:
    """The state of a run.

    - `closed`: an operator has closed it.
    - `finished`: its job said that it has ended, and nobody has asked for a later step since.
    - `damaged`: a part of its corpus or its journal cannot be read.
    - `waiting`: no step has a plan.
    - `running`: something was heard of its job in the last `stale_after_s` seconds.
    - `stale`: nothing was.
    """
    if facts.closed:
        return "closed"
    if facts.next_step <= facts.job_end:
        return "finished"
    if facts.problem is not None:
        return "damaged"
    if facts.next_step == 0:
        return "waiting"
    silent_s = facts.silent_s(now_ms)
    return "running" if silent_s is not None and silent_s <= stale_after_s else "stale"
