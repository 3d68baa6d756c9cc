"""Ray of this machine: who can reach it, whose signals count, what is said when it cannot be used, and its errors."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from ray.exceptions import ActorDiedError, RayTaskError

from replay_service.errors import CorpusError, ReplayError
from replay_service.ray_session import error_within
from tests.support import free_port

STARTED = """
import json, signal, psutil, ray
from replay_service.ray_session import start_ray

def stop(*_):
    pass

signal.signal(signal.SIGTERM, stop)
start_ray()

@ray.remote(num_cpus=0.1)
class Actor:
    def is_there(self):
        return True

actor = Actor.remote()
assert ray.get(actor.is_there.remote())
me = psutil.Process()
family = [me, *me.children(recursive=True)]
listening = {c.laddr.ip for each in family for c in each.net_connections() if c.status == psutil.CONN_LISTEN}
print(json.dumps({"listening": sorted(listening), "is_ours": signal.getsignal(signal.SIGTERM) is stop}))
"""

REFUSED = """
import os, sys
from replay_service.errors import RayUnavailable
from replay_service.ray_session import start_ray
for setting in sys.argv[1:]:
    name, _, value = setting.partition("=")
    os.environ[name] = value
    try:
        start_ray()
    except RayUnavailable as error:
        print(error.detail)
    del os.environ[name]
"""


def printed(code: str, *arguments: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_ray_of_this_machine_listens_on_loopback_and_leaves_signals_alone() -> None:
    told = json.loads(printed(STARTED)[-1])
    assert told["listening"]
    assert set(told["listening"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert told["is_ours"]


def test_a_ray_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    gone = f"127.0.0.1:{free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        addresses = [f"RAY_ADDRESS={each}" for each in (gone, f"ray://{gone}", "nonsense", mute)]
        dead, dead_too, nonsense, no_ray, too_long = printed(REFUSED, *addresses, f"TMPDIR={folder}")
    for each in (dead, dead_too):
        assert "refused" in each
        assert f"{gone}, or set RAY_ADDRESS=local to use this machine alone" in each
    assert f"nothing at {mute} answered as Ray does within 5 s; see to the cluster at {mute}" in no_ray
    assert "the cluster at nonsense" in nonsense
    assert "TMPDIR or RAY_TMPDIR to a folder with a short path" in too_long


def of_a_task(error: Exception) -> Exception:
    """As Ray raises what a task has raised: of the class of both."""
    raised: Exception = RayTaskError("a_task", "Traceback: many lines", error).as_instanceof_cause()
    return raised


def test_an_error_of_ours_is_found_as_it_was_raised() -> None:
    ours = CorpusError("the model is none")
    assert error_within(ours, ReplayError) is ours
    of_task = of_a_task(ours)
    assert isinstance(of_task, CorpusError)
    assert error_within(of_task, ReplayError) is ours


def test_it_is_found_however_deep_it_is() -> None:
    ours = CorpusError("the model is none")
    outer = RuntimeError("a stage has failed")
    outer.__cause__ = of_a_task(ours)
    assert error_within(of_a_task(outer), ReplayError) is ours
    several = RuntimeError("workers have failed")
    several.worker_failures = {0: ValueError("no"), 1: of_a_task(ours)}  # type: ignore[attr-defined]
    assert error_within(several, ReplayError) is ours


def test_where_there_is_none_nothing_is_found() -> None:
    assert error_within(of_a_task(ValueError("no")), ReplayError) is None
    assert error_within(ActorDiedError(), ReplayError) is None
