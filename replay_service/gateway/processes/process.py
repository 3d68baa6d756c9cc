"""One process of a service with several gateways; its supervisor starts it.

python -m replay_service.gateway.processes.process owner|gateway
"""

import shutil
import signal
import sys
import threading

import structlog
from uvicorn.config import STARTUP_FAILURE

from replay_service.gateway.app import create_app
from replay_service.gateway.listening import listener
from replay_service.gateway.logs import configure_logs
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.processes.candidate import Candidate, can_connect, take_turns
from replay_service.gateway.processes.child import IGNORED, Replica, StartMessage
from replay_service.gateway.processes.gateway import create_gateway
from replay_service.gateway.processes.owner import OwnerApp
from replay_service.gateway.processes.owner_client import OWNER_KEEPS_S
from replay_service.gateway.server import Server, encryption, make_server, run
from replay_service.ledger.database import UnusableDatabase, check_clock, engine_of, prepare_database
from replay_service.ledger.service_lease import ServiceLease
from replay_service.settings import ServiceSettings

_log = structlog.get_logger()


def main() -> None:
    for each in IGNORED:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    message = StartMessage.model_validate_json(sys.stdin.readline())
    configure_logs(message.settings.log_level, message.settings.log_format)
    if message.kind == "owner":
        settings = message.settings
        settings.root.mkdir(parents=True, exist_ok=True)
        try:
            prepare_database(settings.journal_url, settings.database_timeout_s)
            if message.replica is not None:
                check_clock(settings.journal_url, settings.database_timeout_s)
        except UnusableDatabase as error:
            _log.error("the database cannot be used", problem=error.detail)
            sys.exit(STARTUP_FAILURE)
        _serve_owner(message)
    else:
        _serve_gateway(message)


def _serve_owner(message: StartMessage) -> None:
    app = create_app(message.settings, message.asks_for_tokens, ProcessMetrics(counts_requests=False))
    replica = message.replica
    candidate = None if replica is None else _candidate(message.settings, replica)
    owner_app = OwnerApp(app, message.link, candidate)
    server = make_server(
        owner_app,
        app.state,
        message.settings,
        delay_s=0.0,  # it is told when no gateway is left
        by_signals=False,
        uds=None if replica else str(message.owner_socket),
        timeout_keep_alive=OWNER_KEEPS_S,
        access_log=False,
        proxy_headers=False,
    )
    sockets = None
    if replica is not None and candidate is not None:
        sockets = [listener(message.settings.owner_host, replica.owner_port)]
        app.state.owns_runs = lambda: candidate.epoch is not None
        take_turns(candidate, lambda: server.started)
        _resign_with_supervisor(server, owner_app, candidate, message.settings.drain_timeout_s)
    else:
        _stop_with_supervisor(server)
    try:
        run(server, sockets)
    finally:
        if app.state.is_stopping:  # and is not started again
            shutil.rmtree(message.folder, ignore_errors=True)  # a supervisor that was killed has left it


def _candidate(settings: ServiceSettings, replica: Replica) -> Candidate:
    engine = engine_of(settings.journal_url, timeout_s=settings.lease_s / 3)
    return Candidate(ServiceLease(engine), replica.name, replica.address, settings.lease_s, can_connect)


def _serve_gateway(message: StartMessage) -> None:
    settings = message.settings
    app = create_gateway(message)
    server = make_server(app, app.state, settings, settings.shutdown_delay_s, by_signals=False, **encryption(settings))
    _stop_with_supervisor(server)
    run(server, [listener(settings.host, message.port)])


def _stop_with_supervisor(server: Server) -> None:
    """Tell the server to stop when the supervisor says so, and to stop at once when there is nobody to say anything."""

    def wait() -> None:
        if sys.stdin.readline():
            server.stop()
            sys.stdin.readline()
        server.stop_at_once()

    threading.Thread(target=wait, daemon=True).start()


def _resign_with_supervisor(server: Server, app: OwnerApp, candidate: Candidate, within_s: float) -> None:
    """When the supervisor says to stop, let another replica own the runs; stop when it says nothing more."""

    def wait() -> None:
        told = sys.stdin.readline()
        try:
            candidate.resign()
            app.wait_finished(within_s)
            candidate.give_up()
            if told:
                sys.stdin.readline()
        finally:  # also where a log cannot be written, since its reader has ended with the supervisor
            server.stop_at_once()

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main()
