"""Numbers of runs are made in the background: of what has changed, while somebody asks."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from replay_service.errors import UnknownRun
from replay_service.gateway.metrics.run_numbers import RunWatch


def head(run: str, end_seq: int, attempt: int = 1, incarnation: int = 1) -> Any:
    return SimpleNamespace(run=run, point=SimpleNamespace(incarnation=incarnation, attempt=attempt, end_seq=end_seq))


class Reads:
    """Gives the number of a read as a run's numbers, and knows which runs were read."""

    def __init__(self, fails: Callable[[str], Exception | None] = lambda _: None) -> None:
        self.runs: list[str] = []
        self.has_read = threading.Condition()
        self._fails = fails

    def __call__(self, run: str) -> Any:
        with self.has_read:
            self.runs.append(run)
            self.has_read.notify_all()
        error = self._fails(run)
        if error is not None:
            raise error
        return len(self.runs)

    def await_reads(self, num: int) -> list[str]:
        with self.has_read:
            assert self.has_read.wait_for(lambda: len(self.runs) >= num, 60)
            return list(self.runs)


@pytest.fixture
def watched() -> Any:
    reads = Reads()
    watch = RunWatch(reads, rest=0.0)
    yield watch, reads
    watch.close()


def until(watch: RunWatch, heads: list[Any], wanted: dict[str, Any]) -> None:
    found: Any = watch.latest(heads)
    while found != wanted:
        found = watch.latest(heads)


def test_a_run_is_read_again_only_when_its_journal_has_gone_on(watched: tuple[RunWatch, Reads]) -> None:
    watch, reads = watched
    assert watch.latest([head("a", 1), head("b", 1)]) == {}
    until(watch, [head("a", 1), head("b", 1)], {"a": 1, "b": 2})
    for _ in range(5):
        watch.latest([head("a", 1), head("b", 1)])
    until(watch, [head("a", 1), head("b", 2)], {"a": 1, "b": 3})
    assert reads.runs == ["a", "b", "b"]


@pytest.mark.parametrize("later", [{"attempt": 2}, {"incarnation": 2}])
def test_a_rewind_and_another_run_of_the_name_are_changes(
    watched: tuple[RunWatch, Reads], later: dict[str, int]
) -> None:
    watch, _ = watched
    until(watch, [head("a", 5)], {"a": 1})
    until(watch, [head("a", 5, **later)], {"a": 2})


def test_a_run_that_is_asked_for_no_more_is_forgotten(watched: tuple[RunWatch, Reads]) -> None:
    watch, reads = watched
    until(watch, [head("a", 1)], {"a": 1})
    assert watch.latest([]) == {}
    assert watch.latest([head("a", 1)]) == {}
    assert reads.await_reads(2) == ["a", "a"]


def test_runs_that_cannot_be_read_keep_no_other_waiting_however_often_somebody_asks() -> None:
    """Each read asks again, so that whoever failed before could be tried first for ever."""
    heads = [head("bad", 1), head("worse", 1), head("good", 1)]

    def ask_again(run: str) -> Exception | None:
        watch.latest(heads)
        return None if run == "good" else UnknownRun("gone")

    reads = Reads(ask_again)
    watch = RunWatch(reads, rest=0.0)
    watch.latest(heads)
    assert reads.await_reads(3)[:3] == ["bad", "worse", "good"]
    watch.close()


@pytest.mark.parametrize("error", [UnknownRun("gone"), RuntimeError("a bug")])
def test_a_run_that_cannot_be_read_has_no_numbers_and_others_have(error: Exception) -> None:
    reads = Reads(lambda run: error if run == "bad" else None)
    watch = RunWatch(reads, rest=0.0)
    until(watch, [head("bad", 1), head("good", 1)], {"good": 2})
    watch.latest([head("bad", 1), head("good", 1)])
    assert reads.await_reads(3)[-1] == "bad"  # it is tried again
    watch.close()


def test_the_thread_rests_after_its_work_and_ends_at_once_when_it_is_told_to() -> None:
    reads = Reads()
    watch = RunWatch(reads, rest=1e12)
    watch.latest([head("a", 1), head("b", 1)])
    assert reads.await_reads(1) == ["a"]
    watch.close()
    assert reads.runs == ["a"]


def test_a_closed_watch_reads_nothing() -> None:
    reads = Reads()
    watch = RunWatch(reads)
    watch.close()
    assert watch.latest([head("a", 1)]) == {}
    assert reads.runs == []
