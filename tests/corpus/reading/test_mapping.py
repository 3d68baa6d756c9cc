import os
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.reading.mapping import SideBySide

STEP = 64 << 10


def test_files_stand_side_by_side_and_between_them_is_nothing(tmp_path: Path) -> None:
    contents = [os.urandom(length) for length in (1, STEP, STEP + 5)]
    memory = SideBySide(8 * STEP)
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
        assert memory.put(tmp_path / str(i), 2 * i * STEP, 2 * STEP) == len(content)
        (tmp_path / str(i)).unlink()
    expected = b"".join(content.ljust(2 * STEP, b"\0") for content in contents).ljust(8 * STEP, b"\0")
    assert memory.bytes.tobytes() == expected
    assert not memory.bytes.flags.writeable


def test_no_more_of_a_file_is_mapped_than_asked(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 3 * STEP)
    memory = SideBySide(3 * STEP)
    assert memory.put(tmp_path / "long", 0, STEP) == STEP
    assert memory.bytes.tobytes() == b"x" * STEP + b"\0" * 2 * STEP


def test_what_is_mapped_outlives_the_object_that_mapped_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"still here")
    memory = SideBySide(STEP)
    memory.put(tmp_path / "a", 0, STEP)
    view = memory.bytes[:10]
    del memory
    assert view.tobytes() == b"still here"


def test_no_file_is_held_open(tmp_path: Path) -> None:
    memory = SideBySide(100 * STEP)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(100):
        (tmp_path / str(i)).write_bytes(b"x")
        memory.put(tmp_path / str(i), i * STEP, STEP)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert np.count_nonzero(memory.bytes) == 100


@pytest.mark.parametrize(("start", "most_bytes"), [(-STEP, STEP), (STEP, STEP + 1), (4 * STEP, 1)])
def test_nothing_is_mapped_beyond_the_stretch(tmp_path: Path, start: int, most_bytes: int) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ValueError, match="beyond"):
        SideBySide(2 * STEP).put(tmp_path / "a", start, most_bytes)


def test_a_file_that_is_not_there_changes_nothing(tmp_path: Path) -> None:
    memory = SideBySide(STEP)
    with pytest.raises(FileNotFoundError):
        memory.put(tmp_path / "none", 0, STEP)
    assert not memory.bytes.any()


def test_a_stretch_far_larger_than_memory_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"end")
    memory = SideBySide(1 << 40)
    memory.put(tmp_path / "a", (1 << 40) - STEP, STEP)
    assert memory.bytes[-STEP : 3 - STEP].tobytes() == b"end"
