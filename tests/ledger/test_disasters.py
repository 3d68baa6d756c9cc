import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import SQLAlchemyError

from replay_service.corpus.reading.reader import Corpus
from replay_service.errors import ReplayError
from replay_service.ledger.audit import verify
from replay_service.ledger.journal import Journal
from replay_service.ledger.owner import RunOwner
from replay_service.ledger.records import Entry
from replay_service.sampling.events import Planned
from tests.gateway.worlds import all_of, ask, batch_of, client_on, create_run, report
from tests.gateway.worlds import losses_of as losses_of_batch
from tests.ledger.worlds import (
    bytes_of,
    ids_of,
    image_of,
    losses_of,
    open_journal,
    owner_of,
    read_state,
    record_of,
)
from tests.sampling.worlds import same_plan
from tests.support import make_corpus

AHEAD = 4096
PAGE = 4096

TIMES = ("2026-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2038-01-19T03:14:08Z", "1999-12-31T23:59:59Z")


def next_step(owner: RunOwner) -> int:
    return read_state(owner, lambda state: state.next_step)


def train(owner: RunOwner, num_steps: int) -> list[Planned]:
    """Plan further steps and report the losses of each, but of every third step."""
    plans = owner.window(next_step(owner), num_steps, AHEAD).plans
    for plan in plans:
        if plan.step % 3:
            owner.report(losses_of(plan.step, ids_of(plan), num_flips=plan.step % 5))
    return plans


def assert_goes_on(journal: Journal, corpus: Corpus, owner: RunOwner) -> None:
    """The run plans and takes reports, its journal verifies, and whoever opens it finds the same state."""
    train(owner, 5)
    verdict = verify(journal, journal.run("tuning"))
    assert verdict.holds, verdict
    assert bytes_of(owner_of(journal, corpus)) == bytes_of(owner)


def facts(entry: Entry) -> tuple[object, ...]:
    """All that an entry says, as something that can be compared."""
    rows = getattr(entry.event, "rows", None)
    return entry.seq, entry.attempt, type(entry.event), entry.event.step, None if rows is None else rows.tobytes()


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def almost_full(disk: Path, room_bytes: int) -> Iterator[None]:
    """The disk has room for `room_bytes` more, and as before afterwards."""
    ballast = disk / "ballast"
    usage = shutil.disk_usage(disk)
    ballast.write_bytes(bytes(usage.free - room_bytes))
    yield
    ballast.unlink()


def train_until_it_fails(owner: RunOwner, at_once: int) -> dict[str, object]:
    """What the state was before the first request that failed."""
    for _ in range(2000):
        before = image_of(owner)
        try:
            owner.window(next_step(owner), at_once, AHEAD)
        except (SQLAlchemyError, ReplayError):
            return before
    raise AssertionError("the disk did not fill up")


@pytest.mark.parametrize(("room_bytes", "at_once"), [(0, 1), (0, 200), (100 * PAGE, 1), (100 * PAGE, 500)])
def test_a_commit_for_which_there_is_no_room_changes_nothing(
    small_disk: Path, corpus: Corpus, room_bytes: int, at_once: int
) -> None:
    with open_journal(small_disk / "ledger.db") as journal:
        journal.create_run(record_of())
        owner = owner_of(journal, corpus)
        train(owner, 20)
        with almost_full(small_disk, room_bytes):
            before = train_until_it_fails(owner, at_once)
            assert image_of(owner) == before
            written = [facts(entry) for entry in journal.entries("tuning")]
        assert [facts(entry) for entry in journal.entries("tuning")] == written
        assert image_of(owner) == before
        assert_goes_on(journal, corpus, owner)
    with open_journal(small_disk / "ledger.db") as journal:
        assert_goes_on(journal, corpus, owner_of(journal, corpus))


def test_a_report_for_which_there_is_no_room_can_be_sent_again(small_disk: Path, corpus: Corpus) -> None:
    with open_journal(small_disk / "ledger.db") as journal:
        journal.create_run(record_of())
        owner = owner_of(journal, corpus)
        plans = owner.window(0, 600, AHEAD).plans
        reports = [losses_of(plan.step, ids_of(plan)) for plan in plans]
        with almost_full(small_disk, 0):
            refused = next(rows for rows in reports if not acknowledged(owner, rows))
        assert owner.report(refused).accepted == len(refused)
        assert_goes_on(journal, corpus, owner)


def acknowledged(owner: RunOwner, rows: np.ndarray) -> bool:
    try:
        owner.report(rows)
    except (SQLAlchemyError, ReplayError):
        return False
    return True


