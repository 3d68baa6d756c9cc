"""Connections of a real server, and of one that is called without a socket."""

import asyncio
import socket
from pathlib import Path

import httpx2
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from replay_service.gateway.connections import ConnectionLimits, bounded_by
from tests.gateway.recorded_transport import Recorded
from tests.support import make_corpus, running_service


class Answers:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        await self.may_answer.wait()
        await PlainTextResponse("done")(scope, receive, send)


async def pipelined(num_requests: int) -> tuple[list[bool], list[int]]:
    """Whether the connection is read from, and how many requests the application has got: with all requests pipelined
    and the first not answered, and when they were answered."""
    app, recorded = Answers(), Recorded()
    config = uvicorn.Config(app, http=bounded_by(ConnectionLimits(8, 60.0)), lifespan="off", log_config=None)
    config.load()
    connection = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
    connection.connection_made(recorded)
    requests = [f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for number in range(num_requests)]
    connection.data_received(b"".join(requests))
    await asyncio.sleep(0)
    are_read, nums = [recorded.is_read], [len(app.paths)]
    app.may_answer.set()
    while len(app.paths) < num_requests:
        await asyncio.sleep(0)
    connection.connection_lost(None)
    return [*are_read, recorded.is_read], [*nums, len(app.paths)]


def test_nothing_more_is_read_while_pipelined_requests_wait() -> None:
    assert asyncio.run(pipelined(500)) == ([False, True], [1, 500])


def test_a_batch_comes_in_one_piece_with_its_head(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora")
    with running_service(tmp_path) as (url, _):
        settings = {"run": "tune", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.5"}
        httpx2.post(f"{url}/v1/runs", json=settings).raise_for_status()
        body = b'{"step": 0}'
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as stream:
            head = "POST /v1/runs/tune/batches HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            first = stream.recv(1 << 16)
    answer, _, arrow = first.partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(arrow) == int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])


async def refusals(request: bytes, limits: ConnectionLimits) -> list[tuple[str, int]]:
    """What a connection tells of the answers that it gives by itself."""
    told: list[tuple[str, int]] = []
    http = bounded_by(limits, on_refusal=lambda reason, status: told.append((reason, status)))
    config = uvicorn.Config(Answers(), http=http, lifespan="off", log_config=None)
    config.load()
    connection = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
    connection.connection_made(Recorded())
    connection.data_received(request)
    while not told:
        await asyncio.sleep(0.001)
    connection.connection_lost(None)
    return told


HEAD_OF = b"GET / HTTP/1.1\r\nHost: a\r\n"
USUAL = ConnectionLimits(8, 60.0)


@pytest.mark.parametrize(
    ("request_", "limits", "told"),
    [
        (b"nonsense\r\n\r\n", USUAL, ("malformed-request", 400)),
        (HEAD_OF + b"A: " + b"a" * 20_000, USUAL, ("head-too-large", 431)),
        (HEAD_OF + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n", USUAL, ("upgrade-refused", 400)),
        (HEAD_OF + b"Content-Length: 9\r\n\r\n", ConnectionLimits(8, 0.01), ("request-too-slow", 408)),
        (HEAD_OF + b"\r\n", ConnectionLimits(0, 60.0), ("too-many-connections", 503)),
    ],
)
def test_every_answer_past_the_application_is_told_of(
    request_: bytes, limits: ConnectionLimits, told: tuple[str, int]
) -> None:
    assert asyncio.run(refusals(request_, limits)) == [told]
