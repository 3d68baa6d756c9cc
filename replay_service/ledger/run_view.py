"""A run at one committed point of its journal, as operators see it."""

from dataclasses import dataclass

from replay_service.ledger.progress import Point
from replay_service.ledger.records import RunRecord
from replay_service.sampling.run_state import RunState


@dataclass(frozen=True, slots=True)
class RunView:
    """A run after the events before `point.end_seq`.

    Attributes:
        record: the run as it was created.
        state: neither to be changed nor to be kept: it goes on with the run.
        point: where its journal ended.
    """

    record: RunRecord
    state: RunState
    point: Point
