"""Places that shards may come from, and the ways out of them that are shut."""

import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from replay_service.corpus.shards.places import AllowedPlaces
from replay_service.corpus.shards.sources import (
    Columns,
    Document,
    Shard,
    check_readable,
    find_shards,
    fingerprint_of,
    read_documents,
)
from replay_service.errors import SourceForbidden, UnusableSource
from tests.corpus.worlds import write_jsonl
from tests.object_storage import s3_server, upload, url_query

WEB = AllowedPlaces(("s3://bucket/web",))
WITH_SECRETS = AllowedPlaces(("s3://key:sec/ret@bucket/web/?region=us-east-1",))
HTTP = AllowedPlaces(("https://host/web?token=t",))


def texts_of(shards: list[Shard]) -> list[object]:
    found = (each for shard in shards for each in read_documents(shard, Columns()))
    return [each.content for each in found if isinstance(each, Document)]


READS: tuple[Callable[[Shard], object], ...] = (
    fingerprint_of,
    lambda shard: check_readable(shard, Columns()),
    lambda shard: texts_of([shard]),
)
"""All that reads a shard after it was found."""


@pytest.mark.parametrize(
    ("allowed", "source", "resolved"),
    [
        (WEB, "s3://bucket/web", "s3://bucket/web"),
        (WEB, "s3://bucket/web/", "s3://bucket/web/"),
        (WEB, "s3://bucket/web/**/*.jsonl", "s3://bucket/web/**/*.jsonl"),
        (WEB, "s3://bucket/web/a...b/c%20d/0?.txt", "s3://bucket/web/a...b/c%20d/0?.txt"),
        (WITH_SECRETS, "s3://bucket/web/a", "s3://key:sec/ret@bucket/web/a?region=us-east-1"),
        (WITH_SECRETS, "s3://bucket/web/a?region=us-east-1", "s3://key:sec/ret@bucket/web/a?region=us-east-1"),
        (WITH_SECRETS, "s3://key:sec/ret@bucket/web/a", "s3://key:sec/ret@bucket/web/a?region=us-east-1"),
        (HTTP, "https://host/web/a.jsonl", "https://host/web/a.jsonl?token=t"),
        (AllowedPlaces(("https://host",)), "https://host/a.jsonl", "https://host/a.jsonl"),
        (AllowedPlaces(("/data", "memory://a")), "memory://a/b", "memory://a/b"),
    ],
)
def test_a_url_lies_in_a_place_segment_by_segment(allowed: AllowedPlaces, source: str, resolved: str) -> None:
    assert allowed.resolve(source) == resolved
    assert allowed.resolve(resolved) == resolved


@pytest.mark.parametrize(
    "source",
    [
        "s3://bucket",
        "s3://bucket/website/a",
        "s3://other/web/a",
        "s3://bucket/%77eb/a",
        "s3://bucket//web/a",
        "gs://bucket/web/a",
        "S3://bucket/web/a",
        "s3://bucket/web/../books",
        "s3://bucket/web/./a",
        "s3://bucket/web/%2e%2e/books",
        "s3://bucket/web/.%2E/books",
        "s3://bucket/web/%252e%252e/books",
        "s3://bucket/web/..%2fbooks",
        "s3://bucket/web/..%5cbooks",
        "s3://bucket/web/..\\books",
        "s3://bucket/web/.\t./books",
        "s3://bucket/web/a\0",
        "s3://bucket/web/%00",
        "s3://bucket/web/%" + "25" * 9 + "2e%2e",
        "s3://bucket/web/a?endpoint_override=evil.example&scheme=http",
        "s3://bucket/web/a?region=us-east-1",
        "s3://other:keys@bucket/web/a",
        "s3://bucket@evil/web/a",
        "zip://bucket/web/a",
        "zip://a.jsonl::s3://bucket/web/a.zip",
        "simplecache::s3://bucket/web/a",
        "s3://bucket/web/a::https://evil.example/b",
        "file:///bucket/web/a",
        "/bucket/web/a",
        "bucket/web/a",
    ],
)
def test_what_only_seems_to_lie_in_a_place_is_refused(source: str) -> None:
    with pytest.raises(SourceForbidden, match="ingest_from"):
        WEB.resolve(source)
    with pytest.raises(SourceForbidden):
        find_shards(source, WEB)


