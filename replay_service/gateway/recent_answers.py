"""Answers that many watchers share: one that is made serves all who take an answer of its age."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from replay_service.ledger.recently_used import RecentlyUsed

T = TypeVar("T")

MOST_KEPT: Final = 256


@dataclass(slots=True, eq=False)
class _Kept(Generic[T]):
    """The latest answer of one kind, and when it began to be made; one thread makes it, and others wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    made_at: float = float("-inf")
    answer: T | None = None


class RecentAnswers(Generic[T]):
    """The latest answers, by a name.

    Args:
        most: how many are kept; those that were asked for last.
        monotonic: a clock, seconds.
    """

    def __init__(self, most: int = MOST_KEPT, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._kept: RecentlyUsed[_Kept[T]] = RecentlyUsed(most, _Kept)

    def get(self, name: str, max_age_s: float, make: Callable[[], T]) -> T:
        """An answer that began to be made at most `max_age_s` seconds before this call; by default a new one.

        It raises what `make` raises, and keeps nothing of that.
        """
        if max_age_s <= 0.0:
            return make()
        asked_at = self._monotonic()
        kept = self._kept.get(name)
        with kept.lock:
            if kept.answer is None or kept.made_at < asked_at - max_age_s:
                kept.answer, made_at = None, self._monotonic()
                kept.answer, kept.made_at = make(), made_at
            return kept.answer
