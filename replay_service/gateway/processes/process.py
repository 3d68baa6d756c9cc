"""One process of a service with several gateways.

    python -m replay_service.gateway.processes.process owner|gateway SOCKET [PORT]

The supervisor starts it, writes the settings to its standard input, and keeps that open for as long as it lives.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from replay_service.gateway.app import create_app
from replay_service.gateway.logs import configure_logs
from replay_service.gateway.processes.front import create_gateway
from replay_service.gateway.processes.owner_link import OWNER_KEEPS_S
from replay_service.gateway.processes.owner_side import OwnerSide
from replay_service.gateway.processes.supervisor import listener
from replay_service.gateway.server import encryption, serve_application, stopping
from replay_service.settings import ServiceSettings


def main() -> None:
    kind, owner_socket, *port = sys.argv[1:]
    settings = ServiceSettings.model_validate_json(sys.stdin.readline())
    configure_logs(settings.log_level)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    if kind == "owner":
        _serve_owner(settings, Path(owner_socket))
    else:
        _serve_gateway(settings, Path(owner_socket), int(port[0]))


def _serve_owner(settings: ServiceSettings, path: Path) -> None:
    app = create_app(settings)
    keeps: dict[str, Any] = {"timeout_keep_alive": OWNER_KEEPS_S, "proxy_headers": False, "access_log": False}
    serve_application(OwnerSide(app), settings, stopping(app), uds=str(path), **keeps)


def _serve_gateway(settings: ServiceSettings, owner: Path, port: int) -> None:
    app = create_gateway(settings, owner)
    bound = listener(settings.host, port)
    serve_application(app, settings, stopping(app), sockets=[bound], **encryption(settings))


def _end_with_supervisor() -> None:
    """Its end of the pipe is closed when it ends, however that comes."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
