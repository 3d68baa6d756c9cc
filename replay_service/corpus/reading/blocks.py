"""The blocks of a corpus: none of their bytes is given out before the block was checked.

A reader holds the blocks that its rows lie in, asks which are intact, and takes rows of those. Where the bytes come
from, mapped files (`local_blocks`) or object storage (`remote_blocks`), makes no difference to it.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from replay_service.corpus.format.manifest import Segment
from replay_service.corpus.format.segment_file import num_blocks
from replay_service.corpus.reading.damage import WRONG_CHECKSUMS, SegmentDamage, UnusableFile

Int64Array = NDArray[np.int64]


class FilesChanged(Exception):
    """Files of some segments changed since their blocks were found intact; nothing was given out.

    `segments` is empty where another thread has seen to them already.
    """

    def __init__(self, segments: Collection[int], epoch: int) -> None:
        super().__init__(f"segments {sorted(segments)} have changed")
        self.segments = segments
        self.epoch = epoch


class HeldBlocks(Protocol):
    """Blocks that do not go away while somebody holds them."""

    def intact(self, blocks: Int64Array) -> NDArray[np.bool_]:
        """Which of the held blocks can be read, bool in the shape of `blocks`; waits until that is known.

        Raises:
            CorpusUnavailable: when storage does not answer.
        """
        ...

    def take(self, positions: Int64Array, widths: Sequence[int]) -> list[NDArray[np.void]]:
        """The parts of n rows, all of them in intact blocks: void [n] each.

        Args:
            positions: int64 [n], where each row begins.
            widths: bytes of each part; the parts of a row follow one another.

        Raises:
            FilesChanged: when the blocks are not what was found intact any more; `look_again` sees to it.
        """
        ...


class Blocks(Protocol):
    """All blocks of a corpus, numbered as its layout numbers them."""

    def all_intact(self) -> HeldBlocks | None:
        """All blocks, once each was found intact and if none can go away; saves asking for some."""
        ...

    def found_intact(self, blocks: Int64Array) -> HeldBlocks | None:
        """Blocks, if each of them was found intact and none can go away; looks at none."""
        ...

    def hold(self, blocks: Int64Array) -> HeldBlocks:
        """Begin to fetch and check blocks, given in any order and as often; returns at once.

        Raises:
            CorpusUnavailable: when a file that is there cannot be opened.
        """
        ...

    def look_again(self, changed: FilesChanged) -> None:
        """Check what has changed again when it is held."""
        ...

    def read_ahead(self, blocks: Int64Array) -> None:
        """Begin to fetch blocks (int64 [K, n]) of n rows that will be held soon; returns at once."""
        ...

    def damage(self) -> list[SegmentDamage]:
        """What was found wrong so far."""
        ...


def parse_checksums(content: bytes, segment: Segment) -> NDArray[np.uint32]:
    """The checksum of each block of a file, uint32; raises UnusableFile when they are not those of the segment."""
    if crc32(content) != segment.checksum or len(content) != 4 * num_blocks(segment.num_bytes):
        raise UnusableFile(WRONG_CHECKSUMS)
    return np.frombuffer(content, "<u4")
