import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs
from structlog.testing import capture_logs

from replay_service.corpus.format.manifest import read_manifest, write_manifest
from replay_service.corpus.format.strata import Group
from replay_service.corpus.reading.folders import remote_folder
from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.errors import CorpusUnavailable
from tests.corpus.worlds import concatenated, ids_of, random_rows, same_rows, write_corpus

PARTS = [random_rows(50, seed=seed) for seed in range(3)]


class Clock:
    """A clock that stands still until it is put forward, seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["mapped", "far away"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CorpusStore:
    """A store with a corpus of two segments, `rows`, which looks for new generations whenever it is asked."""
    write_corpus(tmp_path / "rows", PARTS[:2])
    if request.param == "mapped":
        return CorpusStore(tmp_path)
    return CorpusStore(remote_folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), ""), refresh_s=0.0)


def test_a_new_generation_is_noticed_and_spoils_no_old_one(store: CorpusStore, tmp_path: Path) -> None:
    old = store.get("rows")
    old.rows(ids_of(PARTS[:2]))
    write_corpus(tmp_path / "rows", PARTS, [1, 1, 2])
    new = store.get("rows")
    assert (old.generation, new.generation) == (1, 2)
    assert (old.partition.num_samples, new.partition.num_samples) == (100, 150)
    assert same_rows(new.rows(ids_of(PARTS)), concatenated(PARTS))
    assert same_rows(old.rows(ids_of(PARTS[:2])), concatenated(PARTS[:2]))
    assert store.get("rows") is new


def test_a_generation_that_is_at_hand_is_given_without_a_look_at_the_manifest(
    store: CorpusStore, tmp_path: Path
) -> None:
    old = store.at("rows", 1)
    write_corpus(tmp_path / "rows", PARTS, [1, 1, 2])
    assert store.at("rows", 1) is old
    assert store.at("rows", 2).generation == 2
    assert store.at("rows", 1).generation == 2
    assert store.at("rows", 3).generation == 2


def test_what_was_checked_is_not_read_again_for_a_new_generation(store: CorpusStore, tmp_path: Path) -> None:
    store.get("rows").rows(ids_of(PARTS[:1]))
    grown = write_corpus(tmp_path / "grown", PARTS, [1, 1, 2])
    for file in (tmp_path / "grown/segments").glob("00000002.*"):
        shutil.copy(file, tmp_path / "rows/segments")
    write_manifest(tmp_path / "rows", replace(grown, name="rows"))
    # Nobody would be able to check the segment now.
    (tmp_path / "rows/segments/00000000.crc32").unlink()
    assert same_rows(store.get("rows").rows(ids_of(PARTS)), concatenated(PARTS))
    assert store.get("rows").damage() == []


def test_a_mapped_segment_that_cannot_be_mapped_again_is_looked_at_anew(tmp_path: Path) -> None:
    write_corpus(tmp_path / "rows", PARTS[:2])
    store = CorpusStore(tmp_path)
    store.get("rows").rows(ids_of(PARTS[:2]))
    write_corpus(tmp_path / "rows", PARTS, [1, 1, 2])
    (tmp_path / "rows/segments/00000001.arrow").unlink()
    lengths = store.get("rows").rows(ids_of(PARTS)).length
    assert (lengths == 0).tolist() == [False] * 50 + [True] * 50 + [False] * 50


def test_damage_is_known_in_later_generations(store: CorpusStore, tmp_path: Path) -> None:
    (tmp_path / "rows/segments/00000001.crc32").unlink()
    store.get("rows").rows(ids_of(PARTS[:2]))
    write_corpus(tmp_path / "rows", PARTS, [1, 1, 2])
    (damage,) = store.get("rows").damage()
    assert damage.file == "segments/00000001.arrow"


def test_a_corpus_that_was_made_anew_is_read_anew(store: CorpusStore, tmp_path: Path) -> None:
    store.get("rows").rows(ids_of(PARTS[:2]))
    shutil.rmtree(tmp_path / "rows")
    others = [random_rows(50, seed=9), random_rows(20, seed=10)]
    write_corpus(tmp_path / "rows", others)
    assert same_rows(store.get("rows").rows(ids_of(others)), concatenated(others))


def test_the_manifest_of_a_far_corpus_is_not_asked_for_all_the_time(tmp_path: Path) -> None:
    write_corpus(tmp_path / "rows", PARTS[:2])
    clock = Clock()
    folder = remote_folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")
    store = CorpusStore(folder, refresh_s=5.0, monotonic=clock)
    store.get("rows")
    write_corpus(tmp_path / "rows", PARTS, [1, 1, 2])
    clock.now = 4.9
    assert store.get("rows").generation == 1
    clock.now = 5.0
    assert store.get("rows").generation == 2


@pytest.mark.parametrize("content", [None, b"{", b'{"format_version": 9}'])
def test_a_corpus_that_runs_depend_on_outlives_its_manifest(
    store: CorpusStore, tmp_path: Path, content: bytes | None
) -> None:
    manifest = tmp_path / "rows/manifest.json"
    whole, old = manifest.read_bytes(), store.get("rows")
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    with capture_logs() as logs:
        assert store.get("rows") is store.get("rows") is old
    assert [entry["event"] for entry in logs] == ["manifest not read again"]
    manifest.write_bytes(whole.replace(b'"generation": 1,\n "model"', b'"generation": 2,\n "model"'))
    assert store.get("rows").generation == 2


def test_each_generation_has_its_partition(tmp_path: Path) -> None:
    write_corpus(tmp_path / "rows", PARTS, [1, 2, 3])
    manifest = read_manifest(tmp_path / "rows")
    manifest.segments[2].extents[:] = [(1, 0, 50)]
    manifest.groups.append(Group("fr", 3, []))
    write_manifest(tmp_path / "rows", manifest)
    corpus = Corpus(tmp_path / "rows")
    assert [corpus.partition_of(each).groups for each in (1, 2, 3)] == [("en",), ("en",), ("en", "fr")]
    assert [corpus.partition_of(each).sizes.tolist() for each in (1, 2, 3)] == [[50], [100], [100, 50]]
    assert corpus.partition is corpus.partition_of(3)
    places = np.arange(50)
    for generation in (1, 2):
        located = corpus.partition_of(generation).locate(np.zeros(50, dtype=np.int64), places)
        assert np.array_equal(located, corpus.partition.locate(np.zeros(50, dtype=np.int64), places))


def test_a_generation_that_is_yet_to_come_cannot_be_reached(tmp_path: Path) -> None:
    write_corpus(tmp_path / "rows", PARTS)
    with pytest.raises(CorpusUnavailable, match="is at generation 1 here, and generation 2 was asked for"):
        Corpus(tmp_path / "rows").partition_of(2)
