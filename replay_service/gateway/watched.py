"""What watchers of runs share."""

from typing import Final

from replay_service.gateway.following import Told
from replay_service.gateway.packed import Packed
from replay_service.gateway.recent_answers import Allowance, RecentAnswers
from replay_service.gateway.statistics_models import RunStats
from replay_service.ledger.progress import Point

SHARED_AGE_S: Final = 1.0
"""Age of what watchers share, as long as that costs little."""
OLDEST_S: Final = 15.0
"""Age of what they are given while a new one would cost too much."""
CURVES_SHARE: Final = 0.2
"""Of a core. The curve of a run that was never looked at takes seconds, but its points are kept then."""


class Watched:
    """Answers that those who look again and again share, whose cost is bounded.

    Attributes:
        statistics: by run.
        fragments: parts of pages, and the list of runs.
        curves: parts of pages for which a journal may have to be folded.
        points: the end of each run's journal, for those who follow its events.
        events: what they are told.
    """

    def __init__(self) -> None:
        allowance = Allowance()
        self.statistics = RecentAnswers[RunStats](allowance)
        self.fragments = RecentAnswers[Packed](allowance)
        self.curves = RecentAnswers[Packed](Allowance(CURVES_SHARE))
        self.points = RecentAnswers[Point](allowance)
        self.events = RecentAnswers[Told](allowance)
