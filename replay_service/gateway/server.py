"""The server process: uvicorn around the application, its log as JSON lines."""

import contextlib
import ctypes
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from replay_service.errors import ReplayError
from replay_service.gateway.app import create_app
from replay_service.gateway.express import Express
from replay_service.gateway.logs import configure_logs
from replay_service.gateway.middleware.beside import Beside
from replay_service.gateway.middleware.connections import ConnectionLimits, guarded_by
from replay_service.gateway.processes.supervisor import supervise
from replay_service.settings import ServiceSettings

_log = structlog.get_logger()


class UnusableCertificate(ReplayError):
    slug, title = "unusable-certificate", "The certificate cannot be used"


SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread may keep the interpreter's lock from the one that reads and writes sockets: a tenth of Python's."""

KEPT_BYTES: Final = 64 << 20
"""What the allocator keeps of freed memory: enough for the batches that are made at one time."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Options of mallopt, in the C library's <malloc.h>."""


def run_server(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT; open requests are finished first.

    Raises:
        UnusableCertificate: when there is to be TLS and its files cannot be used.
        AddressInUse: when the service is to have several gateways, and another program has the port.
    """
    options = encryption(settings)
    configure_logs(settings.log_level)
    if settings.asks_for_tokens and not (options or settings.listens_on_loopback):
        _log.warning("tokens cross the network unencrypted; set tls_certificate and tls_key, or put TLS in front")
    if settings.gateways > 1:
        sys.exit(supervise(settings))
    app = create_app(settings)
    serve_application(
        app, settings, stopping(app), Express(app, settings), host=settings.host, port=settings.port, **options
    )


def stopping(app: Starlette) -> Callable[[], None]:
    """Tells an application that it is about to stop."""
    return lambda: setattr(app.state, "is_stopping", True)


def serve_application(
    app: ASGIApp,
    settings: ServiceSettings,
    on_stop: Callable[[], None] = lambda: None,
    beside: Beside | None = None,
    sockets: list[socket.socket] | None = None,
    **options: Any,
) -> None:
    """Let uvicorn serve an application as the service is served, on `sockets` if there are any.

    uvicorn raises the signal again once it has drained; a process that was asked to stop and did has not failed.

    Args:
        beside: answers plain requests beside the application, if anything does.
        on_stop: called as soon as the process is told to stop.
        options: further ones of uvicorn, or others than the service's own.
    """
    _allow_connections(settings.max_connections)
    _keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    own: dict[str, Any] = {
        "loop": "uvloop",
        "http": guarded_by(ConnectionLimits(settings.max_connections, settings.io_timeout_s), beside),
        "ws": "none",
        "log_config": None,
        "access_log": settings.log_level == "debug",
        "timeout_graceful_shutdown": settings.drain_timeout_s,
        "server_header": False,
    }
    server = _Server(uvicorn.Config(app, **own | options), on_stop)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets)
    if not server.started:
        sys.exit(STARTUP_FAILURE)


class _Server(uvicorn.Server):
    """uvicorn, which tells the application at once that it is to stop."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)


def _allow_connections(most: int) -> None:
    """Let this process have as many files open as that takes, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _keep_freed_memory() -> None:
    """Let the allocator keep what one batch has freed for the next one, where the C library is glibc.

    By default it gives large pieces back to the system. To get a fresh page costs more than to fill it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def encryption(settings: ServiceSettings) -> dict[str, Any]:
    """What uvicorn must know for TLS; nothing when there is to be none."""
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
