"""Corpora in object storage: what is asked for, how often, and what comes of its failures."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from replay_service.corpus.format.layout import Layout
from replay_service.corpus.format.manifest import Segment
from replay_service.corpus.format.segment_file import BLOCK_BYTES
from replay_service.corpus.reading.folders import open_folder, remote_folder
from replay_service.corpus.reading.object_storage import RetryPolicy
from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.corpus.reading.remote_blocks import BlockCache, RemoteSegment
from replay_service.errors import CorpusError, CorpusUnavailable, UnknownCorpus
from tests.corpus.storage import CountedFileSystem
from tests.corpus.worlds import concatenated, ids_of, random_rows, same_rows, write_corpus
from tests.object_storage import s3_server, upload, url_query

PARTS = [random_rows(1500, seq_len=61, seed=seed) for seed in range(3)]
EVERY, IDS = concatenated(PARTS), ids_of(PARTS)
IMPATIENT = RetryPolicy(give_up_after_s=0.2, first_wait_s=0.001, longest_wait_s=0.01)
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "rows", PARTS)
    return folder


@dataclass
class Far:
    """A corpus far away, and what was asked of its storage."""

    corpus: Corpus
    storage: CountedFileSystem
    store: CorpusStore

    def reads(self) -> list[tuple[str, int, int]]:
        """What was read since this was asked last."""
        self.store.close()  # waits for what is still being fetched
        return self.storage.reads


def far(folder: Path, cache_bytes: int = 16 * MIB) -> Far:
    storage = CountedFileSystem(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()))
    store = CorpusStore(remote_folder(fs.PyFileSystem(storage), "", cache_bytes, IMPATIENT))
    return Far(store.get("rows"), storage, store)


def test_opening_a_corpus_reads_no_segment(folder: Path) -> None:
    assert far(folder).reads() == []


def test_what_was_read_is_not_asked_for_again(folder: Path) -> None:
    world = far(folder)
    for _ in range(3):
        assert same_rows(world.corpus.rows(IDS), EVERY)
        assert np.array_equal(world.corpus.base_results(IDS).loss_nats, EVERY.base_loss.astype(np.float64))
    read = sum(num_bytes for _, _, num_bytes in world.reads())
    assert read == sum(segment.num_bytes for segment in world.corpus.manifest.segments)


def test_adjacent_blocks_come_in_one_request(folder: Path) -> None:
    world = far(folder)
    world.corpus.rows(IDS)
    assert len(world.reads()) == len(PARTS)


def row_at_the_end_of_the_first_block(segment: Segment) -> int:
    """A row that begins in the first block of a segment and ends in the second."""
    row = (BLOCK_BYTES - segment.rows_at) // segment.record["itemsize"]
    assert segment.rows_at + row * segment.record["itemsize"] < BLOCK_BYTES
    return int(row)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_a_row_costs_one_request_of_the_one_or_two_blocks_that_it_lies_in(folder: Path, num_blocks: int) -> None:
    world = far(folder)
    row = row_at_the_end_of_the_first_block(world.corpus.manifest.segments[0]) - 2 + num_blocks
    assert same_rows(world.corpus.rows(IDS[[row]]), EVERY.take(np.array([row])))
    assert world.reads() == [("rows/segments/00000000.arrow", 0, num_blocks * BLOCK_BYTES)]


def test_results_of_the_base_model_cost_the_blocks_that_they_lie_in(folder: Path) -> None:
    world = far(folder)
    segments = world.corpus.manifest.segments
    row, layout = row_at_the_end_of_the_first_block(segments[0]), Layout(segments)
    offset, type_ = layout.base_results
    (begin,) = (layout.positions(IDS[[row]]) + offset).tolist()
    num_blocks = (begin + type_.itemsize - 1) // BLOCK_BYTES - begin // BLOCK_BYTES + 1
    assert world.corpus.base_results(IDS[[row]]).loss_nats == EVERY.base_loss[row]
    assert sum(num_bytes for _, _, num_bytes in world.reads()) == num_blocks * BLOCK_BYTES


def test_what_was_read_ahead_is_read_without_a_request(folder: Path) -> None:
    world, chosen = far(folder), IDS[[0, 700, 1499, 1500, 4000]]
    world.corpus.read_ahead(chosen)
    assert same_rows(world.corpus.rows(chosen), EVERY.take(np.array([0, 700, 1499, 1500, 4000])))
    assert len(world.corpus.base_results(chosen).loss_nats) == 5
    reads = world.reads()
    assert len(set(reads)) == len(reads) > 2


def test_reading_ahead_does_not_wait(folder: Path) -> None:
    world, may_answer = far(folder), threading.Event()

    def answer_late(_: str) -> None:
        assert may_answer.wait(60)

    world.storage.fail = answer_late
    world.corpus.read_ahead(IDS)
    assert world.storage.reads == []
    may_answer.set()
    assert same_rows(world.corpus.rows(IDS), EVERY)
    assert len(world.reads()) == len(PARTS)


def test_no_more_is_read_ahead_than_half_of_the_cache_holds(folder: Path) -> None:
    world = far(folder, cache_bytes=20 * BLOCK_BYTES)
    world.corpus.read_ahead(IDS)
    assert sum(num_bytes for _, _, num_bytes in world.reads()) <= 10 * BLOCK_BYTES


def test_nothing_is_read_ahead_of_no_samples_or_for_a_corpus_at_hand(folder: Path) -> None:
    world = far(folder)
    world.corpus.read_ahead(np.empty(0, dtype=np.int64))
    Corpus(folder / "rows").read_ahead(IDS)
    assert world.reads() == []


def test_what_fails_while_it_is_read_ahead_is_asked_for_again(folder: Path) -> None:
    world = far(folder)

    def fail(path: str) -> None:
        raise TimeoutError(path)

    world.storage.fail = fail
    one = IDS[:1]  # one request: of several, some may still fail when the first one has failed
    world.corpus.read_ahead(one)
    with pytest.raises(CorpusUnavailable):
        world.corpus.rows(one)
    world.storage.fail = lambda _: None
    assert same_rows(world.corpus.rows(one), EVERY.take(np.array([0])))


@pytest.mark.parametrize("cache_bytes", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 5, MIB])
def test_a_cache_that_is_too_small_for_a_batch_gives_it_whole(folder: Path, cache_bytes: int) -> None:
    world = far(folder, cache_bytes)
    for _ in range(2):
        assert same_rows(world.corpus.rows(IDS), EVERY)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 50)), max_size=60), st.integers(0, 120))
@settings(max_examples=100, deadline=None)
def test_the_cache_stays_within_its_bound_and_drops_what_was_not_used_for_longest(
    puts: list[tuple[int, int, int]], max_bytes: int
) -> None:
    cache = BlockCache(max_bytes)
    segments = [object.__new__(RemoteSegment) for _ in range(6)]
    expected: dict[tuple[RemoteSegment, int], bytes] = {}
    for segment, block, size in puts:
        key = segments[segment], block
        cache.put(key, bytes(size))
        expected.pop(key, None)
        expected[key] = bytes(size)
        while sum(map(len, expected.values())) > max_bytes:
            del expected[next(iter(expected))]
        assert cache.num_bytes == sum(map(len, expected.values())) <= max_bytes
    for key in list(expected):
        assert cache.get(key) == expected[key]
    assert all(cache.get((each, 9)) is None for each in segments)


def test_many_readers_at_once_ask_once(folder: Path) -> None:
    world = far(folder)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: world.corpus.rows(IDS), range(16)))
    assert all(same_rows(rows, EVERY) for rows in found)
    assert len(world.reads()) == len(PARTS)


def test_a_failure_that_passes_is_not_noticed(folder: Path) -> None:
    world, failures = far(folder), iter([TimeoutError("slow"), OSError("503 Slow Down"), ConnectionResetError()])

    def fail(path: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    world.storage.fail = fail
    assert same_rows(world.corpus.rows(IDS), EVERY)
    assert world.corpus.damage() == []


def test_a_failure_that_lasts_is_an_error_and_no_damage(folder: Path) -> None:
    world = far(folder)

    def fail(path: str) -> None:
        raise OSError("500 Internal Error")

    world.storage.fail = fail
    for read in (world.corpus.rows, world.corpus.base_results):
        with pytest.raises(CorpusUnavailable, match="500 Internal Error"):
            read(IDS[:1])  # one request, so that none still fails when storage answers again
    with pytest.raises(CorpusUnavailable):
        world.store.names()
    world.storage.fail = lambda _: None
    assert same_rows(world.corpus.rows(IDS), EVERY)
    assert world.corpus.damage() == []


def test_a_manifest_out_of_reach_is_no_missing_corpus(folder: Path) -> None:
    world = far(folder)

    def fail(path: str) -> None:
        raise OSError("no route to host")

    world.storage.fail = fail
    assert world.store.get("rows").generation == 1
    with pytest.raises(CorpusUnavailable, match="no route to host"):
        world.store.get("other")


def test_bytes_that_were_damaged_on_their_way_are_asked_for_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "rows", tmp_path / "rows")
    path = tmp_path / "rows/segments/00000000.arrow"
    content = path.read_bytes()
    path.write_bytes(content[:5000] + b"?" + content[5001:])
    world = far(tmp_path)

    def mend(_: str) -> None:
        if world.storage.reads:
            path.write_bytes(content)

    world.storage.fail = mend
    assert same_rows(world.corpus.rows(IDS[:1500]), PARTS[0])
    assert world.corpus.damage() == []


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


def test_a_corpus_is_served_from_s3(folder: Path, endpoint: str) -> None:
    upload(endpoint, "served", folder)
    store = CorpusStore("s3://served" + url_query(endpoint), refresh_s=0.0)
    assert store.names() == ["rows"]
    corpus = store.get("rows")
    assert same_rows(corpus.rows(IDS), EVERY)
    assert np.array_equal(corpus.base_results(IDS).loss_nats, EVERY.base_loss.astype(np.float64))
    assert store.get("rows") is corpus
    with pytest.raises(UnknownCorpus):
        store.get("other")
    store.close()


def test_a_folder_in_a_bucket_is_served_and_its_damage_found(folder: Path, endpoint: str, tmp_path: Path) -> None:
    shutil.copytree(folder / "rows", tmp_path / "deep/er/rows")
    (tmp_path / "deep/er/rows/segments/00000001.arrow").unlink()
    (tmp_path / "deep/er/rows/segments/00000002.crc32").unlink()
    upload(endpoint, "damaged", tmp_path)
    store = CorpusStore("s3://damaged/deep/er/" + url_query(endpoint))
    assert store.names() == ["rows"]
    rows = store.get("rows").rows(IDS)
    assert np.array_equal(rows.length > 0, IDS >> 32 == 0)
    assert same_rows(rows.take(np.arange(1500)), PARTS[0])
    assert len(store.get("rows").damage()) == 2
    store.close()


def test_a_file_url_is_a_path(folder: Path) -> None:
    store = CorpusStore(f"file://{folder}")
    assert not store.get("rows").is_remote
    assert same_rows(store.get("rows").rows(IDS), EVERY)
    assert not open_folder(str(folder)).is_remote


@pytest.mark.parametrize("url", ["nowhere://bucket/x", "s3://", "s3://user:secret@/x?what=ever", "gs://?secret=1"])
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(CorpusError) as refusal:
        CorpusStore(url)
    assert "secret" not in str(refusal.value)
