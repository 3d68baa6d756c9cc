"""Answers that watchers share, and the bound on the work that watchers cause."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event

import pytest

from replay_service.gateway.recent_answers import Allowance, RecentAnswers


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """Answers that are numbers; each one takes some processor time to make."""

    def __init__(self, takes_s: float, burst_s: float = 1.0) -> None:
        self.clock, self.processor, self.numbers = Clock(), Clock(), count()
        self.takes_s = takes_s
        allowance = Allowance(0.1, burst_s, self.clock, self.processor)
        self.answers = RecentAnswers[int](allowance, monotonic=self.clock)

    def make(self) -> int:
        self.processor.now += self.takes_s
        return next(self.numbers)

    def get(self, name: str = "a", max_age_s: float = 1.0, oldest_s: float = 20.0) -> int:
        return self.answers.get(name, max_age_s, self.make, oldest_s)


def test_an_answer_serves_whoever_takes_its_age() -> None:
    clock, numbers = Clock(), count()
    answers = RecentAnswers[int](monotonic=clock)

    def get(max_age_s: float, name: str = "a") -> int:
        return answers.get(name, max_age_s, lambda: next(numbers))

    assert [get(1.0), get(1.0), get(0.0), get(1.0)] == [0, 0, 1, 1]
    clock.now += 0.9
    assert [get(1.0), get(0.5), get(1.0), get(1.0, "b")] == [1, 2, 2, 3]
    clock.now += 1.1
    assert get(1.0) == 4


def test_of_many_who_ask_at_once_one_makes_the_answer() -> None:
    numbers = count()
    answers = RecentAnswers[int]()
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: answers.get("a", 60.0, lambda: next(numbers)), range(50)))
    assert found == [0] * 50


def test_what_failed_is_not_kept_and_old_answers_go() -> None:
    answers = RecentAnswers[int](most=2)
    with pytest.raises(ZeroDivisionError):
        answers.get("a", 60.0, lambda: 1 // 0)
    assert [answers.get(name, 60.0, lambda: 1) for name in ("a", "b", "c")] == [1, 1, 1]
    assert [answers.get("a", 60.0, lambda: 2), answers.get("c", 60.0, lambda: 2)] == [2, 1]


def test_what_watchers_cost_is_bounded_by_the_allowance() -> None:
    world = World(takes_s=0.5)
    found = []
    for _ in range(100):  # a look a second, for 100 seconds: 10 seconds of processor time, and the burst
        found.append(world.get(oldest_s=1000.0))
        world.clock.now += 1.0
    assert found == sorted(found)
    assert 20 <= world.get() <= 23


def test_no_answer_is_older_than_the_oldest_that_is_taken() -> None:
    world = World(takes_s=50.0)
    assert world.get() == 0
    world.clock.now += 19.0
    assert world.get() == 0
    world.clock.now += 2.0
    assert world.get() == 1


def test_strict_askers_get_new_answers_whatever_they_cost() -> None:
    world = World(takes_s=50.0)
    assert [world.get(oldest_s=0.0), world.get(max_age_s=0.0, oldest_s=0.0)] == [0, 1]
    world.clock.now += 1.5
    assert [world.get(), world.get(oldest_s=0.0)] == [1, 2]


def test_an_older_answer_is_given_while_a_new_one_is_made() -> None:
    answers = RecentAnswers[int]()
    answers.get("a", 1.0, lambda: 1)
    is_making, may_end = Event(), Event()

    def slowly() -> int:
        is_making.set()
        may_end.wait()
        return 2

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(answers.get, "a", 1e-9, slowly)
        is_making.wait()
        assert answers.get("a", 1e-9, lambda: 3, oldest_s=60.0) == 1
        may_end.set()
        assert slow.result() == 2
    assert answers.get("a", 60.0, lambda: 3) == 2


def test_at_hand_is_what_can_be_made_within_the_allowance() -> None:
    world = World(takes_s=0.6)
    found = [world.answers.at_hand(name, 1.0, world.make, 20.0) for name in ("a", "b", "c", "a")]
    assert found == [0, 1, None, 0]
    world.clock.now += 10.0
    assert [world.answers.at_hand(name, 1.0, world.make, 20.0) for name in ("c", "b", "a")] == [2, 3, 0]


def test_what_is_forgotten_is_not_given_any_more_also_if_it_is_being_made() -> None:
    world = World(takes_s=50.0)
    assert world.get() == 0
    world.clock.now += 0.1
    world.answers.forget("a")
    assert world.get() == 1

    def forgotten_meanwhile() -> int:
        world.clock.now += 1.0
        world.answers.forget("a")
        return 7

    assert world.answers.get("a", 0.0, forgotten_meanwhile) == 7
    assert world.get() == 2


def test_who_wants_a_new_answer_waits_for_nobody_and_the_latest_is_kept() -> None:
    answers = RecentAnswers[int]()
    is_making, may_end = Event(), Event()

    def slowly() -> int:
        is_making.set()
        may_end.wait()
        return 1

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(answers.get, "a", 0.0, slowly)
        is_making.wait()
        assert answers.get("a", 0.0, lambda: 2) == 2
        may_end.set()
        assert slow.result() == 1
    assert answers.get("a", 60.0, lambda: 3) == 2
