"""Damage of segment files. It takes out the samples that it touches, and no others."""

import threading
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from replay_service.corpus.format.layout import Layout

FAILS_CHECKSUM: Final = "a block fails its checksum"
TOO_SHORT: Final = "the file is too short"
UNREADABLE: Final = "a block cannot be read: the file was cut short, or its disk fails"
CHANGING: Final = "the file changes again and again"
MISSING: Final = "the file is missing"
NO_CHECKSUMS: Final = "its checksums file (.crc32) is missing"
WRONG_CHECKSUMS: Final = "its checksums file (.crc32) is damaged or of another segment"

UNKNOWN: Final = 0
INTACT: Final = 1
DAMAGED: Final = 2

_log = structlog.get_logger()


class UnusableFile(Exception):
    """A segment file of which no block can be read, or be checked."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class SegmentDamage:
    """The known damage of a segment file."""

    file: str
    problem: str
    """The first thing that was found."""
    num_blocks: int
    """Its blocks of 64 KiB that cannot be read, of those that were looked at."""


class BlockStates:
    """The known state of each block of a corpus; any thread may write it down.

    Args:
        advice: what brings samples of a damaged segment back, for the log.
    """

    def __init__(self, layout: Layout, advice: str) -> None:
        self._layout = layout
        self._advice = advice
        self._lock = threading.Lock()
        self._problems: dict[int, str] = {}
        self.state: NDArray[np.uint8] = np.full(layout.first_block[-1], UNKNOWN, dtype=np.uint8)
        """uint8, by block: UNKNOWN, INTACT or DAMAGED."""

    def take_over(self, earlier: "BlockStates") -> None:
        """Take over the state of the segments that an earlier generation has too."""
        num_common = self._layout.num_common(earlier._layout)
        end = self._layout.first_block[num_common]
        with earlier._lock:
            self.state[:end] = earlier.state[:end]
            self._problems = {number: text for number, text in earlier._problems.items() if number < num_common}

    def damaged(self, number: int, first: int, end: int, problem: str) -> None:
        """The blocks from `first` to `end` of segment `number` cannot be read; the first time, the log says so."""
        with self._lock:
            is_new = number not in self._problems
            self._problems.setdefault(number, problem)
            self.state[first:end] = DAMAGED
        if is_new:
            file, block = self._layout.segments[number].file, first - self._layout.span(number)[0]
            advice = f"its samples in such blocks are served with length 0; {self._advice}"
            _log.error("damaged segment", file=file, block=block, problem=problem, advice=advice)

    def forget(self, number: int) -> None:
        """Look at the blocks of a segment again when they are touched."""
        first, end = self._layout.span(number)
        with self._lock:
            was_damaged = self._problems.pop(number, None) is not None
            self.state[first:end] = UNKNOWN
        if was_damaged:
            _log.info("damaged segment has changed and is read again", file=self._layout.segments[number].file)

    def found(self) -> list[SegmentDamage]:
        """The damage of each segment that has any, in their order."""
        with self._lock:
            problems = sorted(self._problems.items())
        found = []
        for number, problem in problems:
            first, end = self._layout.span(number)
            num_blocks = int((self.state[first:end] == DAMAGED).sum())
            found.append(SegmentDamage(self._layout.segments[number].file, problem, num_blocks))
        return found
