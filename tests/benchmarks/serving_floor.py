"""The bare server of `tests.benchmarks.serving`: uvicorn as the service runs it, around a constant, or random rows of a
file."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import numpy as np
from starlette.types import Receive, Scope, Send

from replay_service.gateway.metrics.process import ProcessMetrics
from replay_service.gateway.server import make_server, run
from replay_service.settings import load_settings
from replay_service.wire.protocol import ARROW_STREAM

GATHERED: Final = "gathers"
"""A path that holds this word is answered by rows."""
ROW_BYTES: Final = 2188
"""Of 1,024 ids of two bytes, and what a corpus holds beside them."""


def main() -> None:
    port, num_bytes, num_rows, file = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    body = bytes(num_bytes)
    content = np.memmap(file, np.uint8, "r")
    stretches = np.ndarray(len(content) - ROW_BYTES + 1, f"V{ROW_BYTES}", content, strides=1)
    rng = np.random.default_rng(0)
    headers = [(b"content-type", ARROW_STREAM.encode()), (b"content-length", str(num_bytes).encode())]

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        rest = body
        if GATHERED in scope["path"]:
            rows = stretches[rng.integers(0, len(stretches), num_rows)].view(np.uint8).data
            await send({"type": "http.response.body", "body": rows, "more_body": True})
            rest = body[len(rows) :]
        await send({"type": "http.response.body", "body": rest})

    state = SimpleNamespace(is_stopping=False, metrics=ProcessMetrics())
    run(make_server(answer, state, load_settings(log_level="warning"), delay_s=0.0, port=port))


if __name__ == "__main__":
    main()
