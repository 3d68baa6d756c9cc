import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from replay_service.wire.losses import encode_losses
from replay_service.wire.protocol import ARROW_STREAM
from tests.gateway.worlds import (
    all_of,
    as_json,
    assert_problem,
    batch_of,
    client_on,
    create_run,
    losses_of,
    report,
    report_bytes,
    state_of,
)


def test_arrow_and_json_reports_mean_the_same(root: Path, running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5), num_flips=3)
    assert report(running, rows).json() == {"accepted": len(rows), "duplicate": 0, "rejected": 0}
    as_arrow = state_of(running)
    other_root = root / "other"
    (other_root / "corpora").mkdir(parents=True)
    (other_root / "corpora" / "wiki").symlink_to(root / "corpora" / "wiki")
    with client_on(other_root) as client:
        create_run(client)
        batch_of(client, 0, 5)
        assert client.post("/v1/runs/tune/losses", json=as_json(rows)).json()["accepted"] == len(rows)
        assert state_of(client)[1:] == as_arrow[1:]


def test_a_report_sent_twice_counts_once(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5))
    report(running, rows)
    once = all_of(running)
    assert report(running, rows).json() == {"accepted": 0, "duplicate": len(rows), "rejected": 0}
    assert all_of(running) == once


def test_a_sample_that_two_ranks_report_counts_once(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5))
    twin = rows.copy()
    twin["rank"] = 1
    outcome = report(running, np.concatenate([rows, twin])).json()
    assert outcome == {"accepted": len(rows), "duplicate": len(rows), "rejected": 0}


def test_a_report_is_folded_in_by_parts(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5))
    assert report(running, rows[:3]).json()["accepted"] == 3
    assert report(running, rows).json() == {"accepted": len(rows) - 3, "duplicate": 3, "rejected": 0}
    assert running.get("/v1/runs/tune/stats").json()["num_pending"] == 0


def test_an_empty_report_changes_nothing(running: TestClient) -> None:
    nothing = losses_of(batch_of(running, 0))[:0]
    before = all_of(running)
    for response in (report(running, nothing), running.post("/v1/runs/tune/losses", json={"rows": []})):
        assert response.json() == {"accepted": 0, "duplicate": 0, "rejected": 0}
    assert all_of(running) == before


def test_a_report_that_comes_too_late_is_counted_as_rejected(client: TestClient) -> None:
    create_run(client, report_window_steps=2)
    rows = losses_of(batch_of(client, 0))
    batch_of(client, 1)
    batch_of(client, 2)
    before = all_of(client)
    assert report(client, rows).json() == {"accepted": 0, "duplicate": 0, "rejected": len(rows)}
    assert all_of(client) == before


@pytest.mark.parametrize("as_arrow", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "slug_of_json"),
    [
        ("loss_nats", np.nan, "invalid-report"),
        ("loss_nats", np.inf, "invalid-report"),
        ("loss_nats", -np.inf, "invalid-report"),
        ("loss_nats", 1.7e308, "invalid-report"),
        ("num_flips", 11, "invalid-report"),
        ("num_flips", -1, "invalid-request"),
        ("num_tokens", -5, "invalid-request"),
        ("rank", -1, "invalid-request"),
        ("step", -1, "invalid-request"),
        ("step", 5, "invalid-report"),
        ("step", 2**63 - 1, "invalid-report"),
        ("sample_id", -1, "invalid-request"),
        ("sample_id", 2**40, "invalid-report"),
        ("sample_id", 2**63 - 1, "invalid-report"),
    ],
)
def test_a_row_that_cannot_be_right_refuses_the_whole_report(
    running: TestClient, name: str, value: float, slug_of_json: str, as_arrow: bool
) -> None:
    rows = losses_of(batch_of(running, 0, 5))
    rows[name][4] = value
    before = all_of(running)
    body, content_type = json.dumps(as_json(rows)).encode(), "application/json"
    if as_arrow:
        body, content_type = bytes(encode_losses(rows)), ARROW_STREAM
    assert_problem(report_bytes(running, body, content_type), 422, "invalid-report" if as_arrow else slug_of_json)
    assert all_of(running) == before


