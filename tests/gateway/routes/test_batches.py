from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer

from replay_service.corpus.reading.reader import Corpus
from replay_service.wire.batches import decode_batch
from replay_service.wire.protocol import ARROW_STREAM
from tests.gateway.worlds import JSON, all_of, ask, assert_problem, batch_of, client_on, create_run, losses_of, report


def test_arrow_is_the_default_and_says_what_it_is(running: TestClient) -> None:
    response = ask(running, num_steps=4)
    assert response.status_code == 200
    assert response.headers["content-type"] == ARROW_STREAM
    assert response.headers["replay-run"] == "tune"
    assert response.headers["replay-injection-ratio"] == "0.3"
    header = decode_batch(response.content).header
    assert (header.run, header.corpus, header.generation, header.injection_ratio) == ("tune", "wiki", 1, "0.3")
    assert (header.rank, header.world_size, header.seq_len, header.separator_id) == (0, 1, 12, 0)
    assert [each.step for each in header.steps] == [0, 1, 2, 3]


def test_json_and_arrow_agree(running: TestClient) -> None:
    batch = batch_of(running, 2, 5, rank=1, world_size=2)
    content = ask(running, JSON, step=2, num_steps=5, rank=1, world_size=2).json()
    for name in ("run", "corpus", "generation", "injection_ratio", "rank", "world_size"):
        assert content[name] == getattr(batch.header, name)
    for step, header in zip(content["steps"], batch.header.steps, strict=True):
        rows = batch.of_step(step["step"])
        assert (step["num_rehearsed"], step["policy_version"]) == (header.num_rehearsed, header.policy_version)
        for i, sample in enumerate(step["samples"]):
            for name in ("sample_id", "base_loss", "stratum", "probability", "times_drawn"):
                assert sample[name] == getattr(rows, name)[i]
            assert sample["input_ids"] == rows.input_ids[i].tolist()
            assert sample["base_correct"] == np.unpackbits(rows.base_correct[i], bitorder="little")[:12].tolist()
    assert sum(len(step["samples"]) for step in content["steps"]) == len(batch) > 0


