"""The latest events of a run, as its page shows them, and the speed of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from replay_service.gateway.event_models import EventInfo
from replay_service.gateway.routes.events import info_of
from replay_service.gateway.service import ReplayService
from replay_service.ledger import event_log
from replay_service.ledger.event_log import KINDS
from replay_service.ledger.schema import COMMON_KINDS

SHOWN: Final = 20
"""Events in the log, newest first."""

_RARE: Final = tuple(each for each in KINDS if each not in COMMON_KINDS)
_LOOKED_AT: Final = 300
"""Of the latest events, plans tell of the speed."""
_SEARCHED: Final = 20_000
"""Of the latest events, the rare ones are shown."""
_SPEED_OF_MS: Final = 120_000
_LEAST_PLANS: Final = 3


@dataclass(frozen=True, slots=True)
class RunLog:
    """The latest events, newest first, without plans and reports; and how many steps were planned a second lately."""

    events: Sequence[EventInfo]
    steps_per_s: float | None


def run_log(service: ReplayService, run: str, as_of: int) -> RunLog:
    """The log of a run whose latest event has the number `as_of`."""
    rare = event_log.read_page(service.journal, run, max(-1, as_of - _SEARCHED), 1000, _RARE)
    latest = service.journal.times.latest(run, as_of + 1, _LOOKED_AT)
    times = [each.at for each in latest if each.kind == "planned" and each.at is not None]
    return RunLog([info_of(each) for each in rare.events[: -SHOWN - 1 : -1]], speed_of(times))


def speed_of(times: Sequence[int]) -> float | None:
    """Steps a second over the last two minutes in which there were plans; None where there are too few.

    Plans of a run that was rewound count again: the job makes these steps again.

    Args:
        times: of the plans of steps, ascending, in milliseconds since 1970.
    """
    late = [each for each in times if each >= times[-1] - _SPEED_OF_MS]
    if len(late) < _LEAST_PLANS or late[-1] <= late[0]:
        return None
    return 1000.0 * (len(late) - 1) / (late[-1] - late[0])
