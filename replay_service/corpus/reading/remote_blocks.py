"""Blocks of segment files in object storage: fetched in parallel, checked, and kept within bounds."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.manifest import Segment
from replay_service.corpus.format.segment_file import BLOCK_BYTES, checksums_file
from replay_service.corpus.reading.blocks import FilesChanged, HeldBlocks, parse_checksums
from replay_service.corpus.reading.damage import (
    DAMAGED,
    FAILS_CHECKSUM,
    MISSING,
    NO_CHECKSUMS,
    TOO_SHORT,
    BlockStates,
    SegmentDamage,
    UnusableFile,
)
from replay_service.corpus.reading.object_storage import ObjectStorage, RemoteFile

Int64Array = NDArray[np.int64]
Fetched = dict[int, bytes]
Key = tuple["RemoteSegment", int]

NUM_REQUESTS: Final = 16
"""In flight at once, of one store."""

MOST_BLOCKS_A_REQUEST: Final = 64

_ADVICE: Final = "put back the file from a copy of the corpus, and start the service again"


class BlockCache:
    """Intact blocks of all corpora of a store, by segment and number; those not used for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Key, bytes] = OrderedDict()

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: Key, block: bytes) -> None:
        with self._lock:
            self.num_bytes += len(block) - len(self._blocks.pop(key, b""))
            self._blocks[key] = block
            while self.num_bytes > self.max_bytes:
                _, dropped = self._blocks.popitem(last=False)
                self.num_bytes -= len(dropped)


class Fetcher:
    """What the corpora of a store share: the storage, the cache, and the threads that wait for requests."""

    def __init__(self, storage: ObjectStorage, cache_bytes: int) -> None:
        self.storage = storage
        self.cache = BlockCache(cache_bytes)
        self.threads = ThreadPoolExecutor(NUM_REQUESTS, thread_name_prefix="fetch")

    def close(self) -> None:
        """Ask for nothing more."""
        self.threads.shutdown(cancel_futures=True)


class RemoteSegment:
    """One segment file in object storage. Nothing is asked of it before its first block is fetched."""

    def __init__(self, storage: ObjectStorage, folder: str, segment: Segment) -> None:
        self._storage = storage
        self._segment = segment
        self._checksums_path = f"{folder}/{checksums_file(segment.file)}"
        self._file = RemoteFile(storage, f"{folder}/{segment.file}")
        self._lock = threading.Lock()
        self._checksums: NDArray[np.uint32] | None = None

    def fetch(self, first: int, end: int) -> tuple[Fetched, str]:
        """The intact ones of the blocks from `first` to `end`, by number, and what is wrong with the others.

        Raises:
            UnusableFile: when the file is not there, or cannot be checked.
            CorpusUnavailable: when storage does not answer.
        """
        checksums = self._all_checksums()
        num_bytes = min(end * BLOCK_BYTES, self._segment.num_bytes) - first * BLOCK_BYTES
        # What was damaged on its way is whole the second time.
        for _ in range(2):
            try:
                content = self._file.read(first * BLOCK_BYTES, num_bytes)
            except FileNotFoundError:
                raise UnusableFile(MISSING) from None
            pieces = {block: content[(block - first) * BLOCK_BYTES :][:BLOCK_BYTES] for block in range(first, end)}
            intact = {block: piece for block, piece in pieces.items() if crc32(piece) == checksums[block]}
            if len(intact) == len(pieces):
                break
        return intact, TOO_SHORT if len(content) < num_bytes else FAILS_CHECKSUM

    def _all_checksums(self) -> NDArray[np.uint32]:
        """The checksum of each block, fetched by the first thread that needs one."""
        with self._lock:
            if self._checksums is None:
                try:
                    content = self._storage.read(self._checksums_path)
                except FileNotFoundError:
                    raise UnusableFile(NO_CHECKSUMS) from None
                self._checksums = parse_checksums(content, self._segment)
            return self._checksums


