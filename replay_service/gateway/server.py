"""The server: uvicorn around an application, within the service's limits."""

import contextlib
import ctypes
import gc
import resource
import signal
import socket
import ssl
import sys
import time
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from replay_service.errors import ReplayError
from replay_service.gateway.connections import ConnectionLimits, bounded_by
from replay_service.settings import ServiceSettings


class UnusableCertificate(ReplayError):
    slug, title = "unusable-certificate", "The certificate cannot be used"


SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread may keep the interpreter's lock from the one that reads and writes sockets: a tenth of Python's."""

KEPT_BYTES: Final = 64 << 20
"""Freed memory that the allocator keeps: enough for the batches that are made at one time."""

TRIM_EVERY_S: Final = 30.0
"""How often the rest is given back: freed memory between pieces that are in use, such as slow readers leave behind."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Options of mallopt, in the C library's <malloc.h>."""


class Server(uvicorn.Server):
    """uvicorn, which goes on for a while after it was told to stop.

    Meanwhile it is not ready, so that whoever balances load sends nothing more, answers what comes all the same, and
    closes each connection after its next answer. Then it listens no longer, and finishes what it has begun. Told a
    second time, it does so at once.

    Args:
        state: the application's, of which `is_stopping` is set.
        delay_s: for how long it goes on.
        by_signals: whether SIGTERM and SIGINT tell it to stop, or `stop` alone.
    """

    def __init__(self, config: uvicorn.Config, state: Any, delay_s: float, by_signals: bool = True) -> None:
        super().__init__(config)
        self._state = state
        self._delay_s = delay_s
        self._by_signals = by_signals
        self._stops_at: float | None = None
        self._trimmed_at = time.monotonic()

    def stop(self) -> None:
        """Tell it to stop; any thread may."""
        self._state.is_stopping = True
        self._stops_at = time.monotonic() + self._delay_s

    def stop_at_once(self) -> None:
        """Tell it not to go on for a while first; any thread may."""
        self._state.is_stopping = True
        self._stops_at = time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._by_signals:
            return
        if self._stops_at is None:
            self.stop()
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._stops_at is not None and now >= self._stops_at:
            self.should_exit = True
        if now - self._trimmed_at >= TRIM_EVERY_S:
            self._trimmed_at = now
            _give_back_memory()
        return await super().on_tick(counter)


def serve_application(
    app: Starlette,
    settings: ServiceSettings,
    sockets: list[socket.socket] | None = None,
    **options: Any,
) -> None:
    """Serve an application until SIGTERM or SIGINT, on `sockets` if there are any."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(make_server(app, app.state, settings, settings.shutdown_delay_s, **options), sockets)


def make_server(
    app: ASGIApp,
    state: Any,
    settings: ServiceSettings,
    delay_s: float,
    by_signals: bool = True,
    **options: Any,
) -> Server:
    """The server of an application whose state is `state`.

    Args:
        options: further ones of uvicorn, or others than the service's own.
    """
    limits = ConnectionLimits(settings.max_connections, settings.io_timeout_s)
    own: dict[str, Any] = {
        "loop": "uvloop",
        "http": bounded_by(limits, lambda: state.is_stopping, state.metrics.refused_at_connection),
        "ws": "none",
        "log_config": None,
        "access_log": settings.log_level == "debug",
        "timeout_graceful_shutdown": settings.drain_timeout_s,
        "server_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": ",".join(settings.trusted_proxies),
    }
    return Server(uvicorn.Config(app, **own | options), state, delay_s, by_signals)


def run(server: Server, sockets: list[socket.socket] | None = None) -> None:
    """Let a server serve until it is told to stop; a process that stops for that has not failed."""
    _allow_connections(server.config.http.limits.most)  # type: ignore[union-attr]
    _keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Modules and routes stay for good; the collector need not look through them again and again.
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _allow_connections(most: int) -> None:
    """Let this process have as many files open as that takes, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_freed_memory() -> None:
    """Let the allocator keep what one batch has freed for the next one, where the C library is glibc.

    By default it gives large pieces back to the system. To get a fresh page costs more than to fill it. All threads
    share what is kept: otherwise each would keep as much, and nobody gives that back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def _give_back_memory() -> None:
    """Give freed memory back to the system, but for KEPT_BYTES, where the C library is glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(KEPT_BYTES))


def encryption(settings: ServiceSettings) -> dict[str, Any]:
    """The arguments of uvicorn for TLS; none without TLS.

    Raises:
        UnusableCertificate: when its files cannot be used.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise UnusableCertificate(
            f"{certificate} and {key} are no PEM certificate and its key without a password: {error.strerror or error}"
        ) from error
    return {"ssl_certfile": certificate, "ssl_keyfile": key}
