"""Answers that watchers share, and a bound on the work that watchers cause."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from replay_service.ledger.recently_used import RecentlyUsed

T = TypeVar("T")

MOST_KEPT: Final = 256

SHARE: Final = 0.05
"""The share of a core that is spent on answers anew while older ones are at hand."""
BURST_S: Final = 0.25
"""Processor time that may be spent at once after a while in which nobody looked, seconds."""


class Allowance:
    """Processor time for watchers. It comes in evenly, and piles up to a burst while nobody looks.

    Args:
        share: of a core.
        burst_s: the most that piles up, seconds.
        monotonic: a clock, seconds.
        processor_time: that of the present thread, seconds.
    """

    def __init__(
        self,
        share: float = SHARE,
        burst_s: float = BURST_S,
        monotonic: Callable[[], float] = time.monotonic,
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._burst_s = burst_s
        self._monotonic = monotonic
        self._processor_time = processor_time
        self._lock = threading.Lock()
        self._spending = threading.local()
        self._left_s = burst_s
        self._seen_at = monotonic()

    def is_left(self) -> bool:
        with self._lock:
            return self._brought_up() > 0.0

    @contextmanager
    def spent(self) -> Iterator[None]:
        """The processor time of the block is taken off, whether it was there or not; once, where blocks are nested."""
        if getattr(self._spending, "is_on", False):
            yield
            return
        self._spending.is_on, began = True, self._processor_time()
        try:
            yield
        finally:
            self._spending.is_on = False
            with self._lock:
                self._left_s = self._brought_up() - (self._processor_time() - began)

    def _brought_up(self) -> float:
        now = self._monotonic()
        self._left_s = min(self._burst_s, self._left_s + self._share * (now - self._seen_at))
        self._seen_at = now
        return self._left_s


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    """An answer, and when it began to be made."""

    at: float
    answer: T


@dataclass(slots=True, eq=False)
class _Kept(Generic[T]):
    """The latest answer of one name; one thread makes it, and others wait for it, but for those who want a new one.

    Attributes:
        since: what began to be made before this time is not given any more.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    made: _Made[T] | None = None
    since: float = float("-inf")

    def of(self, now: float, max_age_s: float) -> _Made[T] | None:
        """The answer, if it began to be made at most so long ago."""
        made = self.made
        is_given = made is not None and max_age_s > 0.0 and made.at >= max(now - max_age_s, self.since)
        return made if is_given else None

    def make(self, now: float, make: Callable[[], T]) -> T:
        """A new answer. Until it is there, the one before is given."""
        made = None
        try:
            made = _Made(now, make())
            return made.answer
        finally:
            # Those who ask for a new one wait for nobody, so a later one may be there already.
            if made is None or self.made is None or made.at >= self.made.at:
                self.made = made


class RecentAnswers(Generic[T]):
    """The latest answers, by a name.

    Args:
        allowance: for answers that are made anew; by default one of their own.
        most: how many are kept; those that were asked for last.
        monotonic: a clock, seconds.
    """

    def __init__(
        self,
        allowance: Allowance | None = None,
        most: int = MOST_KEPT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowance = allowance or Allowance(monotonic=monotonic)
        self._monotonic = monotonic
        self._kept: RecentlyUsed[_Kept[T]] = RecentlyUsed(most, _Kept)

    def get(self, name: str, max_age_s: float, make: Callable[[], T], oldest_s: float = 0.0) -> T:
        """An answer that began to be made at most `max_age_s` seconds before this call; 0: a new one.

        It raises what `make` raises, and keeps nothing of that.

        Args:
            oldest_s: the age up to which an older answer serves while the allowance is spent, or while another thread
                makes a new one.
        """
        asked_at, kept = self._monotonic(), self._kept.get(name)
        if max_age_s <= 0.0:
            return self._made(kept, make)
        older = kept.of(asked_at, oldest_s)
        if older is not None and (kept.lock.locked() or not self._allowance.is_left()):
            return older.answer
        made = kept.of(asked_at, max_age_s)
        if made is not None:
            return made.answer
        with kept.lock:
            made = kept.of(asked_at, max_age_s)
            if made is not None:
                return made.answer
            return self._made(kept, make)

    def _made(self, kept: _Kept[T], make: Callable[[], T]) -> T:
        with self._allowance.spent():
            return kept.make(self._monotonic(), make)

    def at_hand(self, name: str, max_age_s: float, make: Callable[[], T], oldest_s: float) -> T | None:
        """The same; None where there is no such answer and the allowance is spent."""
        is_there = self._kept.get(name).of(self._monotonic(), oldest_s) is not None
        return self.get(name, max_age_s, make, oldest_s) if is_there or self._allowance.is_left() else None

    def forget(self, name: str) -> None:
        """Give no answer of this name that began to be made before."""
        self._kept.get(name).since = self._monotonic()
