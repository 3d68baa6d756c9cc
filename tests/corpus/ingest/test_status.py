import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from replay_service.corpus.ingest.status import (
    STATUS_NAME,
    IngestProgress,
    IngestStatus,
    identity_of,
    read_status,
    status_of,
    write_begun,
    write_stopped,
)
from replay_service.corpus.shards.sources import find_shards
from replay_service.errors import EmptyCorpus, ReplayError

NOTHING = IngestProgress(0, 4, 0.0, 0, 0, 0, 0)


class Clock:
    """A clock that stands still until it is put forward, seconds."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def written(folder: Path) -> IngestStatus:
    status = read_status(folder)
    assert status is not None
    return status


def test_there_is_no_status_before_the_first_ingest(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "nothing") is None


def test_an_ingest_is_running_and_then_finished(tmp_path: Path) -> None:
    clock, told = Clock(), list[IngestProgress]()
    with status_of(tmp_path, told.append, lambda: False, clock) as tell:
        status = written(tmp_path)
        assert (status.state, status.started_at, status.updated_at) == ("running", 1000.0, 1000.0)
        assert (status.host, status.pid, status.problem) == (socket.gethostname(), os.getpid(), None)
        assert status.is_alive
        clock.now = 1000.5
        last = replace(NOTHING, shards_done=4, share_done=1.0)
        tell(last)
        clock.now = 1007.0
    status = written(tmp_path)
    assert (status.state, status.started_at, status.updated_at) == ("finished", 1000.0, 1007.0)
    assert (status.progress, told) == (last, [last])
    assert not status.is_alive


def test_progress_is_told_always_but_written_once_a_second(tmp_path: Path) -> None:
    clock, told = Clock(), list[IngestProgress]()
    with status_of(tmp_path, told.append, lambda: False, clock) as tell:
        seen = []
        for num_rows in range(40):
            clock.now += 0.125
            tell(replace(NOTHING, num_rows=num_rows))
            seen.append(written(tmp_path).progress.num_rows)
    assert [each.num_rows for each in told] == list(range(40))
    assert seen == [0] * 7 + [7] * 8 + [15] * 8 + [23] * 8 + [31] * 8 + [39]
    assert written(tmp_path).progress.num_rows == 39


def test_a_new_generation_is_written_at_once(tmp_path: Path) -> None:
    clock = Clock()
    with status_of(tmp_path, lambda _: None, lambda: False, clock) as tell:
        for generation in (1, 1, 2):
            tell(replace(NOTHING, num_rows=10 * generation, generation=generation))
            assert written(tmp_path).progress.generation == generation
        tell(replace(NOTHING, num_rows=99, generation=2))
        assert written(tmp_path).progress.num_rows == 20


def test_an_ingest_that_was_asked_to_stop_is_stopped(tmp_path: Path) -> None:
    with status_of(tmp_path, lambda _: None, lambda: True, Clock()):
        pass
    assert (written(tmp_path).state, written(tmp_path).problem) == ("stopped", None)


@pytest.mark.parametrize(
    ("error", "state", "problem"),
    [
        (EmptyCorpus("the shards hold no text"), "failed", "the shards hold no text"),
        (RuntimeError("no space left"), "failed", "RuntimeError: no space left"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt: "),
    ],
)
def test_what_ended_an_ingest_is_written_down(tmp_path: Path, error: BaseException, state: str, problem: str) -> None:
    clock = Clock()
    with pytest.raises(type(error)), status_of(tmp_path, lambda _: None, lambda: False, clock) as tell:
        tell(replace(NOTHING, num_rows=5))
        clock.now = 1003.0
        raise error
    status = written(tmp_path)
    assert (status.state, status.problem, status.updated_at) == (state, problem, 1003.0)
    assert status.progress.num_rows == 5
    assert not status.is_alive


def test_a_source_that_fails_is_named_without_its_secrets(tmp_path: Path) -> None:
    source = "nosuch://me:swordfish@host/data?token=swordfish"
    with pytest.raises(ReplayError), status_of(tmp_path, lambda _: None, lambda: False, Clock()):
        find_shards(source)
    assert "nosuch://host/data" in str(written(tmp_path).problem)
    assert "swordfish" not in (tmp_path / STATUS_NAME).read_text()


def test_a_new_ingest_begins_a_new_status(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), status_of(tmp_path, lambda _: None, lambda: False, Clock()):
        raise RuntimeError
    with status_of(tmp_path, lambda _: None, lambda: False, Clock()):
        assert (written(tmp_path).state, written(tmp_path).problem) == ("running", None)


def running(pid: int | None = None, **changes: object) -> IngestStatus:
    pid = os.getpid() if pid is None else pid
    status = IngestStatus("running", 1000.0, 1000.0, socket.gethostname(), pid, NOTHING, process=identity_of(pid))
    return replace(status, **changes)  # type: ignore[arg-type]


def test_a_process_that_is_gone_runs_no_ingest() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        status = running(pid=process.pid)
        assert status.is_alive
        process.communicate(b"\n")
    assert running().is_alive
    assert not status.is_alive


def test_a_process_that_has_ended_and_is_not_waited_for_runs_no_ingest() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        status = running(pid=process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not status.is_alive


def test_a_process_of_somebody_else_is_alive() -> None:
    assert running(pid=1).is_alive


@pytest.mark.parametrize("process", [None, "another-boot 1", "ended"])
def test_another_process_that_was_given_the_pid_runs_no_ingest(process: str | None) -> None:
    """As after a restart of a container, where the pids of an earlier life are given again."""
    assert not running(process=process).is_alive


def test_each_process_has_an_identity_of_its_own_that_stays() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identities = {identity_of(process.pid), identity_of(os.getpid()), identity_of(1)}
        assert identity_of(process.pid) in identities
        process.communicate(b"\n")
    assert len(identities) == 3
    assert identity_of(process.pid) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": "running", "progress": {}}'])
def test_a_status_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS_NAME).write_text(text)
    with capture_logs() as logs:
        assert read_status(tmp_path) is None
    assert [each["event"] for each in logs] == ["status of an ingest cannot be read"]


def test_a_process_that_was_stopped_before_it_could_say_so_is_stopped(tmp_path: Path) -> None:
    write_begun(tmp_path, os.getpid(), 1000.0)
    write_stopped(tmp_path, 1, 1001.0)
    assert written(tmp_path).state == "running"
    write_stopped(tmp_path, os.getpid(), 1002.0)
    assert (written(tmp_path).state, written(tmp_path).updated_at) == ("stopped", 1002.0)


def test_what_a_process_has_said_of_its_end_stands(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), status_of(tmp_path, lambda _: None, lambda: False, Clock()):
        raise RuntimeError
    write_stopped(tmp_path, os.getpid(), 2000.0)
    assert written(tmp_path).state == "failed"


def test_on_another_host_whoever_has_written_within_a_minute_is_alive() -> None:
    assert running(host="elsewhere", pid=1, updated_at=time.time() - 5).is_alive
    assert not running(host="elsewhere", pid=1, updated_at=time.time() - 90).is_alive


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_an_ingest_that_has_ended_is_not_alive(state: str) -> None:
    assert not running(state=state).is_alive


def test_the_time_left_is_told_as_soon_as_rows_come_and_forgets_how_long_the_model_took(tmp_path: Path) -> None:
    clock, told = Clock(), list[IngestProgress]()
    with status_of(tmp_path, told.append, lambda: False, clock) as tell:
        for seconds, num_rows, share_done in [(0, 0, 0.8), (600, 10, 0.85), (5, 20, 0.875), (5, 30, 0.9), (5, 80, 1.0)]:
            clock.now += seconds
            tell(replace(NOTHING, num_rows=num_rows, share_done=share_done))
            assert written(tmp_path).progress.seconds_left == told[-1].seconds_left
    assert [each.seconds_left for each in told] == [
        None,
        pytest.approx(1800),
        pytest.approx(25),
        pytest.approx(20),
        None,
    ]


def test_a_later_look_for_shards_has_a_pace_of_its_own(tmp_path: Path) -> None:
    clock, told = Clock(), list[IngestProgress]()
    with status_of(tmp_path, told.append, lambda: False, clock) as tell:
        for seconds, num_rows, share_done in [(0, 10, 0.5), (1, 20, 1.0), (3600, 0, 0.0), (9, 10, 0.25), (5, 20, 0.5)]:
            clock.now += seconds
            tell(replace(NOTHING, num_rows=num_rows, share_done=share_done))
    assert [each.seconds_left for each in told] == [None, None, None, pytest.approx(27), pytest.approx(10)]


def test_an_ingest_that_was_stopped_has_no_time_left(tmp_path: Path) -> None:
    clock = Clock()
    with status_of(tmp_path, lambda _: None, lambda: True, clock) as tell:
        for share_done in (0.25, 0.5):
            clock.now += 5
            tell(replace(NOTHING, num_rows=10, share_done=share_done))
        assert written(tmp_path).progress.seconds_left == pytest.approx(10.0)
    assert (written(tmp_path).state, written(tmp_path).progress.seconds_left) == ("stopped", None)


def test_a_status_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    write_begun(tmp_path, os.getpid(), 1000.0)
    content = json.loads((tmp_path / STATUS_NAME).read_text())
    del content["progress"]["seconds_left"]
    (tmp_path / STATUS_NAME).write_text(json.dumps(content | {"share_before": 0.5}))
    assert written(tmp_path).progress == IngestProgress(0, 0, 0.0, 0, 0, 0, 0)


def test_a_reader_sees_a_whole_status_at_any_time(tmp_path: Path) -> None:
    with status_of(tmp_path, lambda _: None, lambda: False, Clock()) as tell:
        tell(replace(NOTHING, generation=1))
        assert [path.name for path in tmp_path.iterdir()] == [STATUS_NAME]
        assert json.loads((tmp_path / STATUS_NAME).read_text())["state"] == "running"


def comes_about(is_so: Callable[[], bool]) -> bool:
    """Whether something comes about while the clock stands still; a thread looks at the status."""
    for _ in range(1200):
        if is_so():
            return True
        time.sleep(0.05)
    return False


def test_when_nothing_moves_it_is_said_how_long_and_why_until_it_moves(tmp_path: Path) -> None:
    clock, told = Clock(), list[IngestProgress]()
    with status_of(tmp_path, told.append, lambda: False, clock, lambda: "0 of 4 CPUs free", 0.01) as tell:
        tell(replace(NOTHING, num_rows=7))
        clock.now += 29.0
        time.sleep(0.05)  # some looks; however many, they say nothing
        assert [each.waiting for each in told] == [None]
        clock.now += 16.0
        assert comes_about(lambda: told[-1].waiting == "idle 45 s: 0 of 4 CPUs free")
        assert told[-1].num_rows == 7
        assert comes_about(lambda: written(tmp_path).progress.waiting is not None)
        tell(replace(NOTHING, num_rows=8))
        assert told[-1].waiting is None
        clock.now += 31.0
        assert comes_about(lambda: told[-1].waiting is not None)
    assert written(tmp_path).progress.waiting is None


def test_an_ingest_that_rests_on_purpose_is_alive_and_not_idle(tmp_path: Path) -> None:
    """Other hosts see that it is alive by the time of its status alone."""
    clock, told = Clock(), list[IngestProgress]()
    with status_of(tmp_path, told.append, lambda: False, clock, lambda: None, 0.01) as tell:
        tell(NOTHING)
        clock.now += 300.0
        assert comes_about(lambda: written(tmp_path).updated_at == 1300.0)
    assert told == [NOTHING]
