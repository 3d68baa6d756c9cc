"""HTTP as bytes: what a peer that keeps to no rule sends, and what comes back."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

JSON_TYPE = b"content-type: application/json"


@dataclass(frozen=True)
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes


def request(method: str, path: str, *fields: bytes, body: bytes | None = None) -> bytes:
    """A request of HTTP/1.1; with a body, of its length."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"host: 127.0.0.1", *fields]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


LAST = request("GET", "/healthz", b"connection: close")


def connect(base_url: str, timeout_s: float = 60.0) -> socket.socket:
    parts = urlsplit(base_url)
    return socket.create_connection((parts.hostname, parts.port), timeout=timeout_s)


def exchange(base_url: str, *pieces: bytes) -> list[Answer]:
    """Send bytes, one piece after the other, and read answers until the server closes the connection."""
    with connect(base_url) as stream:
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                stream.sendall(piece)
        return list(answers_in(all_of(stream)))


def all_of(stream: socket.socket) -> bytes:
    received = bytearray()
    with suppress(ConnectionResetError):
        while part := stream.recv(1 << 16):
            received += part
    return bytes(received)


def answers_in(received: bytes) -> Iterable[Answer]:
    """The answers in what a server has sent, all of them whole, and none of them to HEAD."""
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        status = int(first.split()[1])
        if status == 100:
            continue
        num_bytes = int(fields["content-length"])
        assert len(received) >= num_bytes, "an answer was cut short"
        yield Answer(status, fields, received[:num_bytes])
        received = received[num_bytes:]
