"""Answers that watchers share."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from replay_service.gateway.recent_answers import RecentAnswers


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_serves_whoever_takes_its_age() -> None:
    clock, numbers = Clock(), count()
    answers = RecentAnswers[int](monotonic=clock)

    def get(max_age_s: float, name: str = "a") -> int:
        return answers.get(name, max_age_s, lambda: next(numbers))

    assert [get(1.0), get(1.0), get(0.0), get(1.0)] == [0, 0, 1, 0]
    clock.now += 0.9
    assert [get(1.0), get(0.5), get(1.0), get(1.0, "b")] == [0, 2, 2, 3]
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
