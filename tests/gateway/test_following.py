"""Server-sent events of a run: from one process and through gateways, with watchers that come, go and do not read."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from replay_service.gateway.following import told
from replay_service.gateway.routes.events import info_of
from replay_service.ledger.event_log import LoggedEvent
from replay_service.ledger.records import Entry
from replay_service.sampling.events import Configured, JournalEvent, Rewound, Trained
from replay_service.sampling.run_config import RunConfig
from replay_service.sampling.trained import TrainedCounts
from tests.gateway.raw import connect, request
from tests.gateway.worlds import (
    assert_problem,
    batch_of,
    bearer,
    client_on,
    create_run,
    losses_of,
    make_token,
    report,
)
from tests.ledger.worlds import open_journal, write
from tests.sampling.worlds import plan_by_hand, report_of
from tests.support import make_corpus, processes_of, running_service

PATH = "/v1/runs/tune/events"
STREAM = {"accept": "text/event-stream"}
SETTINGS = {"shutdown_delay_s": 0.1, "max_watchers": 3, "io_timeout_s": 5.0, "max_concurrent_requests": 2}


@dataclass(frozen=True)
class Heard:
    """One server-sent event."""

    id: int
    kind: str
    data: dict[str, Any]


def heard_in(lines: Iterator[str]) -> Iterator[Heard]:
    """The events in the lines of a stream; comments are passed over."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":") or line.startswith("retry"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Heard(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


@contextmanager
def watching(
    client: httpx2.Client, headers: dict[str, str] | None = None, **query: object
) -> Iterator[Iterator[Heard]]:
    params: Any = query
    with client.stream("GET", PATH, params=params, headers=STREAM | (headers or {})) as answer:
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        yield heard_in(answer.iter_lines())


def config_file(root: Path, **settings: object) -> Path:
    path = root / "replay.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in (SETTINGS | settings).items()))
    return path


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "gateways"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    root = tmp_path_factory.mktemp("service")
    make_corpus(root / "corpora")
    options = ["--config", config_file(root), "--gateways", str(request.param)]
    with running_service(root, options=options) as found:
        yield found


@pytest.fixture
def client(service: tuple[str, "subprocess.Popen[bytes]"]) -> Iterator[httpx2.Client]:
    """A client of a service with a new run."""
    with httpx2.Client(base_url=service[0], timeout=30.0) as client:
        create_run(client).raise_for_status()
        yield client
        client.post("/v1/runs/tune/close", json={})
        client.delete("/v1/runs/tune")


def await_free(client: httpx2.Client) -> None:
    """Wait until the service has noticed that watchers have left."""
    for _ in range(200):
        with client.stream("GET", PATH, headers=STREAM) as answer:
            if answer.status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the service takes no watcher")


def test_events_come_as_they_are_committed(client: httpx2.Client) -> None:
    with watching(client) as events:
        report(client, losses_of(batch_of(client, 0, 4)))
        progress = next(events)
        assert progress.kind == "progress" and progress.data["num_plans"] > 0 and progress.data["first_step"] == 0
        client.patch("/v1/runs/tune", json={"injection_ratio": "0.5"}).raise_for_status()
        changed = next(each for each in events if each.kind != "progress")
    (listed,) = client.get(PATH, params={"kind": "configured"}).json()["events"]
    assert changed == Heard(listed["seq"], "configured", listed)


def test_a_watcher_goes_on_after_what_it_has_heard(client: httpx2.Client) -> None:
    for ratio in ("0.1", "0.2", "0.4", "0.5"):
        client.patch("/v1/runs/tune", json={"injection_ratio": ratio}).raise_for_status()
    with watching(client, after=-1) as events:
        first = [next(events) for _ in range(3)]
    assert [(each.id, each.kind) for each in first] == [(0, "created"), (1, "configured"), (2, "configured")]
    with watching(client, {"last-event-id": "2"}, after=-1) as events:
        assert [next(events).id for _ in range(2)] == [3, 4]
    with watching(client, after=2, kind="adjusted,closed") as events:
        client.post("/v1/runs/tune/close", json={}).raise_for_status()
        assert next(events) == Heard(5, "closed", client.get(PATH, params={"after": 4}).json()["events"][0])


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"last-event-id": "-1"}, {}),
        ({"last-event-id": "x"}, {}),
        ({"last-event-id": ""}, {}),
        ({"last-event-id": "9" * 40}, {}),
        ({"last-event-id": "1.5"}, {}),
        ({"last-event-id": "1000"}, {}),
        ({}, {"after": 1000}),
        ({}, {"after": -2}),
        ({}, {"after": 2**63}),
        ({}, {"kind": "everything"}),
        ({}, {"since": 3}),
    ],
)
def test_what_nobody_can_follow_is_refused(
    client: httpx2.Client, headers: dict[str, str], query: dict[str, Any]
) -> None:
    assert_problem(client.get(PATH, headers=STREAM | headers, params=query), 422, "invalid-request")


def test_there_is_nothing_to_follow_of_an_unknown_run(client: httpx2.Client) -> None:
    assert_problem(client.get("/v1/runs/nobody/events", headers=STREAM), 404, "unknown-run")


def test_watchers_have_a_limit_of_their_own(client: httpx2.Client) -> None:
    await_free(client)
    with watching(client), watching(client), watching(client):
        refused = client.get(PATH, headers=STREAM)
        assert "3 callers follow runs already" in assert_problem(refused, 503, "overloaded")["detail"]
        assert refused.headers["retry-after"] == "1"
        # Two requests may be answered at a time, and three watchers are none of them.
        with ThreadPoolExecutor(2) as threads:
            asked = threads.map(lambda _: client.get("/v1/runs/tune").status_code, range(2))
        assert list(asked) == [200, 200]
    await_free(client)