def test_the_service_says_that_the_disk_is_full_and_goes_on_when_it_is_not(small_disk: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora")
    with client_on(tmp_path, database_url=f"sqlite:///{small_disk / 'journal.sqlite'}") as client:
        create_run(client)
        first = batch_of(client, 0, 4)
        with almost_full(small_disk, 0):
            answers = (ask(client, step=step) for step in range(4, 2000))
            refusal = next(answer for answer in answers if answer.status_code != 200)
            assert refusal.status_code >= 500
            assert refusal.headers["content-type"] == "application/problem+json"
            before = all_of(client)
            assert report(client, losses_of_batch(first)).status_code >= 500
            assert all_of(client) == before
        assert report(client, losses_of_batch(first)).json()["accepted"] == len(first)
        assert ask(client, step=before[0]["next_step"]).status_code == 200


# A write-ahead log whose end was never written


@pytest.fixture
def promised(tmp_path: Path, corpus: Corpus) -> Iterator[tuple[Path, list[tuple[object, ...]], list[Planned]]]:
    """A journal's files as a process that is killed leaves them, what stands in it, and the plans that it gave."""
    with open_journal(tmp_path / "ledger.db") as journal:
        journal.create_run(record_of())
    with open_journal(tmp_path / "ledger.db") as journal:
        plans = train(owner_of(journal, corpus), 30)
        written = [facts(entry) for entry in journal.entries("tuning")]
        (tmp_path / "left").mkdir()
        for file in tmp_path.glob("ledger.db*"):
            shutil.copy(file, tmp_path / "left" / file.name)
    yield tmp_path / "left" / "ledger.db", written, plans


def cut(num_bytes: int) -> Callable[[bytes], bytes]:
    return lambda wal: wal[:-num_bytes]


def zeroed(num_bytes: int) -> Callable[[bytes], bytes]:
    """A torn page: the file has its length, but its last bytes never reached the disk."""
    return lambda wal: wal[:-num_bytes] + bytes(num_bytes)


def halved(wal: bytes) -> bytes:
    return wal[: len(wal) // 2]


def emptied(_: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [cut(1), cut(512), cut(PAGE + 24), cut(50_000), halved, emptied, zeroed(8), zeroed(2048), zeroed(20_000)],
    ids=["1", "512", "a frame", "50,000", "half", "all", "8 torn", "half a page torn", "some pages torn"],
)
def test_of_a_torn_log_a_prefix_stands_and_the_run_goes_on(
    promised: tuple[Path, list[tuple[object, ...]], list[Planned]],
    corpus: Corpus,
    damage: Callable[[bytes], bytes],
) -> None:
    path, written, plans = promised
    wal = path.with_name(path.name + "-wal")
    wal.write_bytes(damage(wal.read_bytes()))
    with open_journal(path) as journal:
        left = [facts(entry) for entry in journal.entries("tuning")]
        assert left == written[: len(left)]
        assert len(left) < len(written)
        owner = owner_of(journal, corpus)
        assert all(map(same_plan, journal.planned("tuning", 0, 30), plans))
        assert_goes_on(journal, corpus, owner)


def test_files_that_a_killed_process_left_hold_everything(
    promised: tuple[Path, list[tuple[object, ...]], list[Planned]], corpus: Corpus
) -> None:
    path, written, _ = promised
    with open_journal(path) as journal:
        assert [facts(entry) for entry in journal.entries("tuning")] == written
        assert_goes_on(journal, corpus, owner_of(journal, corpus))


# A clock that jumps


def jumping(times: tuple[str, ...] = TIMES) -> Callable[[], str]:
    clock = itertools.cycle(times)
    return lambda: next(clock)


def steady() -> str:
    return TIMES[0]


def set_clock(client: TestClient, now: Callable[[], str]) -> None:
    client.app.state.service = replace(client.app.state.service, now=now)  # type: ignore[attr-defined]


TOLD_TIMES = ("created_at", "last_plan_at", "last_report_at", "report_delay")


def session(root: Path, clock: Callable[[], str]) -> tuple[list[object], list[tuple[object, ...]]]:
    """What a job with a restart in the middle is told, but for times; and its journal."""
    make_corpus(root / "corpora")
    told: list[object] = []
    for part in range(2):
        with client_on(root) as client:
            set_clock(client, clock)
            create_run(client)
            for step in range(20 * part, 20 * part + 20):
                batch = batch_of(client, step)
                told.append(ask(client, step=step).content)
                told.append(report(client, losses_of_batch(batch, num_flips=step % 4)).json())
            told += [{name: value for name, value in each.items() if name not in TOLD_TIMES} for each in all_of(client)]
    with open_journal(root / "journal.sqlite") as journal:
        return told, [facts(entry) for entry in journal.entries("tune")]


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    assert session(tmp_path / "jumping", jumping()) == session(tmp_path / "steady", steady)


def test_the_clock_tells_when_a_run_was_created_and_nothing_else_does(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpora")
    with client_on(tmp_path) as client:
        set_clock(client, jumping(TIMES[1:]))
        first, second = (create_run(client, run=name).json() for name in ("one", "two"))
        assert (first["created_at"], second["created_at"]) == TIMES[1:3]
        assert create_run(client, run="one").json() == first


def test_an_owner_does_not_look_at_the_clock_of_the_machine(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    back = itertools.count(2_000_000_000, -100_000)
    for name in ("steady", "jumping"):
        with open_journal(tmp_path / name) as journal:
            journal.create_run(record_of())
            owner = owner_of(journal, corpus)
            train(owner, 10)
            train(owner_of(journal, corpus), 10)
            states.append(bytes_of(owner_of(journal, corpus)))
        monkeypatch.setattr(time, "time", lambda: float(next(back)))
    assert states[0] == states[1]
