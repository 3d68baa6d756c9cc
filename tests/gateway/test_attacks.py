"""Peers that do not play by the rules, at a real server of one process and at one of several gateways."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from replay_service.gateway.connections import MAX_HEAD_BYTES
from tests.gateway.raw import JSON_TYPE, LAST, all_of, answers_in, connect, exchange, request
from tests.gateway.worlds import batch_of, create_run
from tests.support import make_corpus, running_service

SEVERAL = ["--gateways", "2"]
MOST_GROWTH_BYTES = 96 << 20


@dataclass(frozen=True)
class Target:
    """A real server with the run `tune`, of which steps 0 to 4 are planned, and no tokens."""

    url: str
    process: "subprocess.Popen[bytes]"
    root: Path

    def rss(self) -> int:
        """Memory of all its processes, bytes."""
        mine = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (mine, *mine.children(recursive=True)))

    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(f"{self.url}/v1/runs/tune", timeout=60).json()
        return found

    def owner_sockets(self) -> list[str]:
        """Where its owner listens for gateways; nowhere where there are none."""
        children = psutil.Process(self.process.pid).children()
        return [
            str(each.laddr)
            for child in children
            for each in child.net_connections("unix")
            if str(each.laddr).endswith("owner.sock") and "owner" in child.cmdline()
        ][:1]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "serve.log").read_text().splitlines()]


@pytest.fixture(scope="module", params=[[], SEVERAL], ids=["one process", "gateways"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("attacked")
    make_corpus(root / "corpora")
    (root / "replay.toml").write_text("io_timeout_s = 4.0\nshutdown_delay_s = 0\n")
    options = ["--config", str(root / "replay.toml"), *request.param]
    with running_service(root, options=options) as (url, process):
        with httpx2.Client(base_url=url, timeout=60.0) as client:
            create_run(client)
            batch_of(client, 0, 5)
        yield Target(url, process, root)


@pytest.fixture(autouse=True)
def unharmed(target: Target) -> Iterator[None]:
    """Whatever a test sends: the run stays as it was, the server answers, and nothing failed that nobody foresaw."""
    before = target.run()
    yield
    assert httpx2.get(f"{target.url}/readyz", timeout=60).status_code == 200
    assert target.run() == before
    assert [line for line in target.log() if "unexpected" in line["event"] or "Exception" in line["event"]] == []


SMUGGLED = request("POST", "/v1/runs/tune/close", JSON_TYPE, body=b"{}")


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/tune/losses", "/v1/runs/tune/batches", "/healthz", "/nope"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
def test_an_upgrade_is_refused_and_nothing_after_it_is_read(target: Target, path: str, protocol: bytes) -> None:
    upgrade = request("POST", path, JSON_TYPE, b"connection: Upgrade", b"upgrade: " + protocol, body=SMUGGLED)
    for pieces in ([upgrade, SMUGGLED], [upgrade[: -len(SMUGGLED)], SMUGGLED, SMUGGLED]):
        (answer,) = exchange(target.url, *pieces)
        assert (answer.status, json.loads(answer.body)["type"].rpartition(":")[2]) == (400, "upgrade-refused")
        assert answer.fields["connection"] == "close"
    for _ in range(4):  # each gateway's links go on to carry one request each
        assert target.run()["closed"] is False


def test_what_stands_before_an_upgrade_is_answered_first(target: Target) -> None:
    upgrade = request("GET", "/healthz", b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AA")
    answers = exchange(target.url, request("GET", "/healthz") + request("GET", "/v1/runs/tune") + upgrade + SMUGGLED)
    assert [each.status for each in answers] == [200, 200, 400]


@pytest.mark.parametrize(
    ("sent", "slug"),
    [
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", "upgrade-refused"),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example\r\n\r\n", "malformed-request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed-request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "malformed-request"),
        (b"GET / HTTP/9.9\r\n\r\n", "malformed-request"),
        (b"GET /\x00 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", "malformed-request"),
        (request("POST", "/v1/runs", b"transfer-encoding: chunked", body=b"0\r\n\r\n"), "malformed-request"),
        (request("POST", "/v1/runs", b"content-length: 5", body=b"{}"), "malformed-request"),
        (request("POST", "/v1/runs", b"content-length: +2") + b"{}", "malformed-request"),
        (request("POST", "/v1/runs", b"transfer-encoding: chunked, identity") + b"{}", "malformed-request"),
    ],
)
def test_what_is_no_request_of_http_1_1_is_refused(target: Target, sent: bytes, slug: str) -> None:
    answers = exchange(target.url, sent + SMUGGLED)
    assert [each.status for each in answers] == [400]
    assert json.loads(answers[0].body)["type"].endswith(slug)


def test_what_is_malformed_after_good_requests_is_refused_after_them(target: Target) -> None:
    answers = exchange(target.url, 3 * request("GET", "/v1/runs/tune") + b"\x00\r\n\r\n" + SMUGGLED)
    assert [each.status for each in answers] == [200, 200, 200, 400]


def flood(target: Target, beginning: bytes, line: bytes, num_bytes: int = 48 << 20) -> bytes:
    """Send a line again and again, as long as it is taken; what was answered. Memory must not grow with it."""
    before = target.rss()
    piece = line * max(1, (1 << 18) // len(line))
    with connect(target.url) as stream:
        with suppress(OSError):
            stream.sendall(beginning)
            for _ in range(num_bytes // len(piece)):
                stream.sendall(piece)
        grown = target.rss() - before
        assert grown < MOST_GROWTH_BYTES, f"{grown >> 20} MiB"
        received = b""
        with suppress(OSError):
            received = all_of(stream)
        return received


CHUNKED = request("POST", "/v1/runs", JSON_TYPE, b"transfer-encoding: chunked")


@pytest.mark.parametrize(
    ("beginning", "line"),
    [
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n", b"a: b\r\n"),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\na: ", b"b"),
        (b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n", b"a"),
        (b"GET /", b"a"),
        (b"", b"\r\n"),
        (CHUNKED + b"2;", b"extension=1;"),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"trailer: x\r\n"),
        (CHUNKED + b"0", b"0"),
    ],
    ids=["headers", "a value", "a name", "a path", "empty lines", "extensions", "trailers", "a chunk's size"],
)
def test_a_head_without_an_end_is_refused_and_takes_no_memory(target: Target, beginning: bytes, line: bytes) -> None:
    received = flood(target, beginning, line)
    # The refusal may be lost: who goes on sending to a connection that was closed has it reset.
    assert [each.status for each in answers_in(received)] in ([431], [400], [])


def test_a_head_as_large_as_is_allowed_is_read_and_a_larger_one_refused(target: Target) -> None:
    for num_bytes, status in ((MAX_HEAD_BYTES - 512, 200), (MAX_HEAD_BYTES + 2048, 431)):
        answers = exchange(target.url, request("GET", "/healthz", b"connection: close", b"a: " + b"b" * num_bytes))
        assert [each.status for each in answers] == [status]


@pytest.mark.parametrize("path", ["/openapi.json", "/metrics"], ids=["its own answers", "the owner's answers"])
def test_pipelined_requests_wait_outside_while_nobody_reads_their_answers(target: Target, path: str) -> None:
    received = flood(target, b"", request("GET", path), 24 << 20)
    assert all(each.status in (200, 503) for each in answers_in(received[: received.rfind(b"HTTP/1.1")]))


def test_a_request_a_byte_at_a_time_among_others_is_answered(target: Target) -> None:
    sent = request("GET", "/v1/runs/tune") + request("POST", "/v1/runs/tune/batches", JSON_TYPE, body=b'{"step": 1}')
    answers = exchange(target.url, *[bytes([each]) for each in sent + LAST])
    assert [each.status for each in answers] == [200, 200, 200]


def test_a_trailer_field_is_no_header(target: Target) -> None:
    body = b"2\r\n{}\r\n0\r\norigin: https://evil.example\r\nreplay-checksum: 00000000\r\n\r\n"
    answers = exchange(target.url, CHUNKED + body + LAST)
    assert [each.status for each in answers] == [422, 200], "else it were 403 or 400"


def test_nobody_says_who_they_are_or_what_they_speak(target: Target) -> None:
    forged = [b"x-forwarded-for: 10.9.9.9 b c", b"x-forwarded-proto: https", b"replay-gateway-client: [1]"]
    forged += [b"replay-gateway-secret: x", b"forwarded: for=10.9.9.9"]
    num_lines = len(target.log())
    answers = exchange(target.url, request("PATCH", "/v1/runs/tune", JSON_TYPE, *forged, body=b'{"floor": 0.1}') + LAST)
    assert [each.status for each in answers] == [200, 200]
    audited = [line["client"] for line in target.log()[num_lines:] if line["event"] == "audit"]
    assert audited == ["127.0.0.1"]


def test_the_owner_hears_its_gateways_alone(target: Target) -> None:
    for path in target.owner_sockets():
        for fields in ([], [b"replay-gateway-secret: x"], [b"replay-gateway-client: " + b'["127.0.0.1", 1, "http"]']):
            for where in ("/plans", "/v1/runs", "/v1/runs/tune/close"):
                with socket.socket(socket.AF_UNIX) as stream:
                    stream.connect(path)
                    stream.sendall(request("POST", where, JSON_TYPE, *fields, body=b'{"run": "tune"}'))
                    (answer,) = answers_in(all_of(stream))
                assert answer.status == 403