def test_a_stream_ends_with_its_run(client: httpx2.Client) -> None:
    with watching(client) as events:
        client.post("/v1/runs/tune/close", json={}).raise_for_status()
        assert next(events).kind == "closed"
        client.delete("/v1/runs/tune").raise_for_status()
        assert list(events) == []


def test_many_events_come_in_order_and_none_twice(client: httpx2.Client) -> None:
    for step in range(0, 60, 3):
        report(client, losses_of(batch_of(client, step, 3)))
        client.patch("/v1/runs/tune", json={"floor": step / 100}).raise_for_status()
    last = client.get(PATH).json()["as_of"]
    with watching(client, after=-1) as events:
        found = []
        while not found or found[-1].id < last:
            found.append(next(events))
    ids = [each.id for each in found]
    assert ids == sorted(set(ids))
    sums = [each.data for each in found if each.kind == "progress"]
    assert sum(each["num_plans"] for each in sums) == 60
    assert sum(each["rows_reported"] for each in sums) == client.get("/v1/runs/tune/stats").json()["num_reported"]


def test_sigterm_ends_a_stream_and_waits_for_no_watcher(root: Path) -> None:
    for gateways in (1, 2):
        options = ["--config", config_file(root, drain_timeout_s=200), "--gateways", str(gateways)]
        with running_service(root, options=options) as (url, process), httpx2.Client(base_url=url) as client:
            create_run(client)
            with watching(client) as events:
                process.send_signal(signal.SIGTERM)
                assert list(events) == []
            assert process.wait(timeout=60) == 0


def test_an_owner_that_is_lost_ends_the_streams_of_its_gateways(root: Path) -> None:
    options = ["--config", config_file(root), "--gateways", "2"]
    with running_service(root, options=options) as (url, process), httpx2.Client(base_url=url, timeout=60.0) as client:
        create_run(client)
        with watching(client) as events:
            (owner,) = processes_of(process, "owner")
            subprocess.run(["kill", "-9", str(owner)], check=True)
            assert list(events) == []
        process.wait(timeout=60)


def write_large_events(root: Path) -> None:
    """A run whose journal tells of more than a socket's buffers hold."""
    with client_on(root) as client:
        create_run(client).raise_for_status()
    config = RunConfig(global_batch_size=8, injection_ratio="0.3")
    schedules = [
        {"curve": "steps", "points": [(step, f"0.{number:03}") for step in range(1, 1001)]} for number in range(2)
    ]
    changed = [config.changed(schedule=each) for each in schedules]
    with open_journal(root / "journal.sqlite") as journal:
        write(journal, "tune", 1, [Configured(-1, changed[number % 2]) for number in range(600)])


def test_a_watcher_that_never_reads_is_cut_off_by_a_gateway_and_its_owner(root: Path) -> None:
    write_large_events(root)
    options = ["--config", config_file(root, io_timeout_s=1.0, max_watchers=1), "--gateways", "2"]
    with (
        running_service(root, options=options) as (url, _),
        httpx2.Client(base_url=url, timeout=60.0) as client,
        connect(url) as stream,
    ):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        stream.sendall(request("GET", f"{PATH}?after=-1", b"accept: text/event-stream"))
        while "cut off a reader that does not read" not in (root / "serve.log").read_text():
            time.sleep(0.1)
        await_free(client)


def test_a_token_that_is_revoked_ends_its_streams(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admin, reader = bearer(make_token(root, "admin", "chief")), bearer(make_token(root, "read", "reader"))
    options = ["--config", config_file(root)]
    with running_service(root, options=options) as (url, _), httpx2.Client(base_url=url, timeout=60.0) as client:
        client.post(
            "/v1/runs",
            json={"run": "tune", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"},
            headers=admin,
        ).raise_for_status()
        assert client.get(PATH, headers=STREAM).status_code == 401
        with watching(client, reader) as events:
            text = (root / "tokens.toml").read_text()
            kept = "[[token]]".join(each for each in text.split("[[token]]") if '"reader"' not in each)
            (root / "tokens.toml").write_text(kept)
            assert list(events) == []


def entry(seq: int, event: JournalEvent) -> LoggedEvent:
    return LoggedEvent(Entry(seq, 1, event, 1_700_000_000_000 + seq), {})


def test_neighbouring_plans_and_reports_are_summed_up() -> None:
    events: list[JournalEvent] = [
        plan_by_hand(4, [1, 2], [0, 0]),
        plan_by_hand(5, [3], [0]),
        report_of(4, [1, 2]),
        Trained(4, 0, 0, TrainedCounts(8, 2, 80, 20)),
        Configured(5, RunConfig(global_batch_size=8, injection_ratio="0.5")),
        report_of(5, [3]),
        Rewound(3),
        plan_by_hand(4, [1], [0]),
    ]
    found = list(told([entry(seq, event) for seq, event in enumerate(events)], info_of))
    assert [(each.seq, each.kind) for each in found] == [
        (3, "progress"),
        (4, "configured"),
        (5, "progress"),
        (6, "rewound"),
        (7, "progress"),
    ]
    first = found[0].content.model_dump()
    at = first.pop("at")
    assert at is not None and at.endswith("003+00:00")
    assert first == {
        "seq": 3,
        "attempt": 1,
        "first_step": 4,
        "last_step": 5,
        "num_plans": 2,
        "rows_rehearsed": 3,
        "num_reports": 1,
        "rows_reported": 2,
        "num_counts": 1,
    }
    assert list(told([], info_of)) == []
