"""The supervisor of a node, as an object of this process, over a real service."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay_service import __version__
from replay_service.ray_service.supervisor import ServeCommand, Supervisor
from tests.support import free_port


def eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within ten minutes")


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def command(tmp_path: Path) -> ServeCommand:
    config = tmp_path / "replay.toml"
    config.write_text(f'root = "{tmp_path}"\nport = {free_port()}\nshutdown_delay_s = 0\n')
    return ServeCommand(str(config), {})


@pytest.fixture
def supervisor(command: ServeCommand) -> Iterator[Supervisor]:
    started = Supervisor(command, "node 1")
    yield started
    started.stop()


def test_the_service_is_started_again_when_it_ends_and_not_after_a_stop(supervisor: Supervisor) -> None:
    eventually(lambda: supervisor.status().is_ready)
    first = supervisor.status()
    assert (first.node, first.version, first.problem) == ("node 1", __version__, "")
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: supervisor.status().is_ready and supervisor.status().pid != first.pid)
    second = supervisor.status().pid
    assert second is not None
    supervisor.stop()
    assert not exists(second)
    assert supervisor.status().pid is None
    assert not supervisor.status().is_ready


def test_another_command_file_or_version_is_another_one(
    command: ServeCommand, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert supervisor.is_same(command)
    assert not supervisor.is_same(ServeCommand(command.config, {"gateways": 2}))
    config = Path(str(command.config))
    before = config.read_text()
    config.write_text(before + "gateways = 2\n")
    assert not supervisor.is_same(command)
    config.write_text(before)
    assert supervisor.is_same(command)
    monkeypatch.setattr("replay_service.ray_service.supervisor.installed_version", lambda: "9.9")
    assert not supervisor.is_same(command)


def test_what_keeps_the_service_from_starting_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = ServeCommand(None, {"root": str(tmp_path / "file"), "port": free_port()})
    supervisor = Supervisor(command, "node 1")
    try:
        eventually(lambda: "the process has ended with exit code" in supervisor.status().problem)
        assert not supervisor.status().is_ready
    finally:
        supervisor.stop()


def test_options_are_those_of_serve() -> None:
    command = ServeCommand("/etc/replay.toml", {"tls_key": "/k", "allow_unauthenticated": True, "port": 1})
    expected = ["--config", "/etc/replay.toml", "--tls-key", "/k", "--allow-unauthenticated", "--port", "1"]
    assert command.options() == expected
    assert ServeCommand(None, {"allow_unauthenticated": False}).options() == ["--no-allow-unauthenticated"]


def test_the_service_ends_with_its_supervisor(command: ServeCommand) -> None:
    code = (
        "import sys, time\n"
        "from replay_service.ray_service.supervisor import ServeCommand, Supervisor\n"
        "supervisor = Supervisor(ServeCommand(sys.argv[1], {}), 'node')\n"
        "while not supervisor.status().is_ready: time.sleep(0.1)\n"
        "print(supervisor.status().pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    arguments = [sys.executable, "-c", code, str(command.config)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    eventually(lambda: not exists(pid))
