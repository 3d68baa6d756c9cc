"""Uploads to fsspec's memory, to a folder, and to an S3 server over HTTP."""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from replay_service.corpus.format.manifest import MANIFEST_NAME
from replay_service.corpus.format.texts import TOKENIZER_FILE
from replay_service.corpus.reading.reader import Corpus, CorpusStore
from replay_service.corpus.upload import upload
from replay_service.errors import CorpusError, CorpusUnavailable, UnknownCorpus
from tests import object_storage
from tests.corpus.failing_storage import FailingFileSystem
from tests.corpus.worlds import same_rows
from tests.support import grow_corpus, make_corpus


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with object_storage.s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for corpora, of each kind."""
    name = uuid.uuid4().hex
    if request.param == "file":
        (tmp_path / "far").mkdir()
        return f"file://{tmp_path / 'far'}/corpora"
    if request.param == "memory":
        return f"memory://{name}/corpora"
    endpoint: str = request.getfixturevalue("s3_endpoint")
    object_storage.upload(endpoint, name)
    return f"s3://{name}/corpora{object_storage.url_query(endpoint)}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a corpus, `wiki`, of three segments."""
    make_corpus(tmp_path / "corpora")
    return tmp_path / "corpora"


def every_id(corpus: Corpus) -> np.ndarray:
    segments = corpus.manifest.segments
    return np.concatenate([(n << 32) + np.arange(each.num_rows) for n, each in enumerate(segments)])


def is_as_local(url: str, folder: Path, generation: int | None = None) -> bool:
    """Whether the corpus at the URL is read there as it is here, in a generation or the latest."""
    store = CorpusStore(url)
    there, here = store.get("wiki"), Corpus(folder / "wiki")
    generation = here.generation if generation is None else generation
    assert there.generation == generation
    assert there.partition == here.partition_of(generation)
    ids = every_id(there)
    is_same = same_rows(there.rows(ids), here.rows(ids)) and there.damage() == []
    store.close()
    return is_same


def test_what_was_uploaded_is_read_there_as_it_is_here(url: str, folder: Path) -> None:
    told: list[tuple[int, int]] = []
    assert upload(folder / "wiki", url, lambda done, total: told.append((done, total))) == 3
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert is_as_local(url, folder)
    assert CorpusStore(url).names() == ["wiki"]


def test_texts_can_be_read_from_where_a_corpus_was_uploaded_to(url: str, folder: Path, tiny_model: Path) -> None:
    shutil.copy(tiny_model / TOKENIZER_FILE, folder / "wiki" / TOKENIZER_FILE)
    upload(folder / "wiki", url)
    store, ids = CorpusStore(url), np.array([[5, 6, 7, 0]])
    assert store.get("wiki").texts.of(ids, [3]) == Corpus(folder / "wiki").texts.of(ids, [3])
    store.close()


def test_what_is_there_is_not_copied_again(url: str, folder: Path) -> None:
    upload(folder / "wiki", url)
    told: list[tuple[int, int]] = []
    assert upload(folder / "wiki", url, lambda done, total: told.append((done, total))) == 0
    assert told == [(0, 0)]
    assert is_as_local(url, folder)


def test_of_a_corpus_that_grew_what_is_new_is_copied(url: str, folder: Path) -> None:
    upload(folder / "wiki", url)
    for _ in range(2):
        grow_corpus(folder, new_domain="it")
    assert upload(folder / "wiki", url) == 2
    assert is_as_local(url, folder)


def test_what_a_corpus_gains_while_it_is_uploaded_is_left_for_the_next_time(url: str, folder: Path) -> None:
    def grow_in_between(done: int, _total: int) -> None:
        if done == 1:
            grow_corpus(folder)

    assert upload(folder / "wiki", url, grow_in_between) == 3
    assert is_as_local(url, folder, generation=1)
    assert upload(folder / "wiki", url) == 1
    assert is_as_local(url, folder, generation=2)


def test_a_segment_that_is_there_in_part_is_copied_again(url: str, folder: Path) -> None:
    upload(folder / "wiki", url)
    whole = (folder / "wiki/segments/00000001.arrow").read_bytes()
    with fsspec_of(url).open(f"{path_of(url)}/wiki/segments/00000001.arrow", "wb") as file:
        file.write(whole[:100])
    assert upload(folder / "wiki", url) == 1
    assert is_as_local(url, folder)


