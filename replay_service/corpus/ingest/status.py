"""How an ingest is going: written beside the corpus, so that a service can tell of an ingest in another process."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import structlog

from replay_service.corpus.format.manifest import write_json
from replay_service.errors import ReplayError
from replay_service.progress import duration, seconds_left

STATUS_NAME: Final = "status.json"
MOST_NAMED: Final = 20
WAITING_AFTER_S: Final = 30.0
"""Of silence; then the progress says that nothing moves."""
_SECONDS_BETWEEN: Final = 1.0
_LOOK_EVERY_S: Final = 5.0
_ALIVE_EVERY_S: Final = 10.0
"""Other hosts take an ingest for dead that has not written for a minute."""

IngestState = Literal["running", "finished", "stopped", "failed"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest is; what an earlier one has done counts too.

    Attributes:
        shards_done: shards of which every row is scored.
        num_shards: all of them.
        share_done: the share of the shards' bytes whose rows are scored, in [0, 1]; compressed bytes of compressed
            shards.
        num_rows: rows that this ingest has scored.
        num_tokens: tokens in them.
        num_set_aside: rows of shards that could not be used.
        generation: the latest generation of the corpus; 0 while there is none.
        num_passed_over: files of the source that are no shards.
        passed_over: the names of the first `MOST_NAMED` of them.
        seconds_left: how long the rest takes if it goes on as it went; None before its first rows, and at the end.
        waiting: how long nothing has moved, and why; None while it moves.
    """

    shards_done: int
    num_shards: int
    share_done: float
    num_rows: int
    num_tokens: int
    num_set_aside: int
    generation: int
    num_passed_over: int = 0
    passed_over: list[str] = field(default_factory=list)
    seconds_left: float | None = None
    waiting: str | None = None


