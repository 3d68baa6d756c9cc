import zlib

import httpx2
import pytest
from fastapi.testclient import TestClient

from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM, CHECKSUM_HEADER, checksum
from tests.gateway.worlds import all_of, ask, assert_problem, batch_of, losses_of

JSON_STEP = b'{"step": 3}'


def send(client: TestClient, path: str, body: bytes, content_type: str, promised: str) -> httpx2.Response:
    headers = {"content-type": content_type, CHECKSUM_HEADER: promised}
    return client.post(f"/v1/runs/tune/{path}", content=body, headers=headers)


def test_an_answer_bears_the_crc32_of_its_body(running: TestClient) -> None:
    for response in (ask(running, num_steps=4), running.get("/v1/runs/tune"), ask(running, step=10**18)):
        assert response.headers[CHECKSUM_HEADER] == f"{zlib.crc32(response.content):08x}"


def test_a_body_that_is_not_what_its_checksum_says_changes_nothing(running: TestClient) -> None:
    report = bytes(encode_losses(losses_of(batch_of(running, 0, 2))))
    before = all_of(running)
    for path, body, content_type in (
        ("losses", report, ARROW_STREAM),
        ("losses", b'{"rows": []', "application/json"),
        ("batches", JSON_STEP, "application/json"),
        ("close", b"nothing", "application/json"),
    ):
        wrong = checksum(body + b" ")
        assert_problem(send(running, path, body, content_type, wrong), 400, "body-damaged")
    assert all_of(running) == before


@pytest.mark.parametrize("promised", [checksum(JSON_STEP), checksum(JSON_STEP).upper()])
def test_a_body_that_is_what_its_checksum_says_is_taken(running: TestClient, promised: str) -> None:
    assert send(running, "batches", JSON_STEP, "application/json", promised).status_code == 200


@pytest.mark.parametrize("promised", ["", "0", "nonsense", "ffffffffff", "sha-256=:abc=:"])
def test_a_checksum_that_is_none_is_refused(running: TestClient, promised: str) -> None:
    assert_problem(send(running, "batches", JSON_STEP, "application/json", promised), 400, "body-damaged")


def test_a_body_in_many_parts_is_taken_whole(running: TestClient) -> None:
    headers = {"content-type": "application/json", CHECKSUM_HEADER: checksum(JSON_STEP)}
    parts = iter([JSON_STEP[:4], JSON_STEP[4:5], JSON_STEP[5:]])
    assert running.post("/v1/runs/tune/batches", content=parts, headers=headers).status_code == 200