def test_a_sample_of_another_step_refuses_the_report(running: TestClient) -> None:
    batch = batch_of(running, 0, 2)
    rows = losses_of(batch)
    rows["step"] = 1 - rows["step"]
    before = all_of(running)
    content = assert_problem(report(running, rows), 422, "invalid-report")
    assert str(batch.of_step(1).sample_id[0]) in content["detail"]
    assert all_of(running) == before


def test_a_refusal_says_which_rows_are_at_fault(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5))
    rows["loss_nats"][[2, 6]] = np.nan
    assert assert_problem(report(running, rows), 422, "invalid-report")["rows"] == [2, 6]


@pytest.mark.parametrize(
    "row",
    [
        '{"loss_nats": NaN}',
        '{"loss_nats": 1e999}',
        '{"loss_nats": "much"}',
        '{"loss_nats": null}',
        '{"num_tokens": 1.5}',
        '{"num_tokens": 99999999999}',
        '{"sample_id": 9223372036854775808}',
        '{"colour": 1}',
    ],
)
def test_json_that_is_no_report_is_refused_by_field(running: TestClient, row: str) -> None:
    good = as_json(losses_of(batch_of(running, 0)))["rows"][0]
    before = all_of(running)
    (field,) = json.loads(row)
    body = '{"rows": [' + json.dumps(good)[:-1] + ", " + row[1:] + "]}"
    assert field in assert_problem(report_bytes(running, body.encode(), "application/json"), 422)["detail"]
    assert all_of(running) == before


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"rows": 1}', b'{"rows": [[]]}']
)
def test_a_body_that_is_no_json_report_is_refused(running: TestClient, body: bytes) -> None:
    before = all_of(running)
    content = assert_problem(report_bytes(running, body, "application/json"), 422, "invalid-request")
    assert content["errors"][0]["field"].startswith("body")
    assert all_of(running) == before


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/octet-stream", "application/x-python-pickle"])
def test_another_content_type_is_refused(running: TestClient, content_type: str) -> None:
    body = bytes(encode_losses(losses_of(batch_of(running, 0))))
    before = all_of(running)
    assert_problem(report_bytes(running, body, content_type), 415, "unsupported-media-type")
    assert all_of(running) == before


@pytest.mark.parametrize("content_type", [f"{ARROW_STREAM}; charset=binary", ARROW_STREAM.upper()])
def test_a_content_type_may_have_parameters_and_capitals(running: TestClient, content_type: str) -> None:
    body = bytes(encode_losses(losses_of(batch_of(running, 0))))
    assert report_bytes(running, body, content_type).status_code == 200


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_a_truncated_arrow_report_is_refused(running: TestClient, share: float) -> None:
    body = bytes(encode_losses(losses_of(batch_of(running, 0, 5))))
    before = all_of(running)
    assert_problem(report_bytes(running, body[: int(share * len(body))]), 422, "invalid-report")
    assert all_of(running) == before


def test_a_small_body_that_would_fill_the_memory_is_refused(running: TestClient) -> None:
    rows = np.zeros(100_000, dtype=losses_of(batch_of(running, 0)).dtype)
    before = all_of(running)
    records = pa.ipc.open_stream(encode_losses(rows)).read_next_batch()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(records)
    assert sink.tell() < 4096
    assert (
        "compressed" in assert_problem(report_bytes(running, bytes(sink.getvalue())), 422, "invalid-report")["detail"]
    )
    assert all_of(running) == before


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_over_the_limit_is_refused_as_a_problem(root: Path, chunked: bool) -> None:
    with client_on(root, max_body_bytes=2048) as client:
        create_run(client)
        rows = losses_of(batch_of(client, 0, 50))
        body = bytes(encode_losses(rows))
        before = all_of(client)
        content = iter([body[:1500], body[1500:]]) if chunked else body
        response = client.post("/v1/runs/tune/losses", content=content, headers={"content-type": ARROW_STREAM})
        assert "2048" in assert_problem(response, 413, "body-too-large")["detail"]
        assert all_of(client) == before
        assert report(client, rows[:5]).json()["accepted"] == 5


def test_losses_of_an_unknown_run_are_not_taken(running: TestClient) -> None:
    body = bytes(encode_losses(losses_of(batch_of(running, 0))))
    response = running.post("/v1/runs/nobody/losses", content=body, headers={"content-type": ARROW_STREAM})
    assert_problem(response, 404, "unknown-run")


