"""Blocks of segment files on a disk of this machine: mapped, and checked when they are first touched.

A file may be cut short, overwritten or replaced while it is served. So rows are copied out of the mapping first, and
given out only if their files are still what they were when their blocks were checked. The epoch tells whether another
thread has mapped a file again meanwhile.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.segment_file import BLOCK_BYTES, checksums_file
from replay_service.corpus.reading.blocks import FilesChanged, HeldBlocks, parse_checksums
from replay_service.corpus.reading.damage import (
    CHANGING,
    DAMAGED,
    FAILS_CHECKSUM,
    INTACT,
    MISSING,
    NO_CHECKSUMS,
    TOO_SHORT,
    UNKNOWN,
    UNREADABLE,
    BlockStates,
    SegmentDamage,
    UnusableFile,
)
from replay_service.corpus.reading.file_state import FileState, state_at
from replay_service.corpus.reading.mapping import SideBySide
from replay_service.errors import CorpusUnavailable

Int64Array = NDArray[np.int64]
_Known = TypeVar("_Known")

SECONDS_BETWEEN_LOOKS: Final = 1.0
"""At least, of one segment that changed or is damaged."""

_TICK_NS: Final = 20_000_000
"""Two changes of a file within a tick of the system's clock, which is shorter, may leave it the same times."""
_MOST_TICKS: Final = 5

_ADVICE: Final = "put back the file from a copy of the corpus; the service reads it again within seconds"


