import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.manifest import Segment
from replay_service.corpus.format.segment_file import BLOCK_BYTES

HEAD_BYTES = 712


def layout_of(width: int, sizes: list[int]) -> Layout:
    """The layout of segments with these numbers of rows, `width` bytes a row."""
    names = ["input_ids", "length", "base_loss", "base_correct", "stratum"]
    record = {"names": names, "formats": ["<u2", "<i4", "<f4", "u1", "<i4"], "offsets": [0] * 5, "itemsize": width}
    return Layout(
        [
            Segment(str(i), num_rows, [], HEAD_BYTES + num_rows * width + 300, HEAD_BYTES, record, 0, 1)
            for i, num_rows in enumerate(sizes)
        ]
    )


layouts = st.builds(
    layout_of,
    # With the widest ones, products of ids and widths leave 64 bits.
    st.one_of(st.integers(4, 300), st.integers(60_000, 200_000), st.integers(2**29, 2**30)),
    st.lists(st.integers(1, 3000), min_size=1, max_size=30),
)


@given(layouts, st.data())
def test_rows_of_a_segment_lie_end_to_end_behind_its_head_in_blocks_of_its_own(
    layout: Layout, data: st.DataObject
) -> None:
    width = layout.record.itemsize
    number = data.draw(st.integers(0, len(layout.segments) - 1))
    row = data.draw(st.integers(0, layout.segments[number].num_rows - 1))
    (position,) = layout.positions(np.array([number << 32 | row])).tolist()
    first, end = layout.span(number)
    assert position == first * BLOCK_BYTES + HEAD_BYTES + row * width
    blocks = layout.blocks(np.array([position]), width)[:, 0]
    assert set(blocks.tolist()) == set(range(position // BLOCK_BYTES, (position + width - 1) // BLOCK_BYTES + 1))
    assert first <= blocks.min() <= blocks.max() < end
    assert (layout.segment_of(blocks) == number).all()


@given(layouts, st.data())
def test_ids_of_no_row_have_no_position(layout: Layout, data: st.DataObject) -> None:
    segments = layout.segments
    number = data.draw(st.integers(0, len(segments) - 1))
    beyond = st.integers(segments[number].num_rows, 2**32 - 1).map(lambda row: number << 32 | row)
    sample_id = data.draw(st.one_of(beyond, st.integers(-(2**63), -1), st.integers(len(segments) << 32, 2**63 - 1)))
    with pytest.raises(IndexError):
        layout.positions(np.array([0, sample_id]))
