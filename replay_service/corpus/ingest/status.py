"""How an ingest is going: written beside the corpus, so that a service can tell of an ingest in another process."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import structlog

from replay_service.corpus.format.manifest import write_json
from replay_service.errors import ReplayError
from replay_service.progress import seconds_left

STATUS_NAME: Final = "status.json"
MOST_NAMED: Final = 20
_SECONDS_BETWEEN: Final = 1.0

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


OnProgress = Callable[[IngestProgress], None]


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
    folder: Path, on_progress: OnProgress, is_stopped: Callable[[], bool], now: Callable[[], float] = time.time
) -> Iterator[OnProgress]:
    """Keep the status of an ingest up to date; gives what to tell the progress to."""
    status, pace = write_begun(folder, os.getpid(), now()), _Pace(now)

    def end(state: IngestState, problem: str | None = None) -> None:
        progress = replace(status.progress, seconds_left=None)
        ended = replace(status, state=state, updated_at=now(), problem=problem, progress=progress)
        write_json(folder / STATUS_NAME, asdict(ended))

    def tell(progress: IngestProgress) -> None:
        nonlocal status
        is_due = now() - status.updated_at >= _SECONDS_BETWEEN or progress.generation != status.progress.generation
        progress = replace(progress, seconds_left=pace.seconds_left(progress))
        status = replace(status, progress=progress, updated_at=now() if is_due else status.updated_at)
        if is_due:
            write_json(folder / STATUS_NAME, asdict(status))
        on_progress(progress)

    try:
        yield tell
    except BaseException as error:
        problem = error.detail if isinstance(error, ReplayError) else f"{type(error).__name__}: {error}"
        end("failed" if isinstance(error, Exception) else "stopped", problem)
        raise
    end("stopped" if is_stopped() else "finished")


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