class LocalBlocks:
    """The blocks of a corpus in a folder; what is known of an earlier generation's is taken over.

    Args:
        monotonic: a clock, seconds.

    Raises:
        CorpusUnavailable: when the system does not grant the addresses to map the corpus to.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        earlier: "LocalBlocks | None" = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._layout = layout
        self._monotonic = monotonic
        self._paths = [os.fspath(folder / segment.file) for segment in layout.segments]
        self._lock = threading.Lock()
        self._epoch = 0
        self._checksums: dict[int, NDArray[np.uint32]] = {}
        self._seen: dict[int, tuple[FileState | None, FileState | None]] = {}
        self._forgotten_in: dict[int, int] = {}
        self._next_look: dict[int, float] = {}
        with _unavailable(folder, MISSING):
            self._files = SideBySide(int(layout.first_block[-1]) * BLOCK_BYTES)
        self._states = BlockStates(layout, _ADVICE)
        if earlier is not None:
            with earlier._lock:
                self._take_over(earlier)
        self._count_left()

    def all_intact(self) -> HeldBlocks | None:
        held = _Held(self, self._epoch)
        return None if self._num_left else held

    def found_intact(self, blocks: Int64Array) -> HeldBlocks | None:
        held = _Held(self, self._epoch)
        return held if self.intact(blocks).all() else None

    def hold(self, blocks: Int64Array) -> HeldBlocks:
        self._forget_changed(blocks[self._states.state[blocks] == DAMAGED])
        held = _Held(self, self._epoch)
        if len(self._unknown(blocks)):
            with self._lock:
                self._open_segments_of(self._unknown(blocks))
                # A file as a whole may be damaged.
                self._check(np.unique(self._unknown(blocks)))
        return held

    def look_again(self, changed: FilesChanged) -> None:
        """Check segments again when they are touched; one that changes more than once a second is damaged for now."""
        now = self._monotonic()
        with self._lock:
            for number in changed.segments:
                if self._forgotten_in.get(number, -1) > changed.epoch:
                    continue  # another thread has seen to it
                if self._is_due(number, now):
                    self._forget(number, now)
                else:
                    self._seen.pop(number, None)
                    self._states.damaged(number, *self._layout.span(number), CHANGING)
                    self._count_left()

    def read_ahead(self, blocks: Int64Array) -> None:
        """Nothing: the system reads a mapped file."""

    def intact(self, blocks: Int64Array) -> NDArray[np.bool_]:
        intact: NDArray[np.bool_] = self._states.state[blocks] == INTACT
        return intact

    def take(self, positions: Int64Array, widths: Sequence[int], epoch: int) -> list[NDArray[np.void]]:
        """As `HeldBlocks.take`, of blocks that were intact in an epoch."""
        copies, failed = self._files.gather(positions, widths)
        changed = set() if failed is None else self._segments_of(positions[failed : failed + 1] // BLOCK_BYTES)
        touched = self._segments_of(positions // BLOCK_BYTES)
        changed |= {number for number in touched if not self._is_as_checked(number)}
        # Last, since a segment that is mapped again counts as checked only in a later epoch.
        if changed or epoch != self._epoch:
            raise FilesChanged(changed, epoch)
        return copies

    def damage(self) -> list[SegmentDamage]:
        return self._states.found()

    def _unknown(self, blocks: Int64Array) -> Int64Array:
        unknown: Int64Array = blocks[self._states.state[blocks] == UNKNOWN]
        return unknown

    def _segments_of(self, blocks: Int64Array) -> set[int]:
        return set(self._layout.segment_of(blocks).tolist())

    def _is_as_checked(self, number: int) -> bool:
        seen = self._seen.get(number)
        return seen is not None and seen[0] is not None and seen[0] == state_at(self._paths[number])

    def _files_now(self, number: int) -> tuple[FileState | None, FileState | None]:
        """The states of a segment's file and of its checksums file."""
        path = self._paths[number]
        return state_at(path), state_at(checksums_file(path))

    def _is_due(self, number: int, now: float) -> bool:
        return now >= self._next_look.get(number, now)

    def _forget_changed(self, damaged: Int64Array) -> None:
        """Forget what is known of segments that were damaged, and whose files have changed since."""
        now = self._monotonic()
        due = {number for number in self._segments_of(damaged) if self._is_due(number, now)}
        if not due:
            return
        with self._lock:
            for number in due:
                if self._is_due(number, now):  # else another thread has looked meanwhile
                    self._next_look[number] = now + SECONDS_BETWEEN_LOOKS
                    if self._files_now(number) != self._seen.get(number):
                        self._forget(number, now)

    def _forget(self, number: int, now: float) -> None:
        self._next_look[number] = now + SECONDS_BETWEEN_LOOKS
        self._states.forget(number)
        self._checksums.pop(number, None)
        self._count_left()
        # Whoever sees the new epoch sees that the blocks are not checked.
        self._epoch += 1
        self._forgotten_in[number] = self._epoch

    def _count_left(self) -> None:
        self._num_left = int((self._states.state != INTACT).sum())

    def _check(self, blocks: Int64Array) -> None:
        numbers = self._layout.segment_of(blocks)
        within = blocks - self._layout.first_block[numbers]
        for block, number, index in zip(blocks.tolist(), numbers.tolist(), within.tolist(), strict=True):
            end = min((index + 1) * BLOCK_BYTES, self._layout.segments[number].num_bytes)
            (content,), failed = self._files.gather(np.array([block * BLOCK_BYTES]), [end - index * BLOCK_BYTES])
            if failed is None and crc32(content.view(np.uint8)) == self._checksums[number][index]:
                self._states.state[block] = INTACT
                self._num_left -= 1
            else:
                self._states.damaged(number, block, block + 1, FAILS_CHECKSUM if failed is None else UNREADABLE)

    def _open_segments_of(self, blocks: Int64Array) -> None:
        for number in sorted(self._segments_of(blocks)):
            if number not in self._checksums:
                self._open(number)

    def _open(self, number: int) -> None:
        """Map a segment; blocks that cannot be read, or not be checked, count as damaged from now on."""
        first, end = self._layout.span(number)
        # Before the files are opened: what changes from now on will show.
        self._seen[number] = self._files_now(number)
        try:
            self._await_settled(number)
            num_bytes = self._map(number)
            self._checksums[number] = self._read_checksums(number)
        except UnusableFile as error:
            self._states.damaged(number, first, end, error.problem)
            return
        num_whole = num_bytes // BLOCK_BYTES
        if num_bytes < self._layout.num_bytes(number):
            self._states.damaged(number, first + num_whole, end, TOO_SHORT)

    def _await_settled(self, number: int) -> None:
        """Wait until a later change must show; raises UnusableFile when the file changes all the time."""
        for _ in range(_MOST_TICKS):
            state = self._seen[number][0]
            if state is None or abs(time.time_ns() - state.ctime_ns) > _TICK_NS:
                return
            time.sleep(_TICK_NS / 1e9)
            self._seen[number] = self._files_now(number)
        del self._seen[number]
        raise UnusableFile(CHANGING)

    def _read_checksums(self, number: int) -> NDArray[np.uint32]:
        segment = self._layout.segments[number]
        path = self._folder / checksums_file(segment.file)
        with _unavailable(path, NO_CHECKSUMS):
            return parse_checksums(path.read_bytes(), segment)

    def _map(self, number: int) -> int:
        """Map a segment's file to its place; gives how many of the bytes that rows need are there."""
        path = self._folder / self._layout.segments[number].file
        with _unavailable(path, MISSING), path.open("rb") as file:
            num_bytes = min(self._layout.num_bytes(number), os.fstat(file.fileno()).st_size)
            self._files.put(file.fileno(), self._layout.span(number)[0] * BLOCK_BYTES, num_bytes)
            return num_bytes

    def _take_over(self, earlier: "LocalBlocks") -> None:
        """Map what the earlier generation had mapped, so that what it checked can be read."""
        num_common = self._layout.num_common(earlier._layout)
        self._states.take_over(earlier._states)
        self._seen = _first(num_common, earlier._seen)
        self._next_look = _first(num_common, earlier._next_look)
        for number, checksums in _first(num_common, earlier._checksums).items():
            try:
                self._map(number)
                self._checksums[number] = checksums
            except (UnusableFile, CorpusUnavailable):
                self._states.forget(number)


@dataclass(frozen=True, slots=True)
class _Held:
    """Blocks as they are in an epoch."""

    _blocks: LocalBlocks
    _epoch: int

    def intact(self, blocks: Int64Array) -> NDArray[np.bool_]:
        return self._blocks.intact(blocks)

    def take(self, positions: Int64Array, widths: Sequence[int]) -> list[NDArray[np.void]]:
        return self._blocks.take(positions, widths, self._epoch)


def _first(num_segments: int, by_number: dict[int, _Known]) -> dict[int, _Known]:
    return {number: known for number, known in by_number.items() if number < num_segments}


@contextmanager
def _unavailable(path: Path, problem_if_missing: str) -> Iterator[None]:
    """A refusal by the system may pass; a file that is not there is damage."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableFile(problem_if_missing) from None
    except OSError as error:
        raise CorpusUnavailable(
            f"{path} cannot be opened now: {error}; see to its rights and to the limits of the service's process"
        ) from error
