import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampling.partition import (
    ROW_BITS,
    Extent,
    Partition,
    extents_of,
    sample_ids,
    stratum_name,
)
from tests.sampling.worlds import partition_of, partition_of_sizes

NUM_STRATA = 6

layouts = st.lists(st.lists(st.integers(0, NUM_STRATA - 1), max_size=30), min_size=1, max_size=5).filter(any)


def listed(segments: list[list[int]], stratum: int) -> list[int]:
    """The addresses of a stratum's samples, counted out row by row."""
    return [
        number << 32 | row
        for number, strata in enumerate(segments)
        for row, each in enumerate(sorted(strata))
        if each == stratum
    ]


@given(layouts)
@settings(max_examples=50, deadline=None)
def test_locate_agrees_with_counting_out_the_rows(segments: list[list[int]]) -> None:
    partition = partition_of(segments, NUM_STRATA)
    for stratum in range(NUM_STRATA):
        expected = listed(segments, stratum)
        assert partition.sizes[stratum] == len(expected)
        places = np.arange(len(expected))
        assert partition.locate(np.full(len(places), stratum), places).tolist() == expected


@given(layouts, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_locate_answers_in_the_order_asked(segments: list[list[int]], random: object) -> None:
    partition = partition_of(segments, NUM_STRATA)
    asked = [(k, place) for k in range(NUM_STRATA) for place in range(partition.sizes[k])]
    random.shuffle(asked)  # type: ignore[attr-defined]
    strata, places = np.array(asked).T
    expected = [listed(segments, k)[place] for k, place in asked]
    assert partition.locate(strata, places).tolist() == expected
    assert partition.num_samples == sum(map(len, segments)) == len(set(expected))


def test_an_address_holds_a_segment_and_a_row() -> None:
    segment, row = np.array([0, 3, 2**31 - 1]), np.array([5, 0, 2**32 - 1])
    addresses = sample_ids(segment, row)
    assert addresses.dtype == np.int64
    assert (addresses >= 0).all()
    assert (addresses >> ROW_BITS).tolist() == segment.tolist()
    assert (addresses & 0xFFFFFFFF).tolist() == row.tolist()


def test_a_trillion_samples_are_located_without_a_list_of_them() -> None:
    rows = 1 << 32
    extents = tuple(Extent(k, 125 * k + number, 0, rows) for k in range(2) for number in range(125))
    partition = Partition(("web",), 2, extents)
    assert partition.num_samples == 250 * rows > 10**12
    last = partition.locate(np.array([1]), np.array([125 * rows - 1]))
    assert last.tolist() == [249 << 32 | rows - 1]


def test_strata_are_named_by_group_and_quantile() -> None:
    partition = partition_of([[0, 1, 2, 3]], num_strata=4, num_quantiles=2)
    assert [stratum_name(partition.groups, partition.num_quantiles, k) for k in range(4)] == [
        "g0/q0",
        "g0/q1",
        "g1/q0",
        "g1/q1",
    ]


def test_extents_are_the_stretches_of_equal_strata() -> None:
    extents = extents_of(4, np.array([0, 0, 2, 2, 2, 5]))
    assert extents == [Extent(0, 4, 0, 2), Extent(2, 4, 2, 3), Extent(5, 4, 5, 1)]


def test_every_sample_is_found_in_its_stratum() -> None:
    partition = partition_of_sizes([5, 0, 7, 3, 1])
    strata = np.repeat(np.arange(5), partition.sizes)
    places = np.concatenate([np.arange(size) for size in partition.sizes])
    assert partition.stratum_of(partition.locate(strata, places)).tolist() == strata.tolist()
