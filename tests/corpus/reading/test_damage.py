"""Damage takes out the samples that it touches, and no others, wherever the corpus is."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs
from structlog.testing import capture_logs

from replay_service.corpus.format.manifest import Segment, read_manifest
from replay_service.corpus.format.segment_file import BLOCK_BYTES
from replay_service.corpus.reading.damage import (
    FAILS_CHECKSUM,
    MISSING,
    NO_CHECKSUMS,
    TOO_SHORT,
    WRONG_CHECKSUMS,
    SegmentDamage,
)
from replay_service.corpus.reading.folders import remote_folder
from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import CorpusUnavailable
from tests.corpus.worlds import concatenated, ids_of, random_rows, same_rows, write_corpus

PARTS = [random_rows(size, seq_len=61, seed=seed) for seed, size in enumerate((30, 1500, 30))]
EVERY, IDS = concatenated(PARTS), ids_of(PARTS)
FILE = "segments/00000001.arrow"
NUM_BLOCKS = 4
IN_FILE = (IDS >> 32) == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "rows"
    write_corpus(folder, PARTS)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "rows"))


def mapped(folder: Path) -> Corpus:
    return Corpus(folder)


def far_away(folder: Path) -> Corpus:
    return Corpus(remote_folder(fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem()), folder.name))


PLACES = pytest.mark.parametrize("read", [mapped, far_away])


def blocks_of(row: int, segment: Segment) -> set[int]:
    """The blocks that a row of a segment touches."""
    width = segment.record["itemsize"]
    first = segment.rows_at + row * width
    return set(range(first // BLOCK_BYTES, (first + width - 1) // BLOCK_BYTES + 1))


def hit_by(blocks: set[int], folder: Path) -> np.ndarray:
    """bool: which samples lie in blocks of the middle segment."""
    segment = read_manifest(folder).segments[1]
    hit = [bool(blocks_of(row, segment) & blocks) for row in range(segment.num_rows)]
    out = np.zeros(len(IDS), dtype=bool)
    out[IN_FILE] = hit
    return out


def assert_out(corpus: Corpus, out: np.ndarray) -> None:
    """Exactly these samples are out, and all others are as they were written."""
    rows = corpus.rows(IDS)
    assert np.array_equal(rows.length == 0, out)
    assert same_rows(rows.take(np.flatnonzero(~out)), EVERY.take(np.flatnonzero(~out)))
    for column in rows.columns().values():
        assert not column[out].any()
    losses = corpus.base_results(IDS).loss_nats
    assert np.array_equal(losses[~out], EVERY.base_loss[~out].astype(np.float64))
    # A base loss may be whole where the rest of its row is not.
    assert set(np.flatnonzero(np.isnan(losses))) <= set(np.flatnonzero(out))


@PLACES
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_flipped_bit_takes_out_the_samples_in_its_block(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, read: Callable[[Path], Corpus], data: st.DataObject
) -> None:
    size = (whole / FILE).stat().st_size
    bit = data.draw(st.integers(0, 8 * size - 1))
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("flipped") / "rows"))
    content = bytearray((folder / FILE).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (folder / FILE).write_bytes(content)
    corpus = read(folder)
    out = hit_by({bit // 8 // BLOCK_BYTES}, folder)
    assert_out(corpus, out)
    assert corpus.damage() == ([SegmentDamage(FILE, FAILS_CHECKSUM, 1)] if out.any() else [])


@PLACES
@pytest.mark.parametrize("length", [0, 1, 70_000, 2 * BLOCK_BYTES, -(BLOCK_BYTES + 1), -1])
def test_a_file_that_is_cut_short_loses_its_end(folder: Path, read: Callable[[Path], Corpus], length: int) -> None:
    size = (folder / FILE).stat().st_size
    left = length % size if length < 0 else length
    os.truncate(folder / FILE, left)
    out = hit_by(set(range(left // BLOCK_BYTES, NUM_BLOCKS)), folder)
    corpus = read(folder)
    assert_out(corpus, out)
    assert corpus.damage() == [SegmentDamage(FILE, TOO_SHORT, NUM_BLOCKS - left // BLOCK_BYTES)]


@PLACES
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (FILE, None, MISSING),
        ("segments/00000001.crc32", None, NO_CHECKSUMS),
        ("segments/00000001.crc32", b"", WRONG_CHECKSUMS),
        ("segments/00000001.crc32", bytes(4 * NUM_BLOCKS), WRONG_CHECKSUMS),
    ],
)
def test_a_file_that_is_gone_or_cannot_be_checked_is_out(
    folder: Path, read: Callable[[Path], Corpus], name: str, content: bytes | None, problem: str
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    corpus = read(folder)
    assert_out(corpus, IN_FILE)
    assert corpus.damage() == [SegmentDamage(FILE, problem, NUM_BLOCKS)]


@PLACES
def test_the_checksums_of_another_segment_do_not_pass(folder: Path, read: Callable[[Path], Corpus]) -> None:
    shutil.copy(folder / "segments/00000000.crc32", folder / "segments/00000001.crc32")
    assert_out(read(folder), IN_FILE)


@PLACES
def test_what_follows_a_file_does_not_matter(folder: Path, read: Callable[[Path], Corpus]) -> None:
    with (folder / FILE).open("ab") as file:
        file.write(b"more")
    corpus = read(folder)
    assert_out(corpus, np.zeros(len(IDS), dtype=bool))
    assert corpus.damage() == []


@PLACES
def test_damage_shows_when_it_is_touched_and_is_logged_once(folder: Path, read: Callable[[Path], Corpus]) -> None:
    (folder / FILE).write_bytes(bytes((folder / FILE).stat().st_size))
    corpus = read(folder)
    with capture_logs() as logs:
        assert same_rows(corpus.rows(IDS[~IN_FILE]), EVERY.take(np.flatnonzero(~IN_FILE)))
        assert (corpus.damage(), logs) == ([], [])
        for _ in range(3):
            corpus.rows(IDS)
    (entry,) = [entry for entry in logs if entry["event"] == "damaged segment"]
    assert (entry["file"], entry["problem"]) == (FILE, FAILS_CHECKSUM)
    assert entry["block"] in range(NUM_BLOCKS)
    assert "put back the file" in entry["advice"]
    assert corpus.damage() == [SegmentDamage(FILE, FAILS_CHECKSUM, NUM_BLOCKS)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
def test_a_file_that_may_not_be_opened_is_not_taken_for_damaged(folder: Path) -> None:
    (folder / FILE).chmod(0)
    corpus = Corpus(folder)
    with pytest.raises(CorpusUnavailable, match="cannot be opened now"):
        corpus.rows(IDS)
    (folder / FILE).chmod(0o644)
    assert_out(corpus, np.zeros(len(IDS), dtype=bool))


def test_a_folder_in_the_place_of_a_file_is_not_taken_for_damaged(folder: Path) -> None:
    (folder / FILE).rename(folder / "aside")
    (folder / FILE).mkdir()
    corpus = Corpus(folder)
    with pytest.raises(CorpusUnavailable, match="cannot be opened now"):
        corpus.rows(IDS)
    (folder / FILE).rmdir()
    (folder / "aside").rename(folder / FILE)
    assert_out(corpus, np.zeros(len(IDS), dtype=bool))