@pytest.mark.parametrize(
    "source",
    [
        "https://host/web/a?token=other",
        "https://host/web/a?token=t&x=/../",
        "https://host@evil.example/web/a",
        "https://host:80/web/a",
        "http://host/web/a",
        "https://host/web/..;/a/../../b",
        "https://user:word@host/web/a?token=t",
    ],
)
def test_a_url_of_another_host_user_or_query_is_refused(source: str) -> None:
    with pytest.raises(SourceForbidden):
        HTTP.resolve(source)


def test_a_refusal_tells_no_secrets() -> None:
    with pytest.raises(SourceForbidden) as refused:
        WITH_SECRETS.resolve("s3://mine:word@bucket/books")
    assert not [secret for secret in ("sec/ret", "word", "key") if secret in refused.value.detail]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place, `shards`, beside `secrets`."""
    write_jsonl(tmp_path / "shards/web/a.jsonl", ["mine"])
    write_jsonl(tmp_path / "secrets/a.jsonl", ["secret"])
    return tmp_path


@pytest.mark.parametrize("source", ["shards", "shards/web/a.jsonl", "shards/*/*.jsonl", "shards/x/../web"])
def test_local_sources_in_a_place_are_read(folder: Path, source: str) -> None:
    allowed = AllowedPlaces((str(folder / "shards"),))
    assert allowed.resolve(f"file://{folder}/shards") == str(folder / "shards")
    assert texts_of(find_shards(folder / source, allowed)) == ["mine"]


@pytest.mark.parametrize("source", ["shards", "shards/*/*.jsonl", "shards/**/*.jsonl", "shards/web/link"])
@pytest.mark.parametrize("target", ["secrets", "secrets/a.jsonl"])
def test_no_link_leads_out_of_a_place_whether_it_is_named_walked_or_matched(
    folder: Path, source: str, target: str
) -> None:
    name = "shards/web/link" if source.endswith("link") or target == "secrets" else "shards/web/link.jsonl"
    (folder / name).symlink_to(folder / target)
    allowed = AllowedPlaces((str(folder / "shards"),))
    if source == "shards/*/*.jsonl" and target == "secrets":
        source = "shards/web/*/*.jsonl"
    with pytest.raises(SourceForbidden):
        find_shards(folder / source, allowed)
    if not source.endswith("link"):
        assert "secret" in texts_of(find_shards(folder / source))


def test_a_link_within_a_place_is_followed(folder: Path) -> None:
    write_jsonl(folder / "books/a.jsonl", ["book"])
    (folder / "shards/fr").symlink_to(folder / "books")
    assert texts_of(find_shards(folder / "shards", AllowedPlaces((str(folder),)))) == ["book", "mine"]


def test_a_place_may_itself_be_a_link(folder: Path) -> None:
    (folder / "place").symlink_to(folder / "shards")
    assert texts_of(find_shards(folder / "place", AllowedPlaces((str(folder / "place"),)))) == ["mine"]


def test_a_file_that_becomes_a_link_after_it_was_found_is_not_read(folder: Path) -> None:
    (shard,) = find_shards(folder / "shards", AllowedPlaces((str(folder / "shards"),)))
    (folder / "shards/web/a.jsonl").unlink()
    (folder / "shards/web/a.jsonl").symlink_to(folder / "secrets/a.jsonl")
    for read in READS:
        with pytest.raises(SourceForbidden):
            read(shard)


def test_a_place_in_object_storage_gives_its_query_to_what_lies_below(folder: Path) -> None:
    with s3_server() as endpoint:
        upload(endpoint, "bucket", folder)
        allowed = AllowedPlaces((f"s3://bucket/shards{url_query(endpoint)}",))
        for source in ("s3://bucket/shards", "s3://bucket/shards/*/a.jsonl", "s3://bucket/shards/web/a.jsonl"):
            assert texts_of(find_shards(allowed.resolve(source), allowed)) == ["mine"]
        for source in ("s3://bucket/secrets", "s3://bucket/shards?endpoint_override=127.0.0.1:9&scheme=http"):
            with pytest.raises(SourceForbidden):
                find_shards(source, allowed)


class Redirecting(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; what ends in `moved.jsonl` is at the other host of the server.

    A path with `answer-403` is refused with 403.
    """

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def _answer(self, of_files: Callable[[], None]) -> None:
        if (refused := re.search(r"answer-(\d+)", self.path)) is not None:
            self.send_error(int(refused[1]))
            return
        if not self.path.endswith("moved.jsonl"):
            of_files()
            return
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/secrets/a.jsonl")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    handler = functools.partial(Redirecting, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_query_of_a_url_is_no_wildcard(folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by aiohttp")
    with http_server(folder) as host:
        assert texts_of(find_shards(f"{host}/shards/web/a.jsonl?token=t")) == ["mine"]
        with pytest.raises(UnusableSource, match=rf"there is no file or folder {host}/shards/web/b.jsonl$"):
            find_shards(f"{host}/shards/web/b.jsonl?token=t")


