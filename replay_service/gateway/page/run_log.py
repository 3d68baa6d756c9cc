"""The latest events of a run, as its page shows them, and the speed of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from replay_service.gateway.models import EventInfo
from replay_service.gateway.routes.events import list_events
from replay_service.gateway.service import ReplayService
from replay_service.ledger.event_log import KINDS
from replay_service.ledger.schema import COMMON_KINDS

SHOWN: Final = 20
"""Events in the log, newest first."""

_RARE: Final = ",".join(each for each in KINDS if each not in COMMON_KINDS)
_LOOKED_AT: Final = 300
"""Of the latest events, plans tell of the speed."""
_SEARCHED: Final = 20_000
"""Of the latest events, the rare ones are shown."""
_SPEED_OF_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class RunLog:
    """The latest events, newest first, without plans and reports; and how many steps were planned a second lately."""

    events: Sequence[EventInfo]
    steps_per_s: float | None


def run_log(service: ReplayService, run: str, as_of: int) -> RunLog:
    """The log of a run whose latest event has the number `as_of`."""
    rare = list_events(run, service, after=max(-1, as_of - _SEARCHED), limit=1000, kind=_RARE)
    plans = list_events(run, service, after=max(-1, as_of - _LOOKED_AT), limit=_LOOKED_AT, kind="planned")
    return RunLog(rare.events[: -SHOWN - 1 : -1], speed_of(plans.events))


def speed_of(plans: Sequence[EventInfo]) -> float | None:
    """Steps a second over the last two minutes of these plans, oldest first; None where there are too few.

    Plans of a run that was rewound count again: the job makes these steps again.
    """
    times = [datetime.fromisoformat(each.at).timestamp() for each in plans if each.at is not None]
    late = [each for each in times if each >= times[-1] - _SPEED_OF_S]
    if len(late) < 3 or late[-1] <= late[0]:
        return None
    return (len(late) - 1) / (late[-1] - late[0])