def test_json_has_texts_for_people_if_they_ask(root: Path, running: TestClient, tiny_model: Path) -> None:
    assert "no tokenizer.json" in assert_problem(ask(running, JSON, text=True), 422, "invalid-request")["detail"]
    (root / "corpora/wiki/tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    reader = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    with client_on(root) as client:
        steps = ask(client, JSON, num_steps=6, text=True).json()["steps"]
        assert "text" not in ask(client, JSON, num_steps=6).text
        assert "application/json" in assert_problem(ask(client, text=True), 422, "invalid-request")["detail"]
    samples = [sample for step in steps for sample in step["samples"]]
    assert [each["text"] for each in samples] == [
        reader.decode(each["input_ids"], skip_special_tokens=False) for each in samples
    ]
    assert any(each["text"].strip() for each in samples)


def test_a_batch_holds_the_rows_that_its_ids_address(root: Path, running: TestClient) -> None:
    batch = batch_of(running, 0, 10)
    rows = Corpus(root / "corpora" / "wiki").rows(batch.sample_id)
    for name in ("input_ids", "length", "base_loss", "base_correct", "stratum"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(rows, name))
    assert (np.diff(batch.step) >= 0).all()


def test_a_batch_never_changes_once_it_was_given(root: Path, running: TestClient) -> None:
    first = ask(running, step=3, num_steps=4, rank=1, world_size=3).content
    batch_of(running, 0, 50)
    report(running, losses_of(batch_of(running, 3, 1), num_flips=9))
    assert ask(running, step=3, num_steps=4, rank=1, world_size=3).content == first
    with client_on(root) as restarted:
        assert ask(restarted, step=3, num_steps=4, rank=1, world_size=3).content == first


def test_steps_may_be_asked_for_in_any_order_and_windows(root: Path, running: TestClient) -> None:
    whole = batch_of(running, 0, 12)
    for step in (11, 0, 5):
        np.testing.assert_array_equal(batch_of(running, step).sample_id, whole.of_step(step).sample_id)
    parts = [batch_of(running, first, 3).sample_id for first in (0, 3, 6, 9)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.sample_id)


def test_another_seed_rehearses_other_samples(client: TestClient) -> None:
    create_run(client, run="tune", seed=1)
    create_run(client, run="other", seed=2)
    ids = [
        decode_batch(client.post(f"/v1/runs/{run}/batches", json={"step": 0, "num_steps": 10}).content).sample_id
        for run in ("tune", "other")
    ]
    assert len(ids[0]) == len(ids[1])
    assert not np.array_equal(*ids)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_the_ranks_together_get_the_whole_plan(client: TestClient, world_size: int) -> None:
    create_run(client, injection_ratio="0.6")
    whole = batch_of(client, 0, 6)
    ranks = [batch_of(client, 0, 6, rank, world_size) for rank in range(world_size)]
    for header in whole.header.steps:
        ids = np.concatenate([rank.of_step(header.step).sample_id for rank in ranks])
        assert len(ids) == header.num_rehearsed
        np.testing.assert_array_equal(np.sort(ids), np.sort(whole.of_step(header.step).sample_id))


@pytest.mark.parametrize("ratio", ["0.05", "0.3", "0.333", "1", 0.1, "1e-3"])
def test_a_window_holds_exactly_the_share_that_was_asked_for(client: TestClient, ratio: str | float) -> None:
    create_run(client, injection_ratio=ratio)
    share = Fraction(str(ratio)) * 8
    for first, num_steps in ((0, 1), (1, 2), (0, 10), (7, 23), (100, 50)):
        expected = int(share * (first + num_steps)) - int(share * first)
        batch = batch_of(client, first, num_steps)
        assert len(batch) == expected
        assert sum(each.num_rehearsed for each in batch.header.steps) == expected


def test_a_step_without_rehearsal_is_an_empty_batch(client: TestClient) -> None:
    create_run(client, injection_ratio="0.05")
    batch = batch_of(client, 0, 2)
    assert len(batch) == 0
    assert [each.num_rehearsed for each in batch.header.steps] == [0, 0]
    assert batch.input_ids.shape == (0, 12)
    assert [step["samples"] for step in ask(client, JSON, num_steps=2).json()["steps"]] == [[], []]
    assert len(batch_of(client, 2)) == 1


def test_a_ratio_of_nought_rehearses_nothing(client: TestClient) -> None:
    create_run(client, injection_ratio=0)
    assert len(batch_of(client, 0, 1000)) == 0
    assert client.get("/v1/runs/tune/stats").json()["planned_ratio"] == 0.0


def test_no_sample_repeats_before_its_stratum_is_through(client: TestClient) -> None:
    create_run(client, injection_ratio="1", policy="uniform", held_back=0)
    batch = batch_of(client, 0, 30)
    for stratum in range(4):
        ids = batch.sample_id[batch.stratum == stratum]
        first_epoch = ids[batch.times_drawn[batch.stratum == stratum] == 1]
        assert len(first_epoch) == len(set(first_epoch)) == 20


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", ARROW_STREAM),
        ("application/*", ARROW_STREAM),
        (ARROW_STREAM, ARROW_STREAM),
        ("Application/JSON", "application/json"),
        ("application/json;q=0.9, */*", "application/json"),
        (f"text/html, {ARROW_STREAM}", ARROW_STREAM),
    ],
)
def test_the_type_asked_for_is_the_type_given(running: TestClient, accept: str, media_type: str) -> None:
    assert ask(running, {"accept": accept}).headers["content-type"] == media_type


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/png;q=1", "nonsense", ""])
def test_another_type_is_not_acceptable(running: TestClient, accept: str) -> None:
    before = all_of(running)
    assert_problem(ask(running, {"accept": accept}), 406, "not-acceptable")
    assert all_of(running) == before


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        ({"rank": 2, "world_size": 2}, "invalid-request"),
        ({"rank": 1}, "invalid-request"),
        ({"rank": -1}, "invalid-request"),
        ({"world_size": 0}, "invalid-request"),
        ({"world_size": 2**40}, "invalid-request"),
        ({"step": -1}, "invalid-request"),
        ({"step": 1.5}, "invalid-request"),
        ({"step": "soon"}, "invalid-request"),
        ({"step": None}, "invalid-request"),
        ({"step": 2**63}, "invalid-request"),
        ({"step": 10**18}, "step-out-of-range"),
        ({"step": 4096}, "step-out-of-range"),
        ({"step": 4090, "num_steps": 7}, "step-out-of-range"),
        ({"step": 2**63 - 1}, "step-out-of-range"),
        ({"step": 2**63 - 1024, "num_steps": 1024}, "step-out-of-range"),
        ({"num_steps": 0}, "invalid-request"),
        ({"num_steps": 1025}, "invalid-request"),
        ({"num_steps": 10**30}, "invalid-request"),
        ({"steps": 3}, "invalid-request"),
    ],
)
def test_a_request_that_cannot_be_served_changes_nothing(
    running: TestClient, body: dict[str, object], slug: str
) -> None:
    before = all_of(running)
    assert_problem(ask(running, **body), 422, slug)
    assert_problem(ask(running, JSON, **body), 422, slug)
    assert all_of(running) == before


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"step": ' + b"1" * 6000 + b"}", b'{"step": NaN}'],
)
def test_a_body_that_is_no_request_changes_nothing(running: TestClient, content: bytes) -> None:
    before = all_of(running)
    response = running.post("/v1/runs/tune/batches", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert_problem(response, response.status_code)
    assert all_of(running) == before


def test_how_far_a_request_reaches_is_a_setting(root: Path) -> None:
    with client_on(root, max_steps_ahead=10, max_steps_per_request=3) as client:
        create_run(client)
        assert_problem(ask(client, step=10), 422, "step-out-of-range")
        assert_problem(ask(client, num_steps=4), 422, "invalid-request")
        assert len(batch_of(client, 7, 3).header.steps) == 3
        assert client.get("/v1/runs/tune").json()["next_step"] == 10
        assert_problem(ask(client, step=20), 422, "step-out-of-range")
        batch_of(client, 19)


def test_a_batch_of_an_unknown_run_is_not_found(client: TestClient) -> None:
    for headers in (JSON, None):
        assert_problem(client.post("/v1/runs/nobody/batches", json={"step": 0}, headers=headers), 404, "unknown-run")


def test_a_batch_says_in_its_headers_what_it_says_in_its_schema(running: TestClient) -> None:
    response = ask(running, step=0, num_steps=4, compression="zstd")
    batch = decode_batch(response.content)
    said = {name: response.headers[f"replay-{name}"] for name in ("run", "attempt", "corpus", "generation")}
    assert said == {"run": "tune", "attempt": "1", "corpus": "wiki", "generation": "1"}
    assert (response.headers["replay-num-samples"], response.headers["replay-injection-ratio"]) == (
        str(len(batch)),
        "0.3",
    )
    assert (response.headers["replay-policy-version"], response.headers["replay-wire-version"]) == ("1", "1")


def test_an_unknown_compression_is_refused(running: TestClient) -> None:
    assert_problem(ask(running, compression="brotli"), 422, "invalid-request")
