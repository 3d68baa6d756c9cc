"""Where the rows of a corpus lie: its segment files end to end on one line of blocks of 64 KiB.

Each file begins with a block of its own, and its rows are records of one width. So arithmetic on whole arrays of sample
ids tells where their rows begin on the line, however many segments they lie in, and one number names a block of the
corpus.

Shapes: n rows, S segments, K blocks that a row may touch.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from replay_service.corpus.format.manifest import Segment
from replay_service.corpus.format.segment_file import BLOCK_BYTES, num_blocks
from replay_service.errors import CorpusError
from replay_service.sampling.partition import ROW_BITS
from replay_service.wire.samples import REQUIRED_FIELDS

Int64Array = NDArray[np.int64]

_WIDE_BYTES: Final = 64
"""Of a field whose rows are gathered by themselves, at least, rather than copied out of whole records."""

_NEEDED: Final = set(REQUIRED_FIELDS) - {"input_ids"}
_RESULTS: Final = ("length", "base_loss", "base_correct")
_CONTENT: Final = ({"input_ids"}, {"inputs", "label"})


class Layout:
    """The line on which the segments of a corpus lie, in their order; later generations make it longer.

    Raises:
        CorpusError: when not all segments have the same records, or the manifest contradicts itself about them.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.record = _common_record(segments)
        """The fields of a row."""
        self.base_results = _stretch_of(self.record, _RESULTS)
        """Where the part of a row begins that holds what the base model made of it, bytes, and its type."""
        self.stretches = _stretches(self.record)
        """The types of the parts of a row, which follow one another: a wide field, or neighbouring narrow ones."""
        self.first_block = np.cumsum([0, *(_num_used_blocks(segment, self.record) for segment in segments)])
        """int64 [S + 1]: where each segment begins, and the end of the line."""
        first_ids = np.arange(len(segments)) << ROW_BITS
        self._end_ids = (first_ids + [segment.num_rows for segment in segments]).view(np.uint64)
        rows_at = np.array([segment.rows_at for segment in segments], dtype=np.int64)
        self._origins = rows_at + self.first_block[:-1] * BLOCK_BYTES - first_ids * self.record.itemsize

    def positions(self, sample_ids: Int64Array) -> Int64Array:
        """Where the rows of samples begin on the line, bytes, int64 [n]; raises IndexError when there is no such row.

        Products may leave the 64 bits; sums come back into them, since both count modulo 2^64.
        """
        segment = sample_ids >> ROW_BITS
        # An id below zero is, without a sign, beyond all others.
        if np.count_nonzero(sample_ids.view(np.uint64) < self._end_ids[segment]) < len(segment):
            raise IndexError("the corpus has no such rows; these are ids of another corpus")
        positions: Int64Array = self._origins[segment] + sample_ids * self.record.itemsize
        return positions

    def blocks(self, positions: Int64Array, num_bytes: int) -> Int64Array:
        """The blocks of `num_bytes` bytes from each position on, int64 [K, n].

        Where they touch fewer than K, the last one stands again.
        """
        reach_K1 = np.arange(2 + (num_bytes - 1) // BLOCK_BYTES)[:, None] * BLOCK_BYTES
        blocks: Int64Array = (positions + np.minimum(reach_K1, num_bytes - 1)) // BLOCK_BYTES
        return blocks

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


def _field(record: np.dtype[Any], name: str) -> tuple[int, np.dtype[Any]]:
    """Where a field stands in the record, bytes, and its type."""
    assert record.fields is not None
    type_, offset = record.fields[name][:2]
    return offset, type_


def _stretches(record: np.dtype[Any]) -> list[np.dtype[Any]]:
    """Records of neighbouring fields; padding belongs to the field before it."""
    groups: list[list[str]] = []
    was_wide = True
    for name in sorted(record.names or (), key=lambda name: _field(record, name)[0]):
        is_wide = record[name].itemsize >= _WIDE_BYTES
        if is_wide or was_wide:
            groups.append([])
        groups[-1].append(name)
        was_wide = is_wide
    begins = [0, *(_field(record, names[0])[0] for names in groups[1:])]
    ends = [*begins[1:], record.itemsize]
    return [_part(record, *each) for each in zip(groups, begins, ends, strict=True)]


def _part(record: np.dtype[Any], names: list[str], begin: int, end: int) -> np.dtype[Any]:
    """Some fields of a record as a record of their own, which lasts from one byte of it to another."""
    places = [_field(record, name) for name in names]
    offsets, types = [offset - begin for offset, _ in places], [type_ for _, type_ in places]
    return np.dtype({"names": names, "formats": types, "offsets": offsets, "itemsize": end - begin})


def _stretch_of(record: np.dtype[Any], names: Sequence[str]) -> tuple[int, np.dtype[Any]]:
    """Where the shortest part of a record begins that holds these fields, bytes, and its type."""
    places = [_field(record, name) for name in names]
    begin = min(offset for offset, _ in places)
    return begin, _part(record, list(names), begin, max(offset + type_.itemsize for offset, type_ in places))


def _num_used_blocks(segment: Segment, record: np.dtype[Any]) -> int:
    """Blocks up to the last one with a row in it; nobody needs those that hold the end of Arrow's footer alone."""
    used_bytes = segment.rows_at + segment.num_rows * record.itemsize
    if segment.rows_at < 0 or used_bytes > segment.num_bytes:
        raise CorpusError(f"the manifest is damaged: {segment.file} is too short for its rows; put it back")
    return num_blocks(used_bytes)


def _common_record(segments: Sequence[Segment]) -> np.dtype[Any]:
    if not segments:
        raise CorpusError("the manifest is damaged: it names no segment; put it back")
    first = segments[0]
    described: Any = first.record
    try:
        record: np.dtype[Any] = np.dtype(described)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"the manifest is damaged: {error}; put it back") from error
    names = set(record.names or ())
    if not names >= _NEEDED or not any(names >= content for content in _CONTENT) or record.hasobject:
        raise CorpusError(
            f"the manifest is damaged: a record of {first.file} must have numbers for {sorted(_NEEDED)} and for "
            "'input_ids', or 'inputs' and 'label'; put it back"
        )
    other = [segment.file for segment in segments if segment.record != first.record]
    if other:
        raise CorpusError(
            f"{len(other)} segments, such as {other[0]}, have other fields than the first one, {first.file}; "
            "ingest the corpus again under another name"
        )
    return record
