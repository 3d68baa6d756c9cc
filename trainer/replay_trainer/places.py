"""The addresses of a service, in the order in which they are tried."""

import socket
import time
from collections.abc import Sequence
from itertools import count
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import structlog

from replay_trainer.http_connection import time_left
from replay_trainer.routes import CONNECT_S, Place, Route

_log = structlog.get_logger()


class Places:
    """The addresses that the routes to a service lead to; a name that has several means all of them.

    The one that has answered last is tried first, then those that have not failed, in order, then those that failed
    longest ago. For any number of threads.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)
        self._lock = Lock()
        self._known: dict[Route, list[Place]] = {}
        self._good: Place | None = None
        self._failed: dict[Place, tuple[int, str]] = {}
        """When each of them failed, as a number that counts failures, and how."""
        self._numbers = count(1)

    def in_order(self, deadline: float) -> list[Place]:
        """All addresses, looked up now. Of a name that cannot be looked up they are those that it had before.

        Raises:
            OSError: when no name of the service can be looked up, and none could before.
        """
        lookups = [_Lookup(route) for route in self._routes]
        error = self._learn(lookups, deadline)
        found = [place for route in self._routes for place in self._known.get(route, [])]
        if not found and error is not None:
            raise error
        with self._lock:
            self._failed = {place: how for place, how in self._failed.items() if place in found}
            return sorted(found, key=self._rank)

    def answered(self, place: Place) -> None:
        """Take note of an answer; the log has a line where it did not come from the address that should have given it:
        the last good one, or one of the first URL."""
        with self._lock:
            before, self._good = self._good, place
            self._failed.pop(place, None)
            failed = [
                (other, how)
                for other, (_, how) in self._failed.items()
                if other == before or (before is None and other.route == self._routes[0] != place.route)
            ]
        if failed and before != place:
            _log.warning("service_failover", failed=str(failed[0][0]), problem=failed[0][1], now=str(place))

    def failed(self, place: Place, how: str) -> None:
        """Take note of a failure: the others are tried before this one."""
        with self._lock:
            self._failed[place] = next(self._numbers), how

    def _rank(self, place: Place) -> tuple[int, bool]:
        return self._failed.get(place, (0, ""))[0], place != self._good

    def _learn(self, lookups: "Sequence[_Lookup]", deadline: float) -> OSError | None:
        """Keep what the lookups find; the error of one that found nothing."""
        left_s = time_left(deadline) / 2
        ends_at = time.monotonic() + (min(CONNECT_S, left_s) if len(self._known) == len(self._routes) else left_s)
        failure: OSError | None = None
        for lookup in lookups:
            try:
                self._known[lookup.route] = lookup.places(ends_at)
            except OSError as error:
                failure = error
        return failure


class _Lookup:
    """A name that is being looked up, in the background: the system may take longer than there is time."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self._found: SimpleQueue[list[Any] | OSError | UnicodeError] = SimpleQueue()
        Thread(target=self._look_up, name="lookup", daemon=True).start()

    def places(self, ends_at: float) -> list[Place]:
        """What was found; raises OSError when nothing was, or not until the time `ends_at` of `time.monotonic`."""
        host = self.route.at[0]
        try:
            found = self._found.get(timeout=max(0.0, ends_at - time.monotonic()))
        except Empty:
            raise TimeoutError(f"the name {host} could not be looked up in time") from None
        if isinstance(found, OSError):
            raise found
        if isinstance(found, UnicodeError):
            raise socket.gaierror(socket.EAI_NONAME, f"{host} is no name of a host")
        return list(dict.fromkeys(Place(self.route, family, address) for family, *_, address in found))

    def _look_up(self) -> None:
        try:
            self._found.put(socket.getaddrinfo(*self.route.at, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            self._found.put(error)
