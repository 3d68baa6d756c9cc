"""How far a run is, in columns of `runs`: what its list shows without reading its journal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import bindparam, func
from sqlalchemy.sql.elements import ColumnElement

from replay_service.ledger.schema import runs
from replay_service.sampling.events import (
    Adopted,
    Closed,
    Configured,
    Finished,
    JournalEvent,
    Planned,
    Reported,
    Trained,
)
from replay_service.sampling.run_state import RunState

_NAMES: Final = (
    "num_events",
    "attempt",
    "next_step",
    "closed",
    "generation",
    "config",
    "planned_at",
    "reported_at",
    "trained_at",
    "job_end",
)

CHANGES: Final[dict[str, ColumnElement[object]]] = {
    name: func.coalesce(bindparam(name, type_=runs.c[name].type), runs.c[name]) for name in _NAMES
}
"""Values of an UPDATE of `runs` whose parameters are those of `Progress.parameters`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a write changes of a run's columns; None leaves a column as it is.

    Attributes:
        has_plans: whether there are plans among the events, so that the time of the latest one changes.
        has_reports: the same of reports.
        has_trained: the same of reports of what was trained on.
    """

    num_events: int | None = None
    attempt: int | None = None
    next_step: int | None = None
    closed: bool | None = None
    generation: int | None = None
    config: bytes | None = None
    job_end: int | None = None
    has_plans: bool = False
    has_reports: bool = False
    has_trained: bool = False

    @classmethod
    def of(cls, events: Sequence[JournalEvent], first_seq: int, attempt: int) -> "Progress":
        """After events that are numbered from `first_seq`; a rewind is none of them."""
        changes: dict[str, Any] = {}
        for event in events:
            match event:
                case Planned():
                    changes |= {"next_step": event.step + 1, "has_plans": True}
                case Reported():
                    changes["has_reports"] = True
                case Trained():
                    changes["has_trained"] = True
                case Configured():
                    changes["config"] = event.config.to_json().encode()
                case Adopted():
                    changes["generation"] = event.generation
                case Closed():
                    changes["closed"] = True
                case Finished():
                    changes["job_end"] = event.end
        return cls(first_seq + len(events), attempt, **changes)

    @classmethod
    def of_state(cls, state: RunState, num_events: int, attempt: int) -> "Progress":
        """All that a state tells, as it is after a rewind."""
        config = state.config.to_json().encode()
        return cls(num_events, attempt, state.next_step, state.closed, state.generation, config, state.job_end)

    def parameters(self, at: int) -> Mapping[str, object]:
        """The parameters of CHANGES for a commit at the time `at`, in milliseconds since 1970."""
        return {
            "num_events": self.num_events,
            "attempt": self.attempt,
            "next_step": self.next_step,
            "closed": self.closed,
            "generation": self.generation,
            "config": self.config,
            "planned_at": at if self.has_plans else None,
            "reported_at": at if self.has_reports else None,
            "trained_at": at if self.has_trained else None,
            "job_end": self.job_end,
        }


NO_PROGRESS: Final = Progress()


@dataclass(frozen=True, slots=True)
class Point:
    """A committed point of a run's journal: its end when somebody looked.

    Attributes:
        incarnation: tells the run from others of its name that were deleted, or came after it.
        owner_epoch: that of the run's latest owner.
        end_seq: the number that the next event will have.
        attempt: counts the run's rewinds, from 1.
        planned_at: when the latest plan was committed, in milliseconds since 1970-01-01 UTC; None if that is not known.
        reported_at: the same of the latest report.
        trained_at: the same of the latest report of what a rank has trained on.
    """

    incarnation: tuple[int | None, str]
    owner_epoch: int
    end_seq: int
    attempt: int
    planned_at: int | None
    reported_at: int | None
    trained_at: int | None

    @property
    def as_of(self) -> int:
        """The number of the last event."""
        return self.end_seq - 1
