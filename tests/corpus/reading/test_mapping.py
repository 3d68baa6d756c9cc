import gc
import os
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.reading.mapping import SideBySide

STEP = 64 << 10


def put(memory: SideBySide, path: Path, start: int, num_bytes: int) -> None:
    with path.open("rb") as file:
        memory.put(file.fileno(), start, num_bytes)


def whole(memory: SideBySide, position: int, num_bytes: int) -> bytes:
    """What stands at a position, all of which can be read."""
    (copies,), failed = memory.gather(np.array([position]), [num_bytes])
    assert failed is None
    return copies.tobytes()


def test_files_stand_side_by_side_and_between_them_is_nothing(tmp_path: Path) -> None:
    contents = [os.urandom(length) for length in (1, STEP, STEP + 5)]
    memory = SideBySide(8 * STEP)
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
        put(memory, tmp_path / str(i), 2 * i * STEP, len(content))
        (tmp_path / str(i)).unlink()
    expected = b"".join(content.ljust(2 * STEP, b"\0") for content in contents).ljust(8 * STEP, b"\0")
    assert whole(memory, 0, 8 * STEP) == expected


def test_no_more_of_a_file_is_mapped_than_asked(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 3 * STEP)
    memory = SideBySide(3 * STEP)
    put(memory, tmp_path / "long", 0, STEP)
    assert whole(memory, 0, 3 * STEP) == b"x" * STEP + b"\0" * 2 * STEP


@pytest.mark.parametrize("num_rows", [0, 1, 1024, 1025, 5000])
def test_any_number_of_rows_is_gathered_in_the_order_asked(tmp_path: Path, num_rows: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, 3 * STEP, dtype=np.uint8)
    content.tofile(tmp_path / "a")
    memory = SideBySide(3 * STEP)
    put(memory, tmp_path / "a", 0, 3 * STEP)
    positions = np.random.default_rng(1).integers(0, 3 * STEP - 37, num_rows)
    for widths in ([37], [4, 30, 3]):
        copies, failed = memory.gather(positions, widths)
        assert failed is None
        rows = np.concatenate([each.view(np.uint8).reshape(num_rows, each.itemsize) for each in copies], axis=1)
        assert np.array_equal(rows, content[positions[:, None] + np.arange(37)])


@pytest.mark.parametrize("beyond", [0, 3, 1023, 1024, 1500, 1999])
def test_a_row_beyond_the_end_of_a_file_is_told(tmp_path: Path, beyond: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * 2 * STEP)
    memory = SideBySide(2 * STEP)
    put(memory, tmp_path / "a", 0, 2 * STEP)
    os.truncate(tmp_path / "a", STEP)
    positions = np.zeros(2000, dtype=np.int64)
    positions[beyond] = STEP - 5
    for widths in ([16], [5, 11], [1, 2, 13]):
        _, failed = memory.gather(positions, widths)
        assert failed == beyond


def test_a_file_in_the_place_of_another_is_read_instead(tmp_path: Path) -> None:
    memory = SideBySide(STEP)
    for content in (b"first", b"other"):
        (tmp_path / "a").write_bytes(content)
        put(memory, tmp_path / "a", 0, 5)
        (tmp_path / "a").unlink()
        assert whole(memory, 0, 5) == content


def test_no_file_is_held_open(tmp_path: Path) -> None:
    memory = SideBySide(100 * STEP)
    gc.collect()  # what other tests have left open
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(100):
        (tmp_path / str(i)).write_bytes(b"x")
        put(memory, tmp_path / str(i), i * STEP, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert np.count_nonzero(memory.gather(np.arange(0, 100 * STEP, STEP), [1])[0][0].view(np.uint8)) == 100


@pytest.mark.parametrize(("start", "num_bytes"), [(-STEP, STEP), (STEP, STEP + 1), (4 * STEP, 1)])
def test_nothing_is_mapped_beyond_the_stretch(tmp_path: Path, start: int, num_bytes: int) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ValueError, match="beyond"):
        put(SideBySide(2 * STEP), tmp_path / "a", start, num_bytes)


def test_a_stretch_far_larger_than_memory_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"end")
    memory = SideBySide(1 << 40)
    put(memory, tmp_path / "a", (1 << 40) - STEP, 3)
    assert whole(memory, (1 << 40) - STEP, 3) == b"end"
