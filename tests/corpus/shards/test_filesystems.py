"""Places: URLs to filesystems, and errors that show no secret of a URL."""

import sys
import traceback
from pathlib import Path

import pytest
from pyarrow import fs

from replay_service.corpus.shards.filesystems import FsspecPlace, failures_named, locate
from replay_service.corpus.shards.sources import Columns, check_readable, find_shards
from replay_service.errors import UnusableSource

KEY, SECRET = "AKIAIOSFODNN7", "wJalrXUtnFEMI/K7MDENG+bPxRfi"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@bucket/a.jsonl?no_such_option=1",
        f"s3://bucket/a.jsonl?access_key={KEY}&secret_key={SECRET}",
        f"gs://{KEY}:{SECRET}@bucket/a.jsonl?no_such_option=1",
        f"nosuchprotocol://{KEY}:{SECRET}@bucket/a.jsonl",
        f"memory://{KEY}:{SECRET}@bucket/a.jsonl",
        f"https://{KEY}:{SECRET}@127.0.0.1:9/a.jsonl?signature={SECRET}",
    ],
)
def test_no_secret_is_in_an_error_or_its_traceback(url: str) -> None:
    with pytest.raises(UnusableSource) as caught:
        find_shards(url)
    told = "".join(traceback.format_exception(caught.value))
    for secret in (KEY, SECRET, SECRET.split("/")[1], "K7MDENG%2BbPxRfi"):
        assert secret not in told


def test_no_secret_is_in_the_representation_of_a_shard() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/secret-place/a.txt", b"x")
    (shard,) = find_shards("memory://secret-place/a.txt")
    assert "secret-place" not in repr(shard)


def test_a_reason_that_spells_a_secret_is_scrubbed() -> None:
    url = f"s3://{KEY}:{SECRET}@bucket/a"
    with pytest.raises(UnusableSource) as caught, failures_named(url):
        raise OSError(f"cannot sign {url} with {SECRET} or K7MDENG%2BbPxRfi for {KEY}")
    assert str(caught.value).startswith("s3://bucket/a cannot be read: cannot sign s3://bucket/a with ***")
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_mistake_of_ours_is_not_blamed_on_a_shard() -> None:
    with pytest.raises(KeyError), failures_named("/data/a"):
        raise KeyError("ours")


@pytest.mark.parametrize(
    ("url", "filesystem", "path"),
    [
        ("s3://bucket/a b/c%20d?region=us-east-1", fs.S3FileSystem, "bucket/a b/c%20d"),
        (f"s3://{KEY}:{SECRET}@bucket/a/?region=us-east-1", fs.S3FileSystem, "bucket/a"),
        ("s3://bucket/odd?name.jsonl?region=us-east-1&scheme=http", fs.S3FileSystem, "bucket/odd?name.jsonl"),
        ("gs://anonymous@bucket/a", fs.GcsFileSystem, "bucket/a"),
        ("/data/a", fs.LocalFileSystem, "/data/a"),
        ("memory://a/b", fs.PyFileSystem, "/a/b"),
    ],
)
def test_a_url_names_a_path_in_a_filesystem(url: str, filesystem: type, path: str) -> None:
    place = locate(url)
    assert isinstance(place.filesystem, filesystem)
    assert place.path == path


def test_a_hugging_face_url_goes_through_its_own_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    place = locate("hf://datasets/org/name/data")
    assert isinstance(place, FsspecPlace)
    assert type(place.filesystem.handler.fs).__name__ == "HfFileSystem"
    assert place.path == "datasets/org/name/data"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnusableSource, match="hf://datasets/org/name/data cannot be read"):
        find_shards("hf://datasets/org/name/data")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnusableSource, match=r"needs a package that is missing: .*dropbox"):
        find_shards("dropbox://a/b")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UnusableSource, match="needs a package that is missing: pip install fsspec"):
        find_shards("memory://a/b")


def test_a_protocol_that_nobody_knows_is_named() -> None:
    with pytest.raises(UnusableSource, match=r"nosuch://a/b cannot be read: .*nosuch"):
        find_shards("nosuch://a/b")


@pytest.mark.skipif("sys.platform == 'win32' or __import__('os').geteuid() == 0", reason="root may read everything")
def test_a_shard_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    (shard,) = find_shards(path)
    with pytest.raises(UnusableSource, match=str(path)):
        check_readable(shard, Columns())
