"""The choice of the owner, turn by turn, with a clock that the tests move."""

from collections.abc import Callable
from pathlib import Path

import pytest

from replay_service.gateway.processes.candidate import Candidate, OwnerSeen
from replay_service.ledger.database import open_database
from replay_service.ledger.service_lease import ServiceLease

LEASE_S = 15.0
Make = Callable[..., Candidate]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(tmp_path: Path) -> ServiceLease:
    return ServiceLease(open_database(f"sqlite:///{tmp_path / 'ledger.db'}", "relaxed"))


@pytest.fixture
def make(lease: ServiceLease, clock: Clock) -> Make:
    def candidate(name: str, can_reach: bool = True) -> Candidate:
        return Candidate(lease, name, f"{name}:1", LEASE_S, lambda _address: can_reach, clock)

    return candidate


def pass_time(clock: Clock, seconds: float, *candidates: Candidate) -> None:
    """Half a second at a time, as the turns are."""
    for _ in range(round(seconds * 2)):
        clock.now += 0.5
        for each in candidates:
            each.turn()


def test_the_first_candidate_owns_the_runs_and_the_other_knows_it(make: Make, clock: Clock) -> None:
    first, second = make("a"), make("b")
    first.turn()
    second.turn()
    assert first.epoch == 1 and second.epoch is None
    assert first.owner == OwnerSeen(1, "a:1", True)
    assert second.owner == OwnerSeen(1, "a:1", False)
    pass_time(clock, 60.0, first, second)
    assert first.epoch == 1, "it keeps what it has"


def test_clocks_an_hour_apart_change_nothing(lease: ServiceLease, make: Make, clock: Clock) -> None:
    ahead = Candidate(lease, "a", "a:1", LEASE_S, lambda _address: True, lambda: clock() + 3600.0)
    other = make("b")
    pass_time(clock, 60.0, ahead, other)
    assert (ahead.epoch, other.owner) == (1, OwnerSeen(1, "a:1", False))
    pass_time(clock, LEASE_S + 1.0, other)
    assert (ahead.epoch, other.epoch) == (None, 2)
    pass_time(clock, 60.0, ahead, other)
    assert (ahead.owner, other.epoch) == (OwnerSeen(2, "b:1", False), 2)


def test_a_lost_owner_is_succeeded_after_a_lease_and_has_ended_before(make: Make, clock: Clock) -> None:
    lost, next_one = make("a"), make("b")
    pass_time(clock, 1.0, lost, next_one)
    for _ in range(100):
        clock.now += 0.5
        next_one.turn()
        assert not (lost.epoch and next_one.epoch), "there are never two at a time"
        if next_one.epoch:
            break
    assert next_one.epoch == 2
    assert clock.now <= 1001.0 + LEASE_S + 6.0
    lost.turn()
    assert lost.epoch is None and lost.owner == OwnerSeen(2, "b:1", False)


def test_an_owner_that_cannot_reach_the_database_stops_and_goes_on_when_nobody_has_taken_its_place(
    make: Make, clock: Clock, lease: ServiceLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = make("a")
    pass_time(clock, 1.0, owner)
    with monkeypatch.context() as away:
        away.setattr(lease, "_engine", open_database("sqlite://"))
        away.setattr(lease._engine, "begin", _fail)
        pass_time(clock, 11.0, owner)
        assert owner.epoch is None
    owner.turn()
    assert owner.epoch == 1


def _fail() -> None:
    from sqlalchemy.exc import OperationalError

    raise OperationalError("update", {}, Exception("the server closed the connection"))


def test_a_process_that_is_started_again_has_its_lease_at_once(make: Make, clock: Clock) -> None:
    pass_time(clock, 1.0, make("a"))
    again = make("a")
    again.turn()
    assert again.epoch == 2


def test_a_resigned_owner_is_succeeded_at_once(make: Make, clock: Clock) -> None:
    old, new = make("a"), make("b")
    pass_time(clock, 1.0, old, new)
    old.resign()
    assert old.epoch is None
    pass_time(clock, 5.0, old, new)
    assert new.epoch is None, "it finishes what it has begun"
    old.give_up()
    new.turn()
    old.turn()
    assert new.epoch == 2 and old.owner == OwnerSeen(2, "b:1", False)


@pytest.mark.parametrize(("can_reach", "expected"), [(False, 2), (True, None)])
def test_an_owner_that_callers_here_cannot_reach_is_succeeded_by_force(
    make: Make, clock: Clock, can_reach: bool, expected: int | None
) -> None:
    owner, cut_off = make("a"), make("b", can_reach)
    pass_time(clock, 1.0, owner, cut_off)
    for _ in range(12):
        cut_off.missed(1)
        pass_time(clock, 2.0, owner, cut_off)
    assert cut_off.epoch == expected
    assert (owner.epoch is None) == (expected is not None)


def test_callers_that_were_away_for_a_while_do_not_add_up(make: Make, clock: Clock) -> None:
    owner, other = make("a"), make("b", can_reach=False)
    pass_time(clock, 1.0, owner, other)
    for _ in range(3):
        other.missed(1)
        pass_time(clock, 20.0, owner, other)
    assert owner.epoch == 1
