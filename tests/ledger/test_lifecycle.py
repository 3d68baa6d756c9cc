"""The states of runs, by a table of facts."""

import pytest

from replay_service.ledger.lifecycle import Lifecycle, RunFacts, lifecycle_of

NOW = 1_800_000_000_000
STALE_S = 600.0
RECENTLY, LONG_AGO = NOW - 599_000, NOW - 601_000


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (RunFacts(0, False, -1, None), "waiting"),
        (RunFacts(0, False, -1, LONG_AGO), "waiting"),
        (RunFacts(7, False, -1, RECENTLY), "running"),
        (RunFacts(7, False, -1, NOW + 5000), "running"),
        (RunFacts(7, False, -1, LONG_AGO), "stale"),
        (RunFacts(7, False, -1, None), "stale"),
        (RunFacts(7, False, 7, RECENTLY), "finished"),
        (RunFacts(7, False, 9, LONG_AGO), "finished"),
        (RunFacts(0, False, 0, None), "finished"),
        (RunFacts(8, False, 7, RECENTLY), "running"),
        (RunFacts(8, False, 7, LONG_AGO), "stale"),
        (RunFacts(7, True, 7, RECENTLY), "closed"),
        (RunFacts(0, True, -1, None, "gone"), "closed"),
        (RunFacts(7, False, 7, RECENTLY, "gone"), "finished"),
        (RunFacts(7, False, -1, RECENTLY, "gone"), "damaged"),
        (RunFacts(7, False, -1, LONG_AGO, "gone"), "damaged"),
        (RunFacts(0, False, -1, None, "gone"), "damaged"),
    ],
)
def test_a_state_follows_from_the_facts(facts: RunFacts, expected: Lifecycle) -> None:
    assert lifecycle_of(facts, NOW, STALE_S) == expected


def test_a_clock_that_went_back_makes_no_negative_silence() -> None:
    assert RunFacts(1, False, -1, NOW + 9000).silent_s(NOW) == 0.0
    assert RunFacts(1, False, -1, NOW - 9000).silent_s(NOW) == 9.0
    assert RunFacts(1, False, -1, None).silent_s(NOW) is None