class RemoteBlocks:
    """The blocks of a corpus in object storage; what is known of an earlier generation's is taken over."""

    def __init__(self, fetcher: Fetcher, folder: str, layout: Layout, earlier: "RemoteBlocks | None" = None) -> None:
        self._fetcher = fetcher
        self._folder = folder
        self._layout = layout
        self._states = BlockStates(layout, _ADVICE)
        self._lock = threading.Lock()
        self._coming: dict[int, Future[Fetched]] = {}
        self._segments: dict[int, RemoteSegment] = {}
        if earlier is not None:
            self._states.take_over(earlier._states)
            num_common = layout.num_common(earlier._layout)
            self._segments = {number: each for number, each in dict(earlier._segments).items() if number < num_common}

    def all_intact(self) -> HeldBlocks | None:
        """Never: blocks leave the cache."""
        return None

    def found_intact(self, blocks: Int64Array) -> HeldBlocks | None:
        return None

    def hold(self, blocks: Int64Array) -> HeldBlocks:
        wanted = np.unique(blocks)
        wanted = wanted[self._states.state[wanted] != DAMAGED]
        numbers = self._layout.segment_of(wanted)
        at_hand: Fetched = {}
        coming: dict[int, Future[Fetched]] = {}
        missing: list[tuple[int, int]] = []
        with self._lock:
            for number, block in zip(numbers.tolist(), wanted.tolist(), strict=True):
                content = self._fetcher.cache.get(self._key(number, block))
                if content is not None:
                    at_hand[block] = content
                elif block in self._coming:
                    coming[block] = self._coming[block]
                else:
                    missing.append((number, block))
            for number, run in _runs(missing):
                coming |= dict.fromkeys(run, self._fetcher.threads.submit(self._fetch, number, run))
            self._coming |= coming
        return HeldRemoteBlocks(at_hand, set(coming.values()))

    def look_again(self, changed: FilesChanged) -> None:
        """Nothing: bytes that were checked are kept, whatever becomes of their file."""

    def read_ahead(self, blocks: Int64Array) -> None:
        """Begin to fetch blocks, but no more than half of the cache holds; those of the first rows come first."""
        by_row = blocks.T.reshape(-1)
        _, first_places = np.unique(by_row, return_index=True)
        most = self._fetcher.cache.max_bytes // 2 // BLOCK_BYTES
        self.hold(by_row[np.sort(first_places)[:most]])

    def damage(self) -> list[SegmentDamage]:
        return self._states.found()

    def _key(self, number: int, block: int) -> Key:
        return self._segment(number), block - int(self._layout.first_block[number])

    def _segment(self, number: int) -> RemoteSegment:
        if number not in self._segments:
            segment = self._layout.segments[number]
            self._segments[number] = RemoteSegment(self._fetcher.storage, self._folder, segment)
        return self._segments[number]

    def _fetch(self, number: int, run: range) -> Fetched:
        """The intact blocks of a run in one segment."""
        try:
            fetched = self._intact(number, run)
            for block, content in fetched.items():
                self._fetcher.cache.put(self._key(number, block), content)
            return fetched
        finally:
            with self._lock:
                for block in run:
                    del self._coming[block]

    def _intact(self, number: int, run: range) -> Fetched:
        first, end = self._layout.span(number)
        try:
            within, problem = self._segment(number).fetch(run.start - first, run.stop - first)
        except UnusableFile as error:
            self._states.damaged(number, first, end, error.problem)
            return {}
        intact = {first + block: content for block, content in within.items()}
        for block in run:
            if block not in intact:
                self._states.damaged(number, block, block + 1, problem)
        return intact


class HeldRemoteBlocks:
    """Blocks at hand and blocks to come; whoever holds them keeps them, whatever the cache drops meanwhile."""

    def __init__(self, at_hand: Fetched, coming: set[Future[Fetched]]) -> None:
        self._at_hand = at_hand
        self._coming = coming

    def intact(self, blocks: Int64Array) -> NDArray[np.bool_]:
        for future in self._coming:
            self._at_hand.update(future.result())
        self._coming = set()
        return np.isin(blocks, np.fromiter(self._at_hand, np.int64, len(self._at_hand)))

    def take(self, positions: Int64Array, widths: Sequence[int]) -> list[NDArray[np.void]]:
        begins = itertools.accumulate(widths[:-1], initial=0)
        return [self._part(positions + begin, width) for begin, width in zip(begins, widths, strict=True)]

    def _part(self, positions: Int64Array, num_bytes: int) -> NDArray[np.void]:
        content = b"".join(piece for first in positions.tolist() for piece in self._pieces(first, num_bytes))
        return np.frombuffer(content, f"V{num_bytes}")

    def _pieces(self, first: int, num_bytes: int) -> Iterator[bytes]:
        """The bytes from `first` on the line on, one piece from each block that they lie in."""
        while num_bytes:
            block, start = divmod(first, BLOCK_BYTES)
            piece = self._at_hand[block][start : start + num_bytes]
            yield piece
            first += len(piece)
            num_bytes -= len(piece)


def _runs(blocks: list[tuple[int, int]]) -> Iterator[tuple[int, range]]:
    """(segment, block) in ascending order as stretches of adjacent blocks of a segment, none longer than a request."""
    first = 0
    for i, (number, block) in enumerate(blocks):
        is_last = i + 1 == len(blocks) or blocks[i + 1] != (number, block + 1)
        if is_last or i + 1 - first == MOST_BLOCKS_A_REQUEST:
            yield number, range(blocks[first][1], block + 1)
            first = i + 1
