"""Raw bytes made up at random, at a service of one process and at one of two gateways: both answer alike.

FUZZ_S says how long, in seconds; `-m slow` goes on for ten minutes. A failure names its seed.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.gateway.raw import JSON_TYPE, LAST, all_of, answers_in, connect, request
from tests.gateway.worlds import all_of as everything
from tests.gateway.worlds import batch_of, create_run
from tests.support import make_corpus, running_service

FUZZ_S = float(os.environ.get("FUZZ_S", "20"))
LONG_S = 600.0
MOST_GROWTH_BYTES = 160 << 20
STATUSES = {200, 400, 403, 404, 405, 406, 408, 409, 411, 413, 415, 421, 422, 431, 503}

PATHS = [
    "/healthz",
    "/v1/runs",
    "/v1/runs/tune",
    "/v1/runs/tune/stats",
    "/v1/runs/tune/batches",
    "/v1/runs/tune/losses",
    "/v1/runs/nobody/batches",
    "/v1/corpora/wiki",
    "/nope?a=b",
    "/v1/runs/tune/batches/",
    "//v1/runs",
    "/v1/runs/%74une",
    "/v1/runs/tune%2fbatches",
    "http://127.0.0.1/v1/runs",
    "http://evil.example/v1/runs",
    "*",
]
BODIES = [b"", b"{}", b'{"step": 1}', b'{"step": 1, "rank": 3}', b'{"rows": []}', b"[" * 200, b"\xff\xfe", b"x" * 3000]
FIELDS = [
    JSON_TYPE,
    b"content-type: text/plain",
    b"content-type: application/vnd.apache.arrow.stream",
    b"accept: application/json",
    b"accept: text/html",
    b"host: evil.example",
    b"connection: close",
    b"connection: keep-alive",
    b"connection: Upgrade",
    b"upgrade: h2c",
    b"upgrade: websocket",
    b"expect: 100-continue",
    b"te: trailers",
    b"transfer-encoding: gzip",
    b"transfer-encoding: chunked",
    b"content-length: 3",
    b"content-length: 0",
    b"content-length: -1",
    b"replay-checksum: 00000000",
    b"replay-gateway-secret: x",
    b'replay-gateway-client: ["10.0.0.1", 1, "http"]',
    b"authorization: Bearer rpl_x",
    b"x-forwarded-for: 1.2.3.4 5",
    b"origin: https://evil.example",
    b"cookie: " + b"c" * 5000,
    b"a : b",
    b" folded",
    b"b\xe9: \xe9",
    b"n\x00l: x",
]
METHODS = ["GET", "POST", "POST", "POST", "PUT", "PATCH", "OPTIONS", "CONNECT", "get", "BREW"]


def chunked(random_: random.Random, body: bytes) -> bytes:
    """A body in chunks, with an extension or a trailer now and then."""
    pieces = []
    while body:
        size = random_.randint(1, len(body))
        extension = random_.choice([b"", b"", b";a=b", b';"'])
        pieces.append(b"%x" % size + extension + b"\r\n" + body[:size] + b"\r\n")
        body = body[size:]
    return b"".join([*pieces, b"0\r\n", random_.choice([b"", b"", b"authorization: Bearer x\r\n"]), b"\r\n"])


def made_up(random_: random.Random) -> bytes:
    """One request, right or wrong; what changes a run is not among them."""
    method, path = random_.choice(METHODS), random_.choice(PATHS)
    if method == "PATCH" or (method == "POST" and path.endswith("/v1/runs")):
        path = "/v1/runs/nobody"
    fields = random_.sample(FIELDS, random_.choice([0, 0, 1, 1, 2, 3]))
    body = random_.choice(BODIES)
    way = random_.random()
    if way < 0.3:
        made = request(method, path, *fields, b"transfer-encoding: chunked") + chunked(random_, body)
    elif way < 0.5:
        made = request(method, path, *fields)
    else:
        made = request(method, path, *fields, body=body)
    if random_.random() < 0.15:
        place = random_.randrange(len(made))
        noise = random_.choice([b"", b"\x00", b"\r\n", b"\r", b"\n", b" ", b"\xff", b":", b"0"])
        made = made[:place] + noise + made[place + random_.randint(0, 2) :]
    return made


def statuses(base_url: str, pieces: list[bytes]) -> list[int]:
    """The statuses of all answers, until the server closes the connection."""
    with connect(base_url) as stream:
        with suppress(OSError):
            for piece in pieces:
                stream.sendall(piece)
        with suppress(TimeoutError):
            return [each.status for each in answers_in(all_of(stream))]
    raise AssertionError("the server neither answers nor closes the connection")


def alike(of_one: list[int], of_gateways: list[int]) -> bool:
    """Whether both saw the same requests.

    Where a body or a header is wrong, either that is said or what else is wrong with the request, whichever is found
    first. But both answer as many requests, so they agree on where each ends.
    """
    pairs = zip(of_one, of_gateways, strict=False)
    return len(of_one) == len(of_gateways) and all(a == b or {a, b} & {400, 408, 431} for a, b in pairs)


def rss(pid: int) -> int:
    mine = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (mine, *mine.children(recursive=True)))


@pytest.fixture
def services(tmp_path: Path) -> Iterator[list[tuple[str, int, Path]]]:
    """The address, the process and the root of a service of one process, and of one of two gateways."""
    roots = [tmp_path / "one", tmp_path / "gateways"]
    for root in roots:
        make_corpus(root / "corpora")
        (root / "replay.toml").write_text("io_timeout_s = 1.0\nshutdown_delay_s = 0\n")
    one, several = ([("--config"), str(root / "replay.toml")] for root in roots)
    with (
        running_service(roots[0], options=one) as (first, first_process),
        running_service(roots[1], options=[*several, "--gateways", "2"]) as (second, second_process),
    ):
        for url in (first, second):
            with httpx2.Client(base_url=url, timeout=60) as client:
                create_run(client)
                batch_of(client, 0, 5)
        yield [(first, first_process.pid, roots[0]), (second, second_process.pid, roots[1])]


def said_by(base_url: str) -> list[object]:
    """Everything that the run says of itself."""
    with httpx2.Client(base_url=base_url, timeout=60) as client:
        return everything(client)


def fuzz(services: list[tuple[str, int, Path]], for_s: float) -> None:
    before = [said_by(url) for url, _, _ in services]
    memory = [rss(pid) for _, pid, _ in services]
    first_seed, ends_at, num = random.randrange(10**9), time.monotonic() + for_s, 0
    while time.monotonic() < ends_at:
        seed = first_seed + num
        random_ = random.Random(seed)
        pieces = [made_up(random_) for _ in range(random_.randint(1, 4))] + [LAST]
        found = [statuses(url, pieces) for url, _, _ in services]
        assert alike(*found), f"seed {seed}: {found} to {pieces}"
        assert set(found[0]) <= STATUSES, f"seed {seed}: {found[0]} to {pieces}"
        num += 1
    for (url, pid, root), then, run in zip(services, memory, before, strict=True):
        assert said_by(url) == run
        assert rss(pid) - then < MOST_GROWTH_BYTES
        errors = list(map(json.loads, (root / "serve.log").read_text().splitlines()))
        assert next((line for line in errors if line["level"] == "error"), None) is None
    print(f"{num} exchanges")


def test_raw_bytes_are_answered_alike_by_one_process_and_by_gateways(services: list[tuple[str, int, Path]]) -> None:
    fuzz(services, FUZZ_S)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_raw_bytes_for_ten_minutes(services: list[tuple[str, int, Path]]) -> None:
    fuzz(services, LONG_S)
