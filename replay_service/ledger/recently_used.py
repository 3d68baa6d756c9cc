"""Values by name, of which the least recently used are dropped."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentlyUsed(Generic[T]):
    """At most `most` values, one a name; threads that ask for one name at once get the same value.

    Args:
        most: how many are kept, at least 1.
        make: gives the value of a new name; it must be quick, since all names wait for it.
    """

    def __init__(self, most: int, make: Callable[[], T]) -> None:
        self._most = most
        self._make = make
        self._lock = threading.Lock()
        self._values: OrderedDict[str, T] = OrderedDict()

    def get(self, name: str) -> T:
        """The value of a name, made if it is new or was dropped."""
        with self._lock:
            if name not in self._values:
                self._values[name] = self._make()
            self._values.move_to_end(name)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
            return self._values[name]

    def __len__(self) -> int:
        return len(self._values)
