"""`replay-service serve`: the whole service, in one process or in several."""

import sys

import structlog

from replay_service.gateway.app import create_app
from replay_service.gateway.listening import listeners
from replay_service.gateway.logs import configure_logs
from replay_service.gateway.processes.supervisor import supervise
from replay_service.gateway.server import encryption, serve_application
from replay_service.ledger.database import prepare_database
from replay_service.settings import ServiceSettings

_log = structlog.get_logger()


def run_service(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT; open requests are finished first.

    Raises:
        UnusableCertificate: when there is to be TLS and its files cannot be used.
        AddressInUse: when another program has the port.
        UnusableDatabase: when it cannot be reached, or is of a newer release.
        UnusableSecret: when the secret of a cluster cannot be used.
    """
    options = encryption(settings)
    configure_logs(settings.log_level, settings.log_format)
    if settings.tls_key is not None and settings.tls_key.stat().st_mode & 0o077:
        _log.warning("the private key is open to others than its owner; chmod 600", tls_key=str(settings.tls_key))
    if settings.asks_for_tokens and not (options or settings.listens_on_loopback):
        _log.warning("tokens cross the network unencrypted; set tls_certificate and tls_key, or put TLS in front")
    if settings.gateways > 1 or settings.cluster:
        sys.exit(supervise(settings))
    sockets = listeners(settings.host, settings.port)
    settings.root.mkdir(parents=True, exist_ok=True)
    prepare_database(settings.journal_url, settings.database_timeout_s)
    app = create_app(settings)
    _log.info("listening", host=settings.host, port=sockets[0].getsockname()[1], tls=bool(options))
    serve_application(app, settings, sockets, **options)
