"""Segment files that change while they are read: no wrong row, no dead process, and what is put back is read again."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from replay_service.corpus.reading.damage import CHANGING
from replay_service.corpus.reading.folders import LocalFolder
from replay_service.corpus.reading.reader import Corpus
from tests.corpus.worlds import concatenated, ids_of, random_rows, same_rows, write_corpus

PARTS = [random_rows(size, seq_len=61, seed=seed) for seed, size in enumerate((30, 1500, 30))]
EVERY, IDS = concatenated(PARTS), ids_of(PARTS)
FILE, CHECKSUMS = "segments/00000001.arrow", "segments/00000001.crc32"
IN_FILE = (IDS >> 32) == 1


class Clock:
    """A clock that stands still until it is put forward, seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "rows"
    write_corpus(folder, PARTS)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "rows"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def corpus(folder: Path, clock: Clock) -> Corpus:
    """A corpus of which every row was read."""
    corpus = Corpus(LocalFolder(folder, clock))
    assert same_rows(corpus.rows(IDS), EVERY)
    return corpus


def copy_in_place(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def copy_and_rename(source: Path, target: Path) -> None:
    shutil.copy(source, target.with_name("aside"))
    target.with_name("aside").replace(target)


def cut(file: Path) -> None:
    os.truncate(file, 70_000)


def cut_to_nothing(file: Path) -> None:
    os.truncate(file, 0)


def remove(file: Path) -> None:
    file.unlink()


def overwrite(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(bytes(size))


def overwrite_with_the_same_times(file: Path) -> None:
    status = file.stat()
    overwrite(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_another(file: Path) -> None:
    file.with_name("aside").write_bytes(bytes(file.stat().st_size))
    file.with_name("aside").replace(file)


CHANGES = pytest.mark.parametrize(
    "change", [cut, cut_to_nothing, remove, overwrite, overwrite_with_the_same_times, replace_by_another]
)


def assert_right_or_out(corpus: Corpus) -> None:
    rows = corpus.rows(IDS)
    is_out = rows.length == 0
    assert not is_out[~IN_FILE].any()
    assert is_out.any()
    assert same_rows(rows.take(np.flatnonzero(~is_out)), EVERY.take(np.flatnonzero(~is_out)))


@CHANGES
@pytest.mark.parametrize("put_back", [copy_in_place, copy_and_rename])
def test_a_file_that_changes_takes_out_its_samples_until_it_is_put_back(
    whole: Path,
    folder: Path,
    corpus: Corpus,
    clock: Clock,
    change: Callable[[Path], None],
    put_back: Callable[[Path, Path], None],
) -> None:
    for _ in range(2):
        change(folder / FILE)
        assert corpus.columns_at_hand(IDS) is None
        assert_right_or_out(corpus)
        (damage,) = corpus.damage()
        assert damage.file == FILE
        assert np.isnan(corpus.base_results(IDS).loss_nats).any()
        put_back(whole / FILE, folder / FILE)
        clock.now += 1.0
        assert same_rows(corpus.rows(IDS), EVERY)
        assert corpus.damage() == []
        assert corpus.columns_at_hand(IDS) is not None
        clock.now += 1.0


@CHANGES
def test_a_change_that_comes_before_the_first_look_is_damage_like_any_other(
    whole: Path, folder: Path, clock: Clock, change: Callable[[Path], None]
) -> None:
    change(folder / FILE)
    corpus = Corpus(LocalFolder(folder, clock))
    assert_right_or_out(corpus)
    copy_in_place(whole / FILE, folder / FILE)
    clock.now += 1.0
    assert same_rows(corpus.rows(IDS), EVERY)


def test_a_checksums_file_that_is_put_back_brings_back_its_segment(whole: Path, folder: Path, clock: Clock) -> None:
    (folder / CHECKSUMS).unlink()
    corpus = Corpus(LocalFolder(folder, clock))
    assert_right_or_out(corpus)
    shutil.copy(whole / CHECKSUMS, folder / CHECKSUMS)
    clock.now += 1.0
    assert same_rows(corpus.rows(IDS), EVERY)


def test_a_damaged_file_is_looked_at_once_a_second(whole: Path, folder: Path, corpus: Corpus, clock: Clock) -> None:
    cut(folder / FILE)
    assert_right_or_out(corpus)
    copy_in_place(whole / FILE, folder / FILE)
    clock.now += 0.9
    assert_right_or_out(corpus)
    clock.now += 0.2
    assert same_rows(corpus.rows(IDS), EVERY)


def test_a_file_that_changes_again_and_again_is_out_for_now(folder: Path, corpus: Corpus, clock: Clock) -> None:
    for _ in range(3):
        os.utime(folder / FILE)
        rows = corpus.rows(IDS)
        clock.now += 0.1
    assert np.array_equal(rows.length == 0, IN_FILE)
    assert [each.problem for each in corpus.damage()] == [CHANGING]
    clock.now += 1.0
    assert same_rows(corpus.rows(IDS), EVERY)


def test_a_file_that_was_touched_and_not_changed_stays_in(folder: Path, corpus: Corpus) -> None:
    os.utime(folder / FILE)
    with capture_logs() as logs:
        assert same_rows(corpus.rows(IDS), EVERY)
    assert (corpus.damage(), logs) == ([], [])


def test_the_log_says_what_to_do_and_when_it_was_done(whole: Path, folder: Path, corpus: Corpus, clock: Clock) -> None:
    with capture_logs() as logs:
        cut(folder / FILE)
        corpus.rows(IDS)
        copy_in_place(whole / FILE, folder / FILE)
        clock.now += 1.0
        corpus.rows(IDS)
    damaged, again = logs
    assert (damaged["event"], damaged["file"]) == ("damaged segment", FILE)
    assert "put back the file from a copy of the corpus" in damaged["advice"]
    assert "start the service again" not in damaged["advice"]
    assert (again["event"], again["file"]) == ("damaged segment has changed and is read again", FILE)


@CHANGES
def test_a_later_generation_does_not_trust_a_file_that_has_changed(
    whole: Path, folder: Path, corpus: Corpus, clock: Clock, change: Callable[[Path], None]
) -> None:
    change(folder / FILE)
    later = Corpus(LocalFolder(folder, clock), corpus.manifest, corpus)
    assert_right_or_out(later)
    copy_in_place(whole / FILE, folder / FILE)
    clock.now += 1.0
    assert same_rows(later.rows(IDS), EVERY)


def test_a_file_is_put_back_between_two_generations(whole: Path, folder: Path, corpus: Corpus, clock: Clock) -> None:
    cut(folder / FILE)
    assert_right_or_out(corpus)
    copy_in_place(whole / FILE, folder / FILE)
    clock.now += 1.0
    later = Corpus(LocalFolder(folder, clock), corpus.manifest, corpus)
    assert same_rows(later.rows(IDS), EVERY)


READER = """
import sys, threading
from pathlib import Path
import numpy as np
import structlog
from replay_service.corpus.reading.reader import Corpus
from tests.corpus.reading.test_changing import EVERY, IDS
from tests.corpus.worlds import same_rows

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
corpus, counts, wrong, is_over = Corpus(Path(sys.argv[1])), [], [], threading.Event()

def read(seed):
    rng, num_out, num_reads = np.random.default_rng(seed), 0, 0
    while not is_over.is_set():
        index = rng.integers(0, len(IDS), 400)
        rows = corpus.columns_at_hand(IDS[index]) if seed % 2 else corpus.rows(IDS[index])
        if rows is None:
            rows = corpus.rows(IDS[index])
        expected, is_out = EVERY.take(index), rows.length == 0
        for name, right in expected.columns().items():
            column = getattr(rows, name)
            if column[is_out].any() or not np.array_equal(column[~is_out], right[~is_out]):
                wrong.append(name)
        num_out, num_reads = num_out + is_out.any(), num_reads + 1
    counts.append((num_reads, int(num_out)))

def whole():
    return same_rows(corpus.rows(IDS), EVERY)

threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
for each in threads:
    each.start()
for line in sys.stdin:
    print(whole(), flush=True)
is_over.set()
for each in threads:
    each.join()
print(len(counts) == 4 and not wrong and all(reads and out for reads, out in counts), wrong[:3], counts, flush=True)
"""


def test_a_process_that_reads_survives_whatever_becomes_of_the_files(whole: Path, folder: Path) -> None:
    """Four threads read on a real clock, while this process cuts, overwrites, removes and puts back."""
    command = [sys.executable, "-c", READER, str(folder)]
    changes = (cut, cut_to_nothing, overwrite, replace_by_another, remove)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as reader:  # type: ignore[call-overload]

        def is_whole() -> bool:
            reader.stdin.write("?\n")
            reader.stdin.flush()
            answer = reader.stdout.readline()
            assert answer, f"the reader ended: {reader.wait()}"
            return bool(answer == "True\n")

        assert is_whole()
        for number in range(60):
            changes[number % len(changes)](folder / FILE)
            time.sleep(0.005)
            (copy_in_place, copy_and_rename)[number % 2](whole / FILE, folder / FILE)
            time.sleep(0.005)
        for change in changes:
            change(folder / FILE)
            assert not is_whole()
            copy_in_place(whole / FILE, folder / FILE)
            until(is_whole)
        reader.stdin.close()
        assert reader.stdout.read().startswith("True")
    assert reader.returncode == 0


def until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about")
