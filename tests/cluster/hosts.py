"""Hosts as network namespaces of one Linux machine: each has an address of its own, and can be cut off from any other.

Root alone may make them. A host that is cut off answers nothing at all, as one without power: packets to it leave, and
reach nobody.
"""

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

_SWITCH: Final = "replay-switch"
"""The namespace of the bridge that joins the hosts: this machine's firewall has no say in it."""
NETWORK: Final = "10.77.0.0/24"
_NOBODY: Final = "02:00:00:00:ff:ff"
"""A hardware address that no host has."""


@dataclass(slots=True, eq=False)
class Host:
    name: str
    address: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"replay-{self.name}"

    def start(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start a program on the host; what it says goes to the end of `log`."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *map(str, command)],
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self.processes.append(process)
        return process

    def all_processes(self) -> list[psutil.Process]:
        """What was started on the host, and what that has started."""
        found = []
        for each in self.processes:
            with suppress(psutil.NoSuchProcess):
                parent = psutil.Process(each.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    def signal_all(self, number: signal.Signals) -> None:
        for each in self.all_processes():
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def lose(self) -> None:
        """End the host at once, as a loss of power would: nobody hears of it from its network."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")
        self.signal_all(signal.SIGKILL)
        for each in self.processes:
            each.wait(timeout=60)
        self.processes.clear()

    def come_back(self) -> None:
        """Give a lost host its network again."""
        _bring_up(self)

    def cut_off_from(self, *others: "Host") -> None:
        """Let nothing pass between this host and the others, in silence."""
        for one, other in [(self, each) for each in others] + [(each, self) for each in others]:
            _ip(
                "-n",
                one.namespace,
                "neigh",
                "replace",
                other.address,
                "lladdr",
                _NOBODY,
                "dev",
                "eth0",
                "nud",
                "permanent",
            )

    def rejoin(self, *others: "Host") -> None:
        for one, other in [(self, each) for each in others] + [(each, self) for each in others]:
            _ip("-n", one.namespace, "neigh", "del", other.address, "dev", "eth0")


@contextmanager
def network_of(*names: str) -> Iterator[dict[str, Host]]:
    """Hosts on one network; all that runs on them is ended afterwards."""
    hosts = {name: Host(name, f"{NETWORK.rpartition('.')[0]}.{number}") for number, name in enumerate(names, 2)}
    _remove(hosts.values())
    try:
        _ip("netns", "add", _SWITCH)
        _ip("-n", _SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip("-n", _SWITCH, "link", "set", "bridge", "up")
        for number, host in enumerate(hosts.values()):
            _add(host, f"host{number}")
        yield hosts
    finally:
        for host in hosts.values():
            host.signal_all(signal.SIGCONT)
            host.signal_all(signal.SIGKILL)
            for each in host.processes:
                each.wait(timeout=60)
        _remove(hosts.values())


def can_make_hosts() -> bool:
    """Whether this user may make network namespaces here."""
    name = "replay-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


def _add(host: Host, port: str) -> None:
    """Make a host, whose network is at a port of the switch."""
    _ip("netns", "add", host.namespace)
    _ip("-n", _SWITCH, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("-n", _SWITCH, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "link", "set", "lo", "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    _bring_up(host)


def _bring_up(host: Host) -> None:
    """Join the network; programs find out their own address by the way to others, which leads nowhere."""
    _ip("-n", host.namespace, "link", "set", "eth0", "up")
    _ip("-n", host.namespace, "route", "replace", "default", "dev", "eth0")


def _remove(hosts: Iterable[Host]) -> None:
    """End what runs on hosts that there are, and remove them with their network."""
    for namespace in [*(host.namespace for host in hosts), _SWITCH]:
        left = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        for pid in left.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