@pytest.mark.parametrize("name", ["answer-{}.jsonl?token=secret", "answer-{}/*.jsonl"])
@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "401 Unauthorized"), (403, "403 Forbidden"), (429, "429 Too Many Requests"), (500, "500 Internal")],
)
def test_a_server_that_refuses_a_file_is_cited(folder: Path, name: str, status: int, said: str) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by aiohttp")
    with http_server(folder) as host:
        with pytest.raises(UnusableSource, match=rf"{host}/answer-{status}\S* cannot be read: .* {said}") as refused:
            find_shards(f"{host}/{name.format(status)}")
        assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_a_server_does_not_have_is_not_there(folder: Path, status: int) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by aiohttp")
    with http_server(folder) as host:
        with pytest.raises(UnusableSource, match=rf"there is no file or folder {host}/answer-{status}.jsonl$"):
            find_shards(f"{host}/answer-{status}.jsonl")
        with pytest.raises(UnusableSource, match=rf"there is no folder {host}/answer-{status}/?$"):
            find_shards(f"{host}/answer-{status}/*.jsonl")


def test_a_shard_that_a_server_refuses_later_is_cited_too(folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by aiohttp")
    with http_server(folder) as host:
        (shard,) = find_shards(f"{host}/shards/web/a.jsonl")
        for read in READS:
            with pytest.raises(UnusableSource, match="the server answered 403 Forbidden"):
                read(replace(shard, url=f"{host}/answer-403.jsonl"))


def test_a_server_that_cannot_be_reached_is_said_to_be_that() -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by aiohttp")
    with pytest.raises(UnusableSource, match=r"127.0.0.1:9/a.jsonl cannot be read: Cannot connect to host"):
        find_shards("http://127.0.0.1:9/a.jsonl")


def test_no_redirect_leads_out_of_a_place(folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by aiohttp")
    with http_server(folder) as host:
        allowed = AllowedPlaces((f"{host}/shards",))
        assert texts_of(find_shards(f"{host}/shards/web/a.jsonl", allowed)) == ["mine"]
        assert texts_of(find_shards(f"{host}/shards/moved.jsonl")) == ["secret"]
        with pytest.raises(SourceForbidden, match="redirects to another address"):
            find_shards(f"{host}/shards/moved.jsonl", allowed)
        (shard,) = find_shards(f"{host}/shards/web/a.jsonl", allowed)
        for read in READS:
            with pytest.raises(SourceForbidden, match="redirects to another address"):
                read(replace(shard, url=f"{host}/shards/moved.jsonl"))
        (folder / "shards/web/a.jsonl").unlink()
        with pytest.raises(UnusableSource):
            texts_of([shard])
