"""Where the rows of a corpus lie: its segment files end to end on one line of blocks of 64 KiB.

Each file begins with a block of its own. So a row's bytes are found by arithmetic on whole arrays of sample ids,
however many segments they lie in, and one number names a block of the corpus.

Shapes: n rows, C columns, S segments, K blocks that a row may touch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.manifest import Segment
from replay_service.corpus.segment_file import BLOCK_BYTES, num_blocks
from replay_service.errors import CorpusError

Int64Array = NDArray[np.int64]

_NEEDED: Final = {"input_ids", "length", "base_loss", "base_correct", "stratum"}


@dataclass(frozen=True, slots=True)
class Column:
    """The rows of one column."""

    name: str
    dtype: np.dtype[Any]
    """Of one number."""
    shape: tuple[int, ...]
    """Of one row; () when a row is a number."""
    width: int
    """Bytes of a row."""


class Columns:
    """Some columns of the segments of a corpus."""

    def __init__(self, columns: list[Column], starts_CS: Int64Array) -> None:
        self.columns = columns
        self._starts_CS = starts_CS
        self._width_C1 = np.array([column.width for column in columns], dtype=np.int64)[:, None]
        # A row begins in one block and may go on through as many more as its bytes can touch.
        most = max(column.width for column in columns)
        self._reach_K11 = np.arange(2 + (most - 1) // BLOCK_BYTES)[:, None, None] * BLOCK_BYTES

    def positions(self, segment: Int64Array, row: Int64Array) -> Int64Array:
        """Where rows begin on the line, bytes, int64 [C, n]."""
        positions: Int64Array = self._starts_CS.take(segment, axis=1) + row * self._width_C1
        return positions

    def blocks(self, positions_Cn: Int64Array) -> Int64Array:
        """The blocks of each row, int64 [K, C, n]; where a row touches fewer than K, its last one stands again."""
        blocks: Int64Array = (
            np.minimum(positions_Cn + self._reach_K11, positions_Cn + (self._width_C1 - 1)) // BLOCK_BYTES
        )
        return blocks


class Layout:
    """The line on which the segments of a corpus lie, in their order; later generations make it longer.

    Raises:
        CorpusError: when not all segments have the same columns, or the manifest contradicts itself about them.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.columns = _common_columns(segments)
        self.num_rows = np.array([segment.num_rows for segment in segments], dtype=np.int64)
        self.first_block = np.cumsum([0, *(_num_used_blocks(segment, self.columns) for segment in segments)])
        """int64 [S + 1]: where each segment begins, and the end of the line."""

    def choose(self, *names: str) -> Columns:
        """The columns of these names."""
        starts_CS = np.array([[segment.offsets[name] for segment in self.segments] for name in names], dtype=np.int64)
        return Columns([self.columns[name] for name in names], starts_CS + self.first_block[:-1] * BLOCK_BYTES)

    def span(self, number: int) -> tuple[int, int]:
        """The first block of a segment, and the end of its blocks."""
        return int(self.first_block[number]), int(self.first_block[number + 1])

    def num_bytes(self, number: int) -> int:
        """How many bytes of a segment's file lie on the line: all, but for a rest of Arrow's footer."""
        first, end = self.span(number)
        return min(self.segments[number].num_bytes, (end - first) * BLOCK_BYTES)

    def segment_of(self, blocks: Int64Array) -> Int64Array:
        """The number of the segment that each block belongs to, int64 in the shape of `blocks`."""
        numbers: Int64Array = self.first_block.searchsorted(blocks, side="right") - 1
        return numbers

    def num_common(self, other: "Layout") -> int:
        """How many segments, counted from the first, are the same in both."""
        pairs = zip(self.segments, other.segments, strict=False)
        differ = (i for i, (mine, theirs) in enumerate(pairs) if mine != theirs)
        return next(differ, min(len(self.segments), len(other.segments)))


def _num_used_blocks(segment: Segment, columns: dict[str, Column]) -> int:
    """Blocks up to the last one with a row in it; nobody needs those that hold the end of Arrow's footer alone."""
    if segment.offsets.keys() != columns.keys() or any(offset % 8 for offset in segment.offsets.values()):
        raise CorpusError(f"the manifest is damaged: it has no place for each column of {segment.file}; put it back")
    used_bytes = max(segment.offsets[name] + segment.num_rows * each.width for name, each in columns.items())
    if used_bytes > segment.num_bytes:
        raise CorpusError(f"the manifest is damaged: {segment.file} is too short for its rows; put it back")
    return num_blocks(used_bytes)


def _common_columns(segments: Sequence[Segment]) -> dict[str, Column]:
    if not segments or not segments[0].row_types.keys() >= _NEEDED:
        raise CorpusError(
            f"the manifest is damaged: it names no segment with the columns {sorted(_NEEDED)}; put it back"
        )
    first = segments[0]
    other = [segment.file for segment in segments if segment.row_types != first.row_types]
    if other:
        raise CorpusError(
            f"{len(other)} segments, such as {other[0]}, have other columns than the first one, {first.file}; "
            "ingest the corpus again under another name"
        )
    try:
        types = {name: np.dtype(row_type) for name, row_type in first.row_types.items()}
    except TypeError as error:
        raise CorpusError(f"the manifest is damaged: {error}; put it back") from error
    return {name: Column(name, each.base, each.shape, each.itemsize) for name, each in types.items()}
