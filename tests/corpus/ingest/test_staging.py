from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.corpus.ingest.staging import (
    Packed,
    Piece,
    ReadyRows,
    drop,
    parts_of,
    position_of,
    read_packed,
    read_rows,
    write_packed,
    write_parts,
)
from tests.corpus.worlds import staged_rows

ROWS = staged_rows(["en"] * 30)
pure = settings(max_examples=40, deadline=None)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    for key in ("a", "b"):
        (tmp_path / key).mkdir()
    return tmp_path


def put(staging: Path, key: str, first: int, stop: int) -> list[Piece]:
    (staging / key).mkdir(exist_ok=True)
    return write_parts(staging, key, ROWS.slice(first, stop - first))


def numbers_of(rows: pa.Table) -> list[int]:
    """Which of ROWS these are, by their base losses, no two of which are alike."""
    place = {loss: number for number, loss in enumerate(ROWS["base_loss"].to_pylist())}
    return [place[loss] for loss in rows["base_loss"].to_pylist()]


@given(st.lists(st.integers(0, 29), unique=True, min_size=1))
@pure
def test_a_part_is_written_for_each_run_of_neighbours_whatever_the_order(numbers: list[int]) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "a").mkdir()
        pieces = write_parts(Path(folder), "a", ROWS.take(numbers))
        assert [row for each in pieces for row in range(each.first, each.stop)] == sorted(numbers)
        assert all(left.stop < right.first for left, right in pairwise(pieces))
        assert parts_of(Path(folder), "a") == pieces
        assert numbers_of(read_rows(Path(folder), pieces)) == sorted(numbers)


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=5), st.data())
@pure
def test_any_piece_is_read_out_of_parts_that_overlap(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        for first, num in [*spans, (0, 8), (8, 5), (13, 17)]:
            put(Path(folder), "a", first, min(first + num, 30))
        first = data.draw(st.integers(0, 29), label="first")
        stop = data.draw(st.integers(first + 1, 30), label="stop")
        assert numbers_of(read_rows(Path(folder), [Piece("a", first, stop)])) == list(range(first, stop))


def test_rows_of_many_shards_are_read_in_the_order_of_the_pieces(staging: Path) -> None:
    put(staging, "a", 0, 4)
    put(staging, "a", 4, 9)
    put(staging, "b", 0, 3)
    pieces = [Piece("b", 1, 3), Piece("a", 2, 7), Piece("b", 0, 1)]
    rows = read_rows(staging, pieces)
    assert numbers_of(rows) == [1, 2, 2, 3, 4, 5, 6, 0]
    assert "row" not in rows.column_names
    assert rows.equals(ROWS.drop_columns("row").take([1, 2, 2, 3, 4, 5, 6, 0]))


@pytest.mark.parametrize("piece", [Piece("a", 0, 6), Piece("a", 3, 8), Piece("a", 8, 9), Piece("b", 0, 1)])
def test_rows_that_are_not_staged_are_missed(staging: Path, piece: Piece) -> None:
    put(staging, "a", 0, 4)
    put(staging, "a", 5, 8)
    with pytest.raises(AssertionError, match="are missing"):
        read_rows(staging, [piece])


def test_a_part_that_was_not_written_to_its_end_does_not_count(staging: Path) -> None:
    put(staging, "a", 0, 4)
    whole = next((staging / "a").glob("*.arrow")).read_bytes()
    (staging / "a" / "0123.partial").write_bytes(whole[: len(whole) // 2])
    assert parts_of(staging, "a") == [Piece("a", 0, 4)]
    assert len(read_rows(staging, [Piece("a", 0, 4)])) == 4
    assert [path.suffix for path in (staging / "b").iterdir()] == []


def test_a_part_that_is_written_again_is_there_once(staging: Path) -> None:
    for _ in range(2):
        put(staging, "a", 0, 4)
    assert parts_of(staging, "a") == [Piece("a", 0, 4)]
    assert len(list((staging / "a").iterdir())) == 1


def test_parts_stand_in_the_order_of_their_rows_however_large(staging: Path) -> None:
    many = ROWS.slice(0, 2).set_column(0, "row", pa.array(np.array([10**11, 10**11 + 1])))
    write_parts(staging, "a", many)
    put(staging, "a", 9, 10)
    put(staging, "a", 10, 11)
    assert [each.first for each in parts_of(staging, "a")] == [9, 10, 10**11]


def test_a_part_says_how_much_of_its_shard_had_been_read(staging: Path) -> None:
    (told,) = write_parts(staging, "a", ROWS.slice(0, 10), position=12_345)
    (untold,) = write_parts(staging, "a", ROWS.slice(10, 5))
    assert (position_of(staging, told), position_of(staging, untold)) == (12_345, 0)
    assert numbers_of(read_rows(staging, [told, untold])) == list(range(15))


def test_a_shard_without_parts_has_none(tmp_path: Path) -> None:
    assert parts_of(tmp_path, "nothing") == []


def test_what_packing_found_is_read_back(staging: Path) -> None:
    assert read_packed(staging, "a") is None
    assert read_packed(staging, "nothing") is None
    packed = Packed(5, 3, {"it is not JSON": 2})
    write_packed(staging, "a", packed)
    assert read_packed(staging, "a") == packed


def test_what_is_dropped_is_gone_and_may_be_gone_already(staging: Path) -> None:
    put(staging, "a", 0, 4)
    for _ in range(2):
        drop(staging, "a")
        assert not (staging / "a").exists()
    assert (staging / "b").exists()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=15), st.integers(1, 4))
@pure
def test_rows_are_ready_up_to_the_first_gap_in_whatever_order_parts_come(
    spans: list[tuple[int, int]], at_once: int
) -> None:
    ready, there = ReadyRows(), set[int]()
    for begin in range(0, len(spans), at_once):
        parts = [Piece("a", first, first + num) for first, num in spans[begin : begin + at_once]]
        ready.add(parts)
        there |= {row for part in parts for row in range(part.first, part.stop)}
        assert ready.stop == next(row for row in range(100) if row not in there)
