"""Corpora that are made in object storage: whole wherever an ingest breaks off, and on whatever machine it goes on."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replay_service.corpus.format.manifest import MANIFEST_NAME
from replay_service.corpus.publishing import Published
from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.errors import CorpusError, CorpusUnavailable
from tests import object_storage
from tests.corpus.failing_storage import FailingFileSystem
from tests.corpus.ingest.staged_shards import Ingest, Shards, made, shards_of
from tests.corpus.worlds import same_rows

SHARDS = shards_of(30, 25, 40, set_aside=(2, 0, 3))
ROWS_PER_SEGMENT = 20


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with object_storage.s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    name = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://{name}/corpora"
    endpoint: str = request.getfixturevalue("s3_endpoint")
    object_storage.upload(endpoint, name)
    return f"s3://{name}/corpora{object_storage.url_query(endpoint)}"


@pytest.fixture
def failing() -> Iterator[str]:
    FailingFileSystem.clear()
    yield "failing://corpora"
    FailingFileSystem.clear()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails is asked once."""
    from replay_service.corpus import publishing
    from replay_service.corpus.reading.object_storage import ObjectStorage, RetryPolicy

    monkeypatch.setattr(publishing, "ObjectStorage", lambda each: ObjectStorage(each, RetryPolicy(0.01, 0.001)))


def publish(url: str, folder: Path, shards: Shards = SHARDS) -> None:
    """Ingest, or go on, in a folder of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    published = Published(url, folder)
    published.bring()
    ingest = Ingest(folder, shards, ROWS_PER_SEGMENT)
    ingest.growing.publish = published.publish
    ingest.finish()


def is_as_made(url: str, folder: Path, shards: Shards = SHARDS) -> bool:
    """Whether the corpus at the URL is the one that an ingest makes on a disk."""
    manifest, _ = made(folder / "wiki", shards, ROWS_PER_SEGMENT)
    store, here = CorpusStore(url), Corpus(folder / "wiki")
    there = store.get("wiki")
    ids = np.concatenate([(n << 32) + np.arange(each.num_rows) for n, each in enumerate(manifest.segments)])
    is_same = there.manifest == manifest and same_rows(there.rows(ids), here.rows(ids)) and there.damage() == []
    store.close()
    return is_same


def test_the_corpus_is_the_one_that_is_made_on_a_disk_and_takes_none(url: str, tmp_path: Path) -> None:
    publish(url, tmp_path / "work/wiki")
    assert is_as_made(url, tmp_path)
    assert list((tmp_path / "work/wiki/segments").iterdir()) == []
    assert list((tmp_path / "work/wiki/set_aside").iterdir()) == []


def test_another_machine_goes_on_where_one_has_ended(url: str, tmp_path: Path) -> None:
    first = Shards(dict(list(SHARDS.rows.items())[:2]), SHARDS.num_set_aside)
    publish(url, tmp_path / "one/wiki", first)
    publish(url, tmp_path / "two/wiki")
    assert len(CorpusStore(url).get("wiki").manifest.segments) > 3
    assert CorpusStore(url).get("wiki").manifest.num_shards == 3


@pytest.mark.parametrize("num_files", [0, 2, 5, 9])
@pytest.mark.parametrize("machine", ["one", "two"])
def test_an_ingest_whose_storage_fails_goes_on_there_here_or_on_another_machine(
    failing: str, tmp_path: Path, num_files: int, machine: str
) -> None:
    FailingFileSystem.files_left = num_files
    with pytest.raises(CorpusUnavailable, match="the quota is used up"):
        publish(failing, tmp_path / "one/wiki")
    FailingFileSystem.files_left = 1000
    publish(failing, tmp_path / machine / "wiki")
    assert is_as_made(failing, tmp_path)


def test_an_ingest_beside_another_one_writes_nothing_over_it(url: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one/wiki", tmp_path / "two/wiki"
    two.mkdir(parents=True)
    late = Published(url, two)
    late.bring()
    publish(url, one)
    before = CorpusStore(url).get("wiki").manifest
    ingest = Ingest(two, shards_of(60, seed=5), ROWS_PER_SEGMENT)
    ingest.growing.publish = late.publish
    with pytest.raises(CorpusError, match=rf"another ingest has written .*wiki.* generation {before.generation} now"):
        ingest.finish()
    assert CorpusStore(url).get("wiki").manifest == before


def test_a_corpus_that_was_taken_away_there_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    url = f"file://{tmp_path / 'far'}/corpora"
    publish(url, tmp_path / "work/wiki")
    shutil.rmtree(tmp_path / "far/corpora/wiki")
    (tmp_path / "work/wiki/status.json").write_text("{}")
    publish(url, tmp_path / "work/wiki")
    assert is_as_made(url, tmp_path)
    assert (tmp_path / "work/wiki/status.json").exists()


def test_a_reader_sees_whole_generations_alone(failing: str, tmp_path: Path) -> None:
    """A manifest comes after all that it names."""
    FailingFileSystem.files_left = 1000
    publish(failing, tmp_path / "wiki")
    names = [path.rpartition("/wiki/")[2] for path in FailingFileSystem.written]
    last = max(index for index, name in enumerate(names) if name.startswith("segments/"))
    assert names[-1] == MANIFEST_NAME and last < len(names) - 1
    segments = [name for name in names if name.endswith(".arrow")]
    assert segments == sorted(set(segments))
