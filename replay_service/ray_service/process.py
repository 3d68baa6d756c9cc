"""`replay-service` as the child of a supervisor: SIGTERM comes to it when its standard input ends.

python -m replay_service.ray_service.process serve [options]

So it ends with its supervisor, however that ends, and no process without one keeps the port.
"""

import os
import signal
import sys
import threading

from replay_service.cli import app


def main() -> None:
    threading.Thread(target=_stop_with_supervisor, daemon=True).start()
    app()


def _stop_with_supervisor() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
