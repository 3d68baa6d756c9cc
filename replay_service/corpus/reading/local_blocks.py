"""Blocks of segment files on a disk of this machine: mapped, and checked when they are first touched."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.segment_file import BLOCK_BYTES, checksums_file
from replay_service.corpus.reading.blocks import HeldBlocks, parse_checksums
from replay_service.corpus.reading.damage import (
    FAILS_CHECKSUM,
    INTACT,
    MISSING,
    NO_CHECKSUMS,
    TOO_SHORT,
    UNKNOWN,
    BlockStates,
    SegmentDamage,
    UnusableFile,
)
from replay_service.corpus.reading.mapping import SideBySide
from replay_service.errors import CorpusUnavailable

Int64Array = NDArray[np.int64]


class LocalBlocks:
    """The blocks of a corpus in a folder; what is known of an earlier generation's is taken over.

    Raises:
        CorpusUnavailable: when the system does not grant the addresses to map the corpus to.
    """

    def __init__(self, folder: Path, layout: Layout, earlier: "LocalBlocks | None" = None) -> None:
        self._folder = folder
        self._layout = layout
        self._lock = threading.Lock()
        self._states: BlockStates = BlockStates(layout, None if earlier is None else earlier._states)
        self._checksums: dict[int, NDArray[np.uint32]] = {}
        with _unavailable(folder, MISSING):
            self._files = SideBySide(int(layout.first_block[-1]) * BLOCK_BYTES)
        self._starting_anywhere: dict[int, NDArray[np.void]] = {}
        if earlier is not None:
            self._map_again(earlier)
        self._num_left = int((self._states.state != INTACT).sum())

    def all_intact(self) -> HeldBlocks | None:
        return None if self._num_left else self

    def found_intact(self, blocks: Int64Array) -> HeldBlocks | None:
        return self if self.intact(blocks).all() else None

    def hold(self, blocks: Int64Array) -> HeldBlocks:
        unknown = blocks[self._states.state[blocks] == UNKNOWN]
        if len(unknown):
            with self._lock:
                self._open_segments_of(unknown)
                # Another thread may have checked some meanwhile, and a file as a whole may be damaged.
                self._check(np.unique(unknown[self._states.state[unknown] == UNKNOWN]))
        return self

    def read_ahead(self, blocks: Int64Array) -> None:
        """Nothing: the system reads a mapped file."""

    def intact(self, blocks: Int64Array) -> NDArray[np.bool_]:
        intact: NDArray[np.bool_] = self._states.state[blocks] == INTACT
        return intact

    def take(self, positions: Int64Array, num_bytes: int) -> NDArray[np.void]:
        stretches = self._starting_anywhere.get(num_bytes)
        if stretches is None:
            stretches = self._starting_anywhere[num_bytes] = _starting_anywhere(self._files.bytes, num_bytes)
        return stretches[positions]

    def damage(self) -> list[SegmentDamage]:
        return self._states.found()

    def _check(self, blocks: Int64Array) -> None:
        numbers = self._layout.segment_of(blocks)
        within = blocks - self._layout.first_block[numbers]
        for block, number, index in zip(blocks.tolist(), numbers.tolist(), within.tolist(), strict=True):
            end = min((index + 1) * BLOCK_BYTES, self._layout.segments[number].num_bytes)
            first = block * BLOCK_BYTES
            content = self._files.bytes[first : first + end - index * BLOCK_BYTES]
            if crc32(content.data) == self._checksums[number][index]:
                self._states.state[block] = INTACT
                self._num_left -= 1
            else:
                self._states.damaged(number, block, block + 1, FAILS_CHECKSUM)

    def _open_segments_of(self, blocks: Int64Array) -> None:
        for number in np.unique(self._layout.segment_of(blocks)).tolist():
            if number not in self._checksums:
                self._open(number)

    def _open(self, number: int) -> None:
        """Map a segment; blocks that cannot be read, or not be checked, count as damaged from now on."""
        first, end = self._layout.span(number)
        try:
            num_bytes = self._map(number)
            self._checksums[number] = self._read_checksums(number)
        except UnusableFile as error:
            self._states.damaged(number, first, end, error.problem)
            return
        num_whole = num_bytes // BLOCK_BYTES
        if num_bytes < self._layout.num_bytes(number):
            self._states.damaged(number, first + num_whole, end, TOO_SHORT)

    def _read_checksums(self, number: int) -> NDArray[np.uint32]:
        segment = self._layout.segments[number]
        path = self._folder / checksums_file(segment.file)
        with _unavailable(path, NO_CHECKSUMS):
            return parse_checksums(path.read_bytes(), segment)

    def _map(self, number: int) -> int:
        """Map a segment's file to its place; gives how many of the bytes that rows need are there."""
        path = self._folder / self._layout.segments[number].file
        with _unavailable(path, MISSING):
            return self._files.put(path, self._layout.span(number)[0] * BLOCK_BYTES, self._layout.num_bytes(number))

    def _map_again(self, earlier: "LocalBlocks") -> None:
        """Map what the earlier generation had mapped, so that what it checked can be read."""
        num_common = self._layout.num_common(earlier._layout)
        for number, checksums in list(earlier._checksums.items()):
            if number < num_common:
                try:
                    self._map(number)
                    self._checksums[number] = checksums
                except (UnusableFile, CorpusUnavailable):
                    self._states.forget(number)


def _starting_anywhere(content: NDArray[np.uint8], num_bytes: int) -> NDArray[np.void]:
    """At each place, the `num_bytes` bytes from there on: overlapping views, which one index gathers from."""
    return np.ndarray(len(content) - num_bytes + 1, f"V{num_bytes}", content, strides=1)


@contextmanager
def _unavailable(path: Path, problem_if_missing: str) -> Iterator[None]:
    """What the system refuses now it may grant later; a file that is not there is damage."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableFile(problem_if_missing) from None
    except OSError as error:
        raise CorpusUnavailable(
            f"{path} cannot be opened now: {error}; see to its rights and to the limits of the service's process"
        ) from error
