"""What the gateway's tests share: a client on a root, a run, and what a trainer would send."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from fastapi.testclient import TestClient

from replay_service.gateway.app import create_app
from replay_service.gateway.middleware.problems import PROBLEM_JSON, TYPE_PREFIX
from replay_service.settings import load_settings
from replay_service.tokens import Scope, TokenEntry, add_token, hash_of, new_token
from replay_service.wire.batches import Batch, decode_batch
from replay_service.wire.losses import LOSS_ROW, encode_losses
from replay_service.wire.protocol import ARROW_STREAM

JSON = {"accept": "application/json"}
RUN = {"run": "tune", "corpus": "wiki", "global_batch_size": 8, "injection_ratio": "0.3"}


def client_on(root: Path, **flags: Any) -> TestClient:
    """A client of a new application; an unexpected exception becomes an answer, as it does in the real server."""
    app = create_app(load_settings(root=root, **flags))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def make_token(
    root: Path, scope: Scope, name: str = "somebody", runs: tuple[str, ...] | None = None, **entry: Any
) -> str:
    """A new token, in the tokens file of a root."""
    token = new_token()
    now = datetime.now(UTC)
    made = TokenEntry(name=name, sha256=hash_of(token), scope=scope, runs=runs, created_at=now, **entry)
    add_token(root / "tokens.toml", made)
    return token


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def create_run(client: httpx2.Client, **settings: object) -> httpx2.Response:
    return client.post("/v1/runs", json=RUN | settings)


def ask(client: httpx2.Client, headers: Mapping[str, str] | None = None, **body: object) -> httpx2.Response:
    """Ask for a batch of the run `tune`."""
    return client.post("/v1/runs/tune/batches", json={"step": 0} | body, headers=headers)


def batch_of(client: httpx2.Client, step: int, num_steps: int = 1, rank: int = 0, world_size: int = 1) -> Batch:
    response = ask(client, step=step, num_steps=num_steps, rank=rank, world_size=world_size)
    assert response.status_code == 200, response.text
    return decode_batch(response.content)


def losses_of(batch: Batch, loss_nats: float = 2.5, num_flips: int = 0) -> np.ndarray:
    """A report on every sample of a batch: LOSS_ROW [n], each of ten tokens."""
    rows = np.zeros(len(batch), dtype=LOSS_ROW)
    rows["step"], rows["sample_id"], rows["rank"] = batch.step, batch.sample_id, batch.header.rank
    rows["loss_nats"], rows["num_tokens"], rows["num_flips"] = loss_nats, 10, num_flips
    return rows


def as_json(rows: np.ndarray) -> dict[str, list[dict[str, object]]]:
    return {"rows": [dict(zip(LOSS_ROW.names or (), row, strict=True)) for row in rows.tolist()]}


def report(client: httpx2.Client, rows: np.ndarray) -> httpx2.Response:
    return report_bytes(client, bytes(encode_losses(rows)))


def report_bytes(client: httpx2.Client, body: bytes, content_type: str = ARROW_STREAM) -> httpx2.Response:
    return client.post("/v1/runs/tune/losses", content=body, headers={"content-type": content_type})


def all_of(client: httpx2.Client) -> list[Any]:
    """Everything that the run `tune` says of itself; equal before and after what must change nothing."""
    return [client.get(f"/v1/runs/tune{part}").raise_for_status().json() for part in ("", "/stats", "/strata")]


def state_of(client: httpx2.Client) -> list[Any]:
    """As `all_of`, without what tells how the run came to its state: numbers and times of events, and rewinds."""
    moments = ("as_of", "attempt", "last_plan_at", "last_report_at", "last_trained_at", "last_change", "report_delay")
    return [{name: value for name, value in each.items() if name not in moments} for each in all_of(client)]


def assert_problem(response: httpx2.Response, status: int, slug: str | None = None) -> dict[str, Any]:
    """The response is a problem document of this status and kind; gives its members."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM_JSON
    content: dict[str, Any] = response.json()
    assert content["status"] == status
    assert content["type"].startswith(TYPE_PREFIX)
    assert content["title"]
    assert content["detail"]
    if slug is not None:
        assert content["type"] == TYPE_PREFIX + slug
    return content