OnProgress = Callable[[IngestProgress], None]
WhyWaiting = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """The latest ingest of a corpus.

    Attributes:
        state: `stopped` was asked for; `running` means nothing if the process is gone.
        started_at, updated_at: seconds since 1970.
        host, pid, process: the process; a pid is given again, so `process` is what `identity_of` says of it.
        progress: how far it is.
        problem: what has ended it, when it failed.
    """

    state: IngestState
    started_at: float
    updated_at: float
    host: str
    pid: int
    progress: IngestProgress
    problem: str | None = None
    process: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; on another host, whether it has written within a minute."""
        if self.state != "running":
            return False
        if self.host != socket.gethostname():
            return time.time() - self.updated_at < 60
        identity = identity_of(self.pid)
        return _exists(self.pid) if identity is None else identity == self.process


def identity_of(pid: int) -> str | None:
    """What no other process of this machine has or will have, not even one with the same pid after a restart.

    It is the boot of the machine, and the start of the process in clock ticks since then. None where there is no such
    process, or the system does not tell of it. One that has ended and was not waited for has an identity that no status
    has.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program, in parentheses, may hold anything.
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if state in "ZX" else f"{boot} {numbers[18]}"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_status(folder: Path) -> IngestStatus | None:
    """The status that stands in a corpus's folder; None when there is none that can be read."""
    try:
        content = json.loads((folder / STATUS_NAME).read_text())
        content.pop("share_before", None)  # of earlier versions
        return IngestStatus(**{**content, "progress": IngestProgress(**content["progress"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("status of an ingest cannot be read", corpus=folder.name, problem=str(error))
        return None


def write_begun(folder: Path, pid: int, now: float) -> IngestStatus:
    """The status of an ingest that the process `pid` of this host begins now."""
    nothing = IngestProgress(0, 0, 0.0, 0, 0, 0, 0)
    status = IngestStatus("running", now, now, socket.gethostname(), pid, nothing, process=identity_of(pid))
    write_json(folder / STATUS_NAME, asdict(status))
    return status


def write_stopped(folder: Path, pid: int, now: float) -> None:
    """The process `pid`, which was told to stop, has ended; nothing if it has said itself how it ended."""
    status = read_status(folder)
    if status is not None and status.pid == pid and status.state == "running":
        progress = replace(status.progress, seconds_left=None)
        write_json(folder / STATUS_NAME, asdict(replace(status, state="stopped", updated_at=now, progress=progress)))


@contextmanager
def status_of(
    folder: Path,
    on_progress: OnProgress,
    is_stopped: Callable[[], bool],
    now: Callable[[], float] = time.time,
    why_waiting: WhyWaiting = lambda: None,
    look_every_s: float = _LOOK_EVERY_S,
) -> Iterator[OnProgress]:
    """Keep the status of an ingest up to date; gives what to tell the progress to.

    Args:
        why_waiting: is asked when nothing was told for `WAITING_AFTER_S`; gives None where that is as it should be.
        look_every_s: seconds between two looks whether anything was told.
    """
    status = _Status(folder, on_progress, now)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(look_every_s):
            with contextlib.suppress(OSError):  # the ingest itself meets it too, and says it
                status.look(why_waiting)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield status.tell
    except BaseException as error:
        problem = error.detail if isinstance(error, ReplayError) else f"{type(error).__name__}: {error}"
        ended.set()
        status.end("failed" if isinstance(error, Exception) else "stopped", problem)
        raise
    ended.set()
    status.end("stopped" if is_stopped() else "finished")


class _Status:
    """The status of an ingest of this process, which is told of by it and looked at by another thread."""

    def __init__(self, folder: Path, on_progress: OnProgress, now: Callable[[], float]) -> None:
        self._folder = folder
        self._on_progress = on_progress
        self._now = now
        self._pace = _Pace(now)
        self._told_at = now()
        self._lock = threading.Lock()
        self._status = write_begun(folder, os.getpid(), now())

    def tell(self, progress: IngestProgress) -> None:
        with self._lock:
            now, before = self._now(), self._status
            is_due = now - before.updated_at >= _SECONDS_BETWEEN or progress.generation != before.progress.generation
            progress = replace(progress, seconds_left=self._pace.seconds_left(progress))
            self._told_at = now
            self._keep(progress, is_due)
        self._on_progress(progress)

    def look(self, why_waiting: WhyWaiting) -> None:
        """Say that nothing moves, where that is so, and that the process is alive in any case."""
        idle_s = self._now() - self._told_at
        reason = why_waiting() if idle_s >= WAITING_AFTER_S else None
        with self._lock:
            is_moving = self._now() - self._told_at < WAITING_AFTER_S
            if self._status.state != "running":
                return
            if reason is None or is_moving:
                if self._now() - self._status.updated_at >= _ALIVE_EVERY_S:
                    self._keep(self._status.progress, is_due=True)
                return
            waiting = f"idle {duration(idle_s)}: {reason}"
            self._keep(replace(self._status.progress, waiting=waiting), is_due=True)
        self._on_progress(self._status.progress)

    def end(self, state: IngestState, problem: str | None = None) -> None:
        with self._lock:
            progress = replace(self._status.progress, seconds_left=None, waiting=None)
            self._status = replace(
                self._status, state=state, updated_at=self._now(), problem=problem, progress=progress
            )
            self._write()

    def _keep(self, progress: IngestProgress, is_due: bool) -> None:
        updated_at = self._now() if is_due else self._status.updated_at
        self._status = replace(self._status, progress=progress, updated_at=updated_at)
        if is_due:
            self._write()

    def _write(self) -> None:
        write_json(self._folder / STATUS_NAME, asdict(self._status))


class _Pace:
    """How fast an ingest goes: at its first rows since it began, and later since those, without loading the model."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._began: tuple[float, float] | None = None
        self._first: tuple[float, float] | None = None
        """When the first rows came, and the share that was done then."""

    def seconds_left(self, progress: IngestProgress) -> float | None:
        here = self._now(), progress.share_done
        if not progress.num_rows:  # a look for new shards begins
            self._began, self._first = here, None
            return None
        since, self._first = self._first or self._began, self._first or here
        if since is None:
            return None
        return seconds_left(here[0] - since[0], here[1] - since[1], 1 - here[1])
