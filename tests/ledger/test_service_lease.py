"""The lease of a cluster in the database, on each kind of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from replay_service.ledger.database import open_database
from replay_service.ledger.service_lease import NOBODY, ServiceLease


@pytest.fixture
def lease(database_url: str) -> Iterator[ServiceLease]:
    engine = open_database(database_url)
    yield ServiceLease(engine)
    engine.dispose()


def test_a_lease_is_taken_kept_and_given_up(lease: ServiceLease) -> None:
    nobody = lease.read()
    assert (nobody.epoch, nobody.holder) == (0, NOBODY)
    assert lease.take(nobody, "a", "10.0.0.1:8401", 15.0) == 1
    taken = lease.read()
    assert (taken.epoch, taken.holder, taken.address, taken.duration_s) == (1, "a", "10.0.0.1:8401", 15.0)
    assert lease.keep(1) and (kept := lease.read()).beat > taken.beat
    lease.give_up(1)
    assert (lease.read().holder, lease.read().beat > kept.beat) == (NOBODY, True)
    assert lease.take(lease.read(), "b", "10.0.0.2:8401", 5.0) == 2


def test_what_has_shown_that_it_is_alive_is_taken_by_force_alone(lease: ServiceLease) -> None:
    lease.take(lease.read(), "a", "a:1", 15.0)
    seen = lease.read()
    lease.keep(1)
    assert lease.take(seen, "b", "b:1", 15.0) is None
    assert lease.take(seen, "b", "b:1", 15.0, by_force=True) == 2
    assert not lease.keep(1), "it was taken from this one"
    lease.give_up(1)
    assert lease.read().holder == "b", "who has lost a lease gives up nothing"


def test_of_many_who_take_it_at_once_one_gets_it(lease: ServiceLease) -> None:
    for _ in range(3):
        seen = lease.read()
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(lease.take, seen, str(name), f"{name}:1", 15.0) for name in range(8)]
            epochs = [each.result() for each in asked]
        assert [each for each in epochs if each is not None] == [seen.epoch + 1]
        assert lease.read().holder == str(epochs.index(seen.epoch + 1))
