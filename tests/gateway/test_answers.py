"""A server answers as its application does, in one process or in several: the same bytes and the same audit."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from replay_service.wire.batches import decode_batch
from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM, CHECKSUM_HEADER, checksum
from tests.gateway.worlds import JSON, bearer, client_on, create_run, losses_of, make_token
from tests.support import make_corpus, running_service

BATCHES, LOSSES = "/v1/runs/tune/batches", "/v1/runs/tune/losses"
AS_JSON, AS_ARROW = {"content-type": "application/json"}, {"content-type": ARROW_STREAM}


@dataclass(frozen=True)
class Asked:
    """A request: the path, the body, and headers beside that of the token."""

    path: str
    body: bytes
    headers: dict[str, str]


def batches(path: str = BATCHES, headers: dict[str, str] | None = None, **fields: object) -> Asked:
    return Asked(path, json.dumps({"step": 0} | fields).encode(), AS_JSON | (headers or {}))


def losses(body: bytes, headers: dict[str, str] | None = None) -> Asked:
    return Asked(LOSSES, body, AS_ARROW | (headers or {}))


def requests(report: bytes) -> dict[str, Asked]:
    """Requests of every kind, in an order in which each finds what it is about."""
    body = batches().body
    return {
        "a new plan": batches(step=1),
        "the same plan again": batches(step=1),
        "a window": batches(num_steps=5),
        "another rank": batches(num_steps=5, rank=1, world_size=2),
        "checked": batches(headers={CHECKSUM_HEADER: checksum(body)}),
        "damaged": batches(headers={CHECKSUM_HEADER: "00000000"}),
        "a rank that is none": batches(rank=2, world_size=2),
        "too many steps": batches(num_steps=100_000),
        "a step too far": batches(step=10**6),
        "a step beyond all": batches(step=2**63 - 1, num_steps=2),
        "no step": batches(step=-1),
        "likeliest tokens that are not stored": batches(topk=True),
        "likeliest tokens that are not stored, of a new plan": batches(step=7, topk=True),
        "text as Arrow": batches(text=True),
        "compressed": batches(compression="zstd"),
        "as JSON": batches(headers=JSON),
        "as nothing there is": batches(headers={"accept": "text/plain"}),
        "no JSON": Asked(BATCHES, b"{", AS_JSON),
        "an unknown field": batches(more=1),
        "a body of another type": Asked(BATCHES, body, {"content-type": "text/plain"}),
        "an unknown run": batches("/v1/runs/nobody/batches"),
        "a run that cannot be": batches("/v1/runs/UPPER/batches"),
        "another's run": batches("/v1/runs/other/batches"),
        "no such path": batches("/v1/runs/tune/batches/0"),
        "another host": batches(headers={"host": "evil.example"}),
        "a report": losses(report),
        "the report again": losses(report),
        "a report, checked": losses(report, {CHECKSUM_HEADER: checksum(report).upper()}),
        "a report, damaged": losses(report, {CHECKSUM_HEADER: "12345678"}),
        "a report, cut": losses(report[:-9]),
        "a report of another type": Asked(LOSSES, report, {"content-type": "text/csv"}),
        "a report of a type that no form sends": Asked(LOSSES, report, {"content-type": "application/vnd.x+json"}),
        "a report without a type": Asked(LOSSES, report, {"content-type": ""}),
        "a report as JSON": Asked(LOSSES, b'{"rows": []}', AS_JSON),
        "a report that is no JSON": Asked(LOSSES, b"[", AS_JSON),
        "a report of what was not planned": Asked(
            LOSSES,
            b'{"rows": [{"step": 0, "rank": 0, "sample_id": 79, "loss_nats": 1.0, "num_tokens": 9, "num_flips": 0}]}',
            AS_JSON,
        ),
    }


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[list[Path]]:
    """Two roots with the same corpus."""
    made = [tmp_path / "server", tmp_path / "application"]
    for root in made:
        make_corpus(root / "corpora")
    yield made


def answers(client: httpx2.Client, headers: dict[str, str]) -> dict[str, tuple[Any, ...]]:
    """What is answered to each request: status, headers and body, but for what the clock says."""
    create_run(client, injection_ratio="1").raise_for_status()
    create_run(client, run="other").raise_for_status()
    # In a fixed order, so that both services have been through the same.
    first = client.post(BATCHES, json={"step": 0})
    rows = losses_of(decode_batch(first.content))
    found = {}
    for name, asked in requests(bytes(encode_losses(rows[:5]))).items():
        response = client.post(asked.path, content=asked.body, headers=headers | asked.headers)
        fields = sorted((key, value) for key, value in response.headers.items() if key not in ("date", "server"))
        found[name] = response.status_code, fields, response.content
    return found


def audited(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kept = ("who", "method", "route", "run", "status")
    return [{name: line.get(name) for name in kept} for line in lines if line["event"] == "audit"]


@pytest.mark.parametrize("scope", [None, "train", "read"])
@pytest.mark.parametrize("options", [[], ["--gateways", "2"]], ids=["one process", "gateways"])
def test_every_request_is_answered_as_the_application_answers_it(
    roots: list[Path], scope: Any, options: list[str]
) -> None:
    server, application = roots
    admin, headers = {}, {}
    if scope is not None:
        admin, headers = bearer(make_token(server, "admin", "chief")), bearer(make_token(server, scope, runs=("tune",)))
        (application / "tokens.toml").write_bytes((server / "tokens.toml").read_bytes())
    with (
        running_service(server, options=options) as (url, _),
        httpx2.Client(base_url=url, headers=admin, timeout=60.0) as client,
    ):
        mine = answers(client, headers)
    with capture_logs() as logs, client_on(application) as test_client:
        test_client.headers.update(admin)
        theirs = answers(test_client, headers)
    for name, answer in theirs.items():
        assert mine[name] == answer, name
    written = [json.loads(line) for line in (server / "serve.log").read_text().splitlines()]
    assert audited(written) == audited(logs)
    if scope is None:
        assert {status for status, *_ in mine.values()} >= {200, 400, 404, 406, 415, 421, 422}, mine
    if scope == "train":
        assert mine["another's run"][0] == 403
    if scope == "read":
        assert {mine[name][0] for name in ("a new plan", "a report")} == {403}
