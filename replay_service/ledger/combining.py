"""Combining: of threads that want the same done, one does it for all that wait."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    request: T
    is_served: bool = field(default=False, init=False)
    bell: threading.Lock = field(default_factory=threading.Lock, init=False)
    """Rings when the request was served, or when its thread is to serve."""

    def __post_init__(self) -> None:
        self.bell.acquire()


class Combiner(Generic[T]):
    """Serves the requests of many threads, one batch after the other, each in the order in which they came.

    While one thread serves, others put their requests down and sleep. Then each whose request was served wakes up, and
    one of those that came meanwhile, to serve them all. This is flat combining (Hendler et al., SPAA 2010).
    """

    def __init__(self, serve: Callable[[Sequence[T]], None]) -> None:
        self._serve = serve
        self._lock = threading.Lock()
        self._waiting: list[_Waiting[T]] = []
        self._is_serving = False

    def submit(self, request: T) -> None:
        """Return when the request was served, by this thread or by another one."""
        waiting = _Waiting(request)
        with self._lock:
            self._waiting.append(waiting)
            must_wait, self._is_serving = self._is_serving, True
        if must_wait:
            waiting.bell.acquire()
        if not waiting.is_served:
            self._serve_all()

    def _serve_all(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._serve([each.request for each in batch])
        finally:
            with self._lock:
                following = self._waiting[:1]
                self._is_serving = bool(following)
            for each in batch:
                each.is_served = True
            for each in (*following, *batch):
                each.bell.release()
