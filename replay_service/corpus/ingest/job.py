"""An ingest as a job: the command line runs one, and the service starts one as a process of its own.

`python -m replay_service.corpus.ingest.job` reads the settings as JSON from standard input, so that what is secret in a
URL stands in no list of processes.
"""

import sys
import time

from replay_service.corpus.format.manifest import Manifest
from replay_service.corpus.ingest.driver import follow, ingest
from replay_service.corpus.ingest.settings import IngestJob, IngestSettings
from replay_service.corpus.ingest.status import OnProgress
from replay_service.errors import ReplayError
from replay_service.ray_session import start_ray
from replay_service.stopping import Stopped, stop_signals


def run_job(settings: IngestSettings, poll_s: float | None, on_progress: OnProgress = lambda _: None) -> Manifest:
    """Ingest, and with `poll_s` look for new shards every so many seconds.

    Raises:
        Stopped: after SIGTERM or SIGINT; what is scored is kept.
        What `ingest` raises.
    """
    with stop_signals() as is_stopped:
        start_ray()
        if poll_s is None:
            return ingest(settings, on_progress, is_stopped)

        def wait() -> bool:
            time.sleep(poll_s)
            return True

        return follow(settings, wait, on_progress, is_stopped)


def main() -> None:
    try:
        job = IngestJob.from_json(sys.stdin.read())
        run_job(job.settings, job.poll_s)
    except ReplayError as error:
        sys.exit(f"{error.title}: {error.detail}")
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    main()
