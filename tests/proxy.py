"""A TCP proxy that does to a connection what networks do: delay, cut, reset, trickle, damage, and silence, for good or
for a while."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["none", "delay", "cut", "reset", "silence", "damage", "trickle"]
KINDS: tuple[Kind, ...] = ("delay", "cut", "reset", "silence", "damage", "trickle")

_TRICKLE_S = 0.05
_DELAY_S = 0.1


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the bytes of one connection that go one way, from byte `after` on.

    delay: they come a little later. cut: the connection is closed. reset: it is aborted. silence: nothing more comes,
    and the connection stays open. damage: byte `after` gets another value. trickle: one byte at a time comes, slowly.
    """

    kind: Kind
    towards: Literal["client", "server"] = "client"
    after: int = 0
    damage: int = 1
    """What the damaged byte is XORed with, 1 to 255."""


NO_FAULT = Fault("none")


def random_faults(seed: int, share: float, most_bytes: int) -> Callable[[], Fault]:
    """A fault for each connection in turn: none for most, else one of any kind within the first bytes of either way."""
    rng = np.random.default_rng(seed)

    def draw() -> Fault:
        if rng.random() >= share:
            return NO_FAULT
        # Half of the places are in the first bytes, where the heads of requests and answers stand.
        most = most_bytes if rng.random() < 0.5 else 400
        towards: Literal["client", "server"] = "client" if rng.random() < 0.5 else "server"
        return Fault(KINDS[rng.integers(len(KINDS))], towards, int(rng.integers(most)), int(rng.integers(1, 256)))

    return draw


@dataclass(slots=True)
class FaultyProxy:
    """Listens on loopback and passes connections on to a server, each with the fault that `next_fault` gives it."""

    upstream: tuple[str, int]
    next_fault: Callable[[], Fault]
    faults: list[Fault] = field(default_factory=list)
    """Those of the connections so far."""
    _listener: socket.socket = field(default_factory=socket.socket)
    _sockets: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _speaks: threading.Event = field(default_factory=threading.Event)

    def fall_silent(self) -> None:
        """Hold back whatever comes on any connection, and open connections all the same."""
        self._speaks.clear()

    def speak(self) -> None:
        """Pass on what was held back, and all that comes."""
        self._speaks.set()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FaultyProxy":
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._speaks.set()
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._speaks.set()
        for each in [self._listener, *self._sockets]:
            _end(each)
        for thread in self._threads:
            thread.join(timeout=20)
            assert not thread.is_alive()
        for each in [self._listener, *self._sockets]:
            each.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.upstream)
            except OSError:
                continue
            fault = self.next_fault()
            self.faults.append(fault)
            self._sockets += [client, server]
            for source, sink, towards in ((client, server, "server"), (server, client, "client")):
                self._start(self._pass_on, source, sink, fault if fault.towards == towards else NO_FAULT)

    def _pass_on(self, source: socket.socket, sink: socket.socket, fault: Fault) -> None:
        num_passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._speaks.wait()
                before = max(0, fault.after - num_passed)
                if fault.kind == "none" or len(data) <= before:
                    sink.sendall(data)
                else:
                    sink.sendall(data[:before])
                    if not self._do(fault, data[before:], sink, is_first=num_passed <= fault.after):
                        return
                num_passed += len(data)
        _end(source)
        _end(sink)

    def _do(self, fault: Fault, data: bytes, sink: socket.socket, is_first: bool) -> bool:
        """Pass on bytes that the fault concerns; False if it ended or silenced the connection."""
        if fault.kind == "silence":
            return False
        if fault.kind == "cut":
            _end(sink)
            return False
        if fault.kind == "reset":
            # A socket that another thread reads from stays open until that thread wakes up.
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sink.shutdown(socket.SHUT_RD)
            sink.close()
            return False
        if fault.kind == "damage" and is_first:
            data = bytes([data[0] ^ fault.damage]) + data[1:]
        elif fault.kind == "delay" and is_first:
            self._stopped.wait(_DELAY_S)
        elif fault.kind == "trickle":
            for byte in data:
                sink.sendall(bytes([byte]))
                if self._stopped.wait(_TRICKLE_S):
                    return False
            return True
        sink.sendall(data)
        return True


def _end(connection: socket.socket) -> None:
    """Close both ways of a connection; whoever waits for it wakes up."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
