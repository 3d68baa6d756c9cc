"""Events as operators read them on a line of the log."""

import pytest

from replay_service.ledger.event_log import Change, LoggedEvent
from replay_service.ledger.event_text import text_of
from replay_service.ledger.records import Entry
from replay_service.sampling.events import (
    Adjusted,
    Adopted,
    Closed,
    Configured,
    Finished,
    JournalEvent,
    Rewound,
    Sealed,
    Trained,
)
from replay_service.sampling.trained import TrainedCounts
from tests.ledger.worlds import record_of
from tests.sampling.worlds import plan_by_hand, report_of


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (record_of().created, "created on generation 1"),
        (plan_by_hand(0, [1, 2, 3], [0, 0, 1]), "3 samples planned"),
        (report_of(0, [1, 2], rank=5), "2 samples reported by rank 5"),
        (Trained(3, 2, 0, TrainedCounts(64, 16, 900, 200)), "64 rows trained on by rank 2"),
        (Configured(3, record_of().config), "configured"),
        (Adopted(3, 4, (9, 9)), "generation 4 adopted"),
        (Adjusted(3, "0.05", "too much"), "injection_ratio 0.05"),
        (Sealed(7), "went on without the missing reports of step 7"),
        (Closed(3), "closed"),
        (Finished(9, 10), "the job ended after 10 steps"),
        (Rewound(0), "rewound to step 0"),
        (Rewound(-1), "rewound to the beginning"),
    ],
)
def test_an_event_is_one_short_sentence(event: JournalEvent, said: str) -> None:
    assert text_of(LoggedEvent(Entry(1, 1, event), {})) == said


def test_a_change_says_what_was_and_what_is_and_no_more_than_sixty_letters_of_either() -> None:
    changes = {"floor": Change(0.1, None), "policy": Change("a" * 60, "b" * 61)}
    logged = LoggedEvent(Entry(1, 1, Configured(3, record_of().config)), changes)
    assert text_of(logged) == f"floor 0.1 -> null, policy {'a' * 60} -> {'b' * 57}..."
