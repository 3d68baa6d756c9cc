"""Claims of jobs on their runs, by a clock that the tests move."""

import pytest

from replay_service.errors import JobSuperseded, RunInUse
from replay_service.gateway.claims import CLAIM_S, Claims


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def claims(clock: Clock) -> Claims:
    return Claims(clock)


def test_a_second_job_is_told_of_the_first_and_changes_nothing(claims: Claims, clock: Clock) -> None:
    assert claims.claim("tune", "first")
    clock.now_s += 12
    with pytest.raises(RunInUse, match="run 'tune' is used by job 'first', last seen 12 s ago; create a run"):
        claims.claim("tune", "second")
    assert not claims.claim("tune", "first")
    assert claims.claim("other", "second")


def test_a_claim_stands_while_it_is_renewed_and_ends_by_itself(claims: Claims, clock: Clock) -> None:
    for _ in range(5):
        claims.claim("tune", "first")
        clock.now_s += CLAIM_S - 1
        with pytest.raises(RunInUse):
            claims.claim("tune", "second")
    clock.now_s += 1
    assert claims.claim("tune", "second")
    with pytest.raises(RunInUse, match="by job 'second', last seen 0 s ago"):
        claims.claim("tune", "first")


def test_a_run_is_let_go_by_its_own_job_alone(claims: Claims) -> None:
    claims.claim("tune", "first")
    assert not claims.release("tune", "second")
    with pytest.raises(RunInUse):
        claims.claim("tune", "second")
    assert claims.release("tune", "first") and not claims.release("tune", "first")
    assert claims.claim("tune", "second")


def test_a_job_whose_run_was_taken_over_is_told_so(claims: Claims) -> None:
    claims.claim("tune", "first")
    assert claims.claim("tune", "second", take_over=True)
    for _ in range(2):
        with pytest.raises(JobSuperseded, match="job 'second' has taken run 'tune' over from job 'first'"):
            claims.claim("tune", "first")
        assert not claims.claim("tune", "second", take_over=True)
    with pytest.raises(RunInUse, match="by job 'second'"):
        claims.claim("tune", "third")
