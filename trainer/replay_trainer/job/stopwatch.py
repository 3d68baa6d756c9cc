"""Where the time of a training step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Stopwatch:
    """Sums the seconds of each named part of the steps.

    Attributes:
        device: a GPU works on while Python goes ahead, so an exact stopwatch waits for it before it looks at the clock.
        exact: whether to; waiting costs speed, so only a profile does it.
    """

    device: torch.device
    exact: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what is done within to a part."""
        began = self._now()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + self._now() - began

    def take(self) -> dict[str, float]:
        """The seconds so far, by part; begins anew."""
        taken, self.seconds = self.seconds, {}
        return taken

    def _now(self) -> float:
        if self.exact and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
