"""The bare server of `tests.benchmarks.serving`: uvicorn as the service runs it, around a constant."""

import sys

from starlette.types import Receive, Scope, Send

from replay_service.gateway.server import serve_application
from replay_service.gateway.wire.arrow import ARROW_STREAM
from replay_service.settings import load_settings


def main() -> None:
    port, num_bytes = int(sys.argv[1]), int(sys.argv[2])
    body = bytes(num_bytes)
    headers = [(b"content-type", ARROW_STREAM.encode()), (b"content-length", str(num_bytes).encode())]

    async def constant(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    serve_application(constant, load_settings(log_level="warning"), port=port)


if __name__ == "__main__":
    main()