def test_segments_of_another_corpus_of_that_name_are_replaced(url: str, folder: Path) -> None:
    upload(folder / "wiki", url)
    sizes = [path.stat().st_size for path in sorted((folder / "wiki/segments").iterdir())]
    shutil.rmtree(folder / "wiki")
    make_corpus(folder, seed=9)
    assert [path.stat().st_size for path in sorted((folder / "wiki/segments").iterdir())] == sizes
    assert upload(folder / "wiki", url) == 3
    assert is_as_local(url, folder)


def fsspec_of(url: str) -> Any:
    """The place, through another library than that of the project."""
    if url.startswith("s3://"):
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import fs

        filesystem, _ = fs.FileSystem.from_uri(url)
        return ArrowFSWrapper(filesystem)
    return fsspec.core.url_to_fs(url)[0]


def path_of(url: str) -> str:
    return url.partition("?")[0].removeprefix("s3://").removeprefix("file://").removeprefix("memory:/")


@pytest.fixture
def failing() -> Iterator[str]:
    """A place in which so many files can be written as FailingFileSystem.files_left says."""
    FailingFileSystem.clear()
    yield "failing://corpora"
    FailingFileSystem.clear()


@pytest.mark.parametrize("num_files", range(7))
def test_a_first_upload_that_breaks_off_shows_no_corpus_and_goes_on(failing: str, folder: Path, num_files: int) -> None:
    FailingFileSystem.files_left = num_files
    with pytest.raises(CorpusUnavailable, match="the quota is used up"):
        upload(folder / "wiki", failing)
    assert CorpusStore(failing).names() == []
    FailingFileSystem.files_left = 100
    assert upload(folder / "wiki", failing) == 3 - num_files // 2
    assert is_as_local(failing, folder)


@pytest.mark.parametrize("num_files", range(5))
def test_an_upload_that_breaks_off_leaves_the_earlier_generation_readable(
    failing: str, folder: Path, num_files: int
) -> None:
    FailingFileSystem.files_left = 100
    upload(folder / "wiki", failing)
    for _ in range(2):
        grow_corpus(folder)
    FailingFileSystem.files_left = num_files
    with pytest.raises(CorpusUnavailable):
        upload(folder / "wiki", failing)
    assert is_as_local(failing, folder, generation=1)
    FailingFileSystem.files_left = 100
    assert upload(folder / "wiki", failing) == 2 - num_files // 2
    assert is_as_local(failing, folder)


def test_a_corpus_that_is_not_here_is_not_uploaded(url: str, folder: Path) -> None:
    with pytest.raises(UnknownCorpus, match="nothing"):
        upload(folder / "nothing", url)
    (folder / "file").touch()
    with pytest.raises(UnknownCorpus, match="file"):
        upload(folder / "file", url)
    assert CorpusStore(url).names() == []


def test_a_damaged_manifest_is_not_uploaded(url: str, folder: Path) -> None:
    upload(folder / "wiki", url)
    before = Corpus(folder / "wiki")
    whole = (folder / "wiki" / MANIFEST_NAME).read_bytes()
    (folder / "wiki" / MANIFEST_NAME).write_bytes(whole[:-20])
    with pytest.raises(CorpusError, match="damaged"):
        upload(folder / "wiki", url)
    assert CorpusStore(url).get("wiki").manifest == before.manifest


def test_a_segment_that_is_gone_here_is_named(failing: str, folder: Path) -> None:
    FailingFileSystem.files_left = 100
    (folder / "wiki/segments/00000001.arrow").unlink()
    with pytest.raises(CorpusUnavailable, match=r"00000001\.arrow"):
        upload(folder / "wiki", failing)
    assert CorpusStore(failing).names() == []


@pytest.mark.parametrize("url", ["nosuch://me:swordfish@host/corpora", "s3://?secret_key=swordfish"])
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(folder: Path, url: str) -> None:
    with pytest.raises(CorpusError) as refusal:
        upload(folder / "wiki", url)
    assert "swordfish" not in refusal.value.detail


def test_a_bucket_that_is_not_there_is_said(s3_endpoint: str, folder: Path) -> None:
    query = object_storage.url_query(s3_endpoint)
    with pytest.raises(CorpusUnavailable, match=r"nobody-made-this/corpora/wiki: .*; see to the storage"):
        upload(folder / "wiki", f"s3://nobody-made-this/corpora{query}")
