"""One process of a service with several gateways; its supervisor starts it.

python -m replay_service.gateway.processes.process owner|gateway
"""

import shutil
import signal
import sys
import threading

from replay_service.gateway.app import create_app
from replay_service.gateway.listening import listener
from replay_service.gateway.logs import configure_logs
from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.processes.child import IGNORED, StartMessage
from replay_service.gateway.processes.gateway import create_gateway
from replay_service.gateway.processes.owner import OwnerApp
from replay_service.gateway.processes.owner_client import OWNER_KEEPS_S
from replay_service.gateway.server import Server, encryption, make_server, run


def main() -> None:
    for each in IGNORED:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    message = StartMessage.model_validate_json(sys.stdin.readline())
    configure_logs(message.settings.log_level, message.settings.log_format)
    if message.kind == "owner":
        _serve_owner(message)
    else:
        _serve_gateway(message)


def _serve_owner(message: StartMessage) -> None:
    app = create_app(message.settings, message.asks_for_tokens, ProcessMetrics(counts_requests=False))
    link = message.link
    server = make_server(
        OwnerApp(app, link),
        app.state,
        message.settings,
        delay_s=0.0,  # it is told when no gateway is left
        by_signals=False,
        uds=str(link.path),
        timeout_keep_alive=OWNER_KEEPS_S,
        access_log=False,
        proxy_headers=False,
    )
    _stop_with_supervisor(server)
    try:
        run(server)
    finally:
        shutil.rmtree(link.path.parent, ignore_errors=True)  # a supervisor that was killed has left it


def _serve_gateway(message: StartMessage) -> None:
    settings = message.settings
    app = create_gateway(settings, message.link, message.asks_for_tokens)
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


if __name__ == "__main__":
    main()
