"""The server process: uvicorn around the application, its log as JSON lines."""

import signal
import ssl
import sys
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from replay_service.errors import ReplayError
from replay_service.gateway.app import create_app
from replay_service.gateway.logs import configure_logs
from replay_service.settings import ServiceSettings

_log = structlog.get_logger()


class UnusableCertificate(ReplayError):
    slug, title = "unusable-certificate", "The certificate cannot be used"


def run_server(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT; open requests are finished first.

    uvicorn raises the signal again once it has drained; a process that was asked to stop and did has not failed.

    Raises:
        UnusableCertificate: when there is to be TLS and its files cannot be used.
    """
    encryption = _encryption(settings)
    configure_logs(settings.log_level)
    if settings.asks_for_tokens and not (encryption or settings.listens_on_loopback):
        _log.warning("tokens cross the network unencrypted; set tls_certificate and tls_key, or put TLS in front")
    serve_application(create_app(settings), settings, **encryption)


def serve_application(app: ASGIApp, settings: ServiceSettings, **encryption: Any) -> None:
    """Let uvicorn serve an application as the service is served."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=settings.drain_timeout_s,
        server_header=False,
        **encryption,
    )


def _encryption(settings: ServiceSettings) -> dict[str, Any]:
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