def test_acknowledged_reports_survive_a_restart(root: Path, running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5), num_flips=4)
    report(running, rows)
    before = all_of(running)
    with client_on(root) as restarted:
        assert all_of(restarted) == before
        assert report(restarted, rows).json()["duplicate"] == len(rows)


@pytest.mark.parametrize("as_arrow", [True, False])
def test_a_sample_that_could_not_be_measured_passes_as_arrow_and_as_json(running: TestClient, as_arrow: bool) -> None:
    rows = losses_of(batch_of(running, 0, 5), num_flips=3)
    for name in ("loss_nats", "num_tokens", "num_flips"):
        rows[name][:2] = 0
    response = report(running, rows) if as_arrow else running.post("/v1/runs/tune/losses", json=as_json(rows))
    assert response.json() == {"accepted": len(rows), "duplicate": 0, "rejected": 0}
    stats = running.get("/v1/runs/tune/stats").json()
    assert (stats["num_pending"], stats["num_reported"]) == (0, len(rows) - 2)
    assert (stats["num_tokens"], stats["mean_loss_nats"]) == (10 * (len(rows) - 2), 2.5)
    listed = {each["sample_id"] for each in running.get("/v1/runs/tune/samples").json()["samples"]}
    assert listed == set(rows["sample_id"][2:].tolist())
    assert_problem(running.get(f"/v1/runs/tune/samples/{rows['sample_id'][0]}"), 404, "unknown-sample")


def test_a_report_of_samples_of_which_none_could_be_measured_is_accepted(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5))
    rows["num_tokens"] = 0
    before = running.get("/v1/runs/tune/strata").json()["strata"]
    assert report(running, rows).json()["accepted"] == len(rows)
    assert running.get("/v1/runs/tune/strata").json()["strata"] == before
    assert running.get("/v1/runs/tune/stats").json()["flip_rate"] is None


def test_flips_without_tokens_are_refused(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 5), num_flips=1)
    rows["num_tokens"][3] = 0
    before = all_of(running)
    assert assert_problem(report(running, rows), 422, "invalid-report")["rows"] == [3]
    assert all_of(running) == before


def without_gains(rows: np.ndarray) -> bytes:
    """A report as a client sends it that does not count gains."""
    table = pa.ipc.open_stream(bytes(encode_losses(rows))).read_all().drop_columns(["num_gains"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_gains_are_counted_where_they_are_told(running: TestClient) -> None:
    rows = losses_of(batch_of(running, 0, 10), num_flips=3)
    rows["num_gains"] = 2
    assert report(running, rows[:8]).json()["accepted"] == 8
    assert report_bytes(running, without_gains(rows[8:16])).json()["accepted"] == 8
    untold = [{**each, "num_gains": None} for each in as_json(rows[16:20])["rows"]]
    assert running.post("/v1/runs/tune/losses", json={"rows": untold}).json()["accepted"] == 4
    stats = running.get("/v1/runs/tune/stats").json()
    assert (stats["num_reported"], stats["num_flips"], stats["num_gains"]) == (20, 60, 16)
    assert (stats["flip_rate"], stats["gain_rate"]) == (pytest.approx(0.3), pytest.approx(0.2))
    visits = [
        running.get(f"/v1/runs/tune/samples/{rows['sample_id'][i]}").json()["visits"][0]["num_gains"] for i in (0, 8)
    ]
    assert visits == [2, None]


@pytest.mark.parametrize(("flips", "gains"), [(3, 8), (0, 11), (10, 1), (0, -2)])
def test_gains_beyond_what_the_base_model_got_wrong_are_refused(running: TestClient, flips: int, gains: int) -> None:
    rows = losses_of(batch_of(running, 0, 5), num_flips=flips)
    rows["num_gains"][1] = gains
    before = all_of(running)
    content = assert_problem(report(running, rows), 422, "invalid-report")
    assert "num_gains is " in content["detail"]
    assert content["rows"] == [1]
    assert all_of(running) == before


def test_a_run_whose_damage_is_net_of_gains_needs_them(client: TestClient) -> None:
    create_run(client, signal="net_flip")
    rows = losses_of(batch_of(client, 0, 5), num_flips=3)
    before = all_of(client)
    content = assert_problem(report_bytes(client, without_gains(rows)), 422, "invalid-report")
    assert "change the signal to token_flip" in content["detail"]
    assert all_of(client) == before
    assert report(client, rows).json()["accepted"] == len(rows)
