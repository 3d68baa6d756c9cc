"""What is answered beside the application is what the application would have answered."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from replay_service.gateway.app import create_app
from replay_service.gateway.express import MOST_BODY_BYTES, Express
from replay_service.gateway.middleware.beside import Reply, Waiting, Work
from replay_service.gateway.wire.arrow import ARROW_STREAM, CHECKSUM_HEADER, checksum, decode_batch, encode_losses
from replay_service.settings import load_settings
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
    made = [tmp_path / "beside", tmp_path / "application"]
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
def test_every_request_is_answered_as_the_application_answers_it(roots: list[Path], scope: Any) -> None:
    beside, application = roots
    admin, headers = {}, {}
    if scope is not None:
        admin, headers = bearer(make_token(beside, "admin", "chief")), bearer(make_token(beside, scope, runs=("tune",)))
        (application / "tokens.toml").write_bytes((beside / "tokens.toml").read_bytes())
    with running_service(beside) as (url, _), httpx2.Client(base_url=url, headers=admin) as client:
        mine = answers(client, headers)
    with capture_logs() as logs, client_on(application) as test_client:
        test_client.headers.update(admin)
        theirs = answers(test_client, headers)
    for name, answer in theirs.items():
        assert mine[name] == answer, name
    written = [json.loads(line) for line in (beside / "serve.log").read_text().splitlines()]
    assert audited(written) == audited(logs)
    if scope is None:
        assert {status for status, *_ in mine.values()} >= {200, 400, 404, 406, 415, 421, 422}
    if scope == "train":
        assert mine["another's run"][0] == 403
    if scope == "read":
        assert {mine[name][0] for name in ("a new plan", "a report")} == {403}


@dataclass
class Served:
    """An application that has started, with a run, and what answers beside it in this process."""

    application: TestClient
    express: Express

    def ask(self, asked: Asked, *more: tuple[bytes, bytes]) -> Reply | Work | Waiting | None:
        headers = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
        length = b"%d" % len(asked.body)
        scope = {
            "type": "http",
            "method": "POST",
            "path": asked.path,
            "headers": [(b"host", b"127.0.0.1"), (b"content-length", length), *headers, *more],
            "client": ("127.0.0.1", 1),
        }
        admitted = self.express.admit(scope)
        return None if admitted is None else self.express.answer(admitted, asked.body)

    def worked(self, asked: Asked) -> Reply:
        """The answer to a request that takes work."""
        work = self.ask(asked)
        assert isinstance(work, Work)
        reply = work.make()
        work.done()
        return reply


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    make_corpus(tmp_path / "corpora")
    settings = load_settings(root=tmp_path, max_concurrent_requests=1)
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        create_run(client, injection_ratio="1").raise_for_status()
        yield Served(client, Express(app, settings))


def test_new_plans_and_reports_are_work_for_a_thread_and_plans_at_hand_are_answered_at_once(served: Served) -> None:
    made = served.worked(batches())
    again = served.ask(batches())
    assert made.status == 200
    assert isinstance(again, Reply)
    assert again.body == made.body
    report = bytes(encode_losses(losses_of(decode_batch(b"".join(made.body)))))
    assert json.loads(b"".join(served.worked(losses(report)).body)) == {"accepted": 8, "duplicate": 0, "rejected": 0}


def test_work_has_a_place_among_the_requests_in_progress_and_what_is_at_hand_needs_none(served: Served) -> None:
    served.worked(batches())
    work = served.ask(batches(step=1))
    assert isinstance(work, Work)
    assert served.ask(batches(step=2)) is None, "the application says that there is no place"
    assert isinstance(served.ask(batches()), Reply)
    work.done()
    assert isinstance(served.ask(batches(step=2)), Work)


def test_ranks_that_ask_for_what_is_being_planned_wait_for_that(served: Served) -> None:
    first = served.ask(batches(rank=0, world_size=2))
    assert isinstance(first, Work)
    second = batches(rank=1, world_size=2)
    waiting, asked_again = served.ask(second), list[Reply | Work | Waiting | None]()
    assert isinstance(waiting, list)
    waiting.append(lambda: asked_again.append(served.ask(second)))
    mine = first.make()
    assert not asked_again
    first.done()
    (theirs,) = asked_again
    assert isinstance(theirs, Reply)
    rows = [decode_batch(b"".join(each.body)).sample_id.tolist() for each in (mine, theirs)]
    together = served.ask(batches())
    assert isinstance(together, Reply)
    assert sorted(rows[0] + rows[1]) == sorted(decode_batch(b"".join(together.body)).sample_id.tolist())


def test_who_waited_for_plans_that_were_refused_tries_it_and_hears_why(served: Served) -> None:
    """Of step 10 ** 6 nothing is planned. They try it side by side, so that a slow refusal does not come in turns."""
    far = batches(step=10**6)
    first = served.ask(far)
    waiting, asked_again = served.ask(far), list[Reply | Work | Waiting | None]()
    assert isinstance(first, Work)
    assert isinstance(waiting, list)
    for _ in range(2):
        waiting.append(lambda: asked_again.append(served.ask(far)))
    assert first.make().status == 422
    first.done()
    second, third = asked_again
    assert isinstance(second, Work)
    assert third is None, "there is one place here, and it does not wait for the second"
    assert second.make().status == 422
    second.done()
    assert isinstance(served.ask(far), Work)


@pytest.mark.parametrize(
    "header",
    [
        (b"transfer-encoding", b"chunked"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"content-type", b"application/json"),
        (b"host", b"127.0.0.1"),
    ],
)
def test_what_is_not_plain_is_left_to_the_application(served: Served, header: tuple[bytes, bytes]) -> None:
    served.worked(batches())
    assert served.ask(batches(), header) is None


def test_a_long_report_is_left_to_the_application(served: Served) -> None:
    assert served.ask(losses(bytes(MOST_BODY_BYTES + 1))) is None


def test_what_nobody_foresaw_is_a_problem_and_gives_its_place_back(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patched:
        patched.setattr("replay_service.gateway.express.batch_made", fail)
        reply = served.worked(batches())
    assert reply.status == 500
    assert b"internal-error" in b"".join(reply.body)
    assert b"secret" not in b"".join(reply.body)
    assert served.worked(batches()).status == 200
