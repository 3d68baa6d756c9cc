"""An ingest as a job: the command line runs one, and the service starts one as a process of its own.

`python -m replay_service.corpus.ingest.job` reads the settings as JSON from standard input, so that what is secret in a
URL stands in no list of processes.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.driver import follow, ingest
from replay_service.corpus.ingest.settings import IngestJob, IngestSettings
from replay_service.corpus.ingest.status import OnProgress
from replay_service.errors import ReplayError
from replay_service.ray_session import start_ray


def run_job(settings: IngestSettings, poll_s: float | None, on_progress: OnProgress = lambda _: None) -> Manifest:
    """Ingest, and with `poll_s` look for new shards every so many seconds; the first SIGTERM or SIGINT stops it.

    Raises what `ingest` raises.
    """
    with stop_signals() as stop:
        start_ray()
        if poll_s is None:
            return ingest(settings, on_progress, stop.is_set)
        return follow(settings, lambda: not stop.wait(poll_s), on_progress, stop.is_set)


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one does what it does elsewhere."""
    stop = threading.Event()
    usual = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def ask_to_stop(_number: int, _frame: object) -> None:
        print("stopping; what is scored is kept", file=sys.stderr)
        stop.set()
        bring_back()

    def bring_back() -> None:
        for each, handler in usual.items():
            signal.signal(each, handler)

    for each in usual:
        signal.signal(each, ask_to_stop)
    try:
        yield stop
    finally:
        bring_back()


def main() -> None:
    try:
        job = IngestJob.from_json(sys.stdin.read())
        run_job(job.settings, job.poll_s)
    except ReplayError as error:
        sys.exit(f"{error.title}: {error.detail}")


if __name__ == "__main__":
    main()
