from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from replay_service.corpus.format.texts import Texts, write_tokenizer
from replay_service.corpus.reading.reader import Corpus
from tests.gateway.worlds import assert_problem, batch_of, create_run, losses_of, report


@pytest.fixture
def reported(running: TestClient) -> TestClient:
    batch = batch_of(running, 0, 20)
    rows = losses_of(batch)
    rows["loss_nats"] += rows["step"] / 10
    report(running, rows)
    return running


def samples(client: TestClient, **query: Any) -> dict[str, Any]:
    response = client.get("/v1/runs/tune/samples", params=query)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_the_most_damaged_come_first(reported: TestClient) -> None:
    excess = [each["excess_nats"] for each in samples(reported, order="-excess_loss")["samples"]]
    assert excess == sorted(excess, reverse=True)
    assert len(excess) > 10


def test_pages_follow_each_other(reported: TestClient) -> None:
    whole = samples(reported, order="loss", limit=1000)
    assert whole["cursor"] is None
    page, paged = samples(reported, order="loss", limit=7), []
    while page["cursor"]:
        paged += page["samples"]
        page = samples(reported, order="loss", limit=7, cursor=page["cursor"])
    assert paged + page["samples"] == whole["samples"]


def test_a_sample_tells_its_visits(reported: TestClient) -> None:
    (first, *_) = samples(reported, order="-visits")["samples"]
    content = reported.get(f"/v1/runs/tune/samples/{first['sample_id']}").json()
    visits, as_of = content.pop("visits"), content.pop("as_of")
    assert (content.pop("signal"), content.pop("text_problem")) == ("token_flip", None)
    assert content == first
    assert as_of == reported.get("/v1/runs/tune").json()["as_of"]
    assert [visit["step"] for visit in visits][:: max(1, len(visits) - 1)][0] == first["first_step"]
    assert sum(visit["num_tokens"] for visit in visits) == first["num_tokens"]


def test_a_run_without_reports_has_no_samples(running: TestClient) -> None:
    found = samples(running)
    assert (found["run"], found["as_of"], found["samples"], found["cursor"]) == ("tune", 0, [], None)


@pytest.mark.parametrize(
    "query",
    [
        {"order": "best"},
        {"order": "--loss"},
        {"limit": 0},
        {"limit": 1001},
        {"stratum": -1},
        {"stratum": 4},
        {"stratum": 999},
        {"domain": "x"},
        {"domain": ""},
        {"domain": "<script>alert(1)</script>" * 100},
        {"domain": "en", "stratum": 2},
        {"text": "maybe"},
        {"cursor": "x"},
        {"cursor": "bnVsbA=="},
        {"cursor": "WzEsIDJd" * 3},
    ],
)
def test_a_query_that_makes_no_sense_is_refused(reported: TestClient, query: dict[str, Any]) -> None:
    assert_problem(reported.get("/v1/runs/tune/samples", params=query), 422, "invalid-request")


@pytest.mark.parametrize("sample_id", [-1, 12345678901, 2**63, 2**80])
def test_a_sample_of_which_nothing_is_known_is_not_found(reported: TestClient, sample_id: int) -> None:
    assert_problem(reported.get(f"/v1/runs/tune/samples/{sample_id}"), 404, "unknown-sample")


SIGNALS: list[dict[str, Any]] = [
    {"signal": "token_flip"},
    {"signal": "net_flip"},
    {"signal": "excess_loss"},
    {"signal": "threshold", "learnable_nats": 2.0, "delta_nats": 0.5},
]


@pytest.mark.parametrize("settings", SIGNALS, ids=lambda each: each["signal"])
def test_damage_is_that_of_the_last_visit_in_the_unit_of_the_signal(
    client: TestClient, settings: dict[str, Any]
) -> None:
    create_run(client, injection_ratio="1", held_back=0, **settings)
    batch, rng = batch_of(client, 0, 15), np.random.default_rng(3)
    rows = losses_of(batch)
    rows["loss_nats"] = batch.base_loss + rng.normal(0.3, 0.5, len(rows))
    rows["num_flips"] = rng.integers(0, 6, len(rows))
    report(client, rows).raise_for_status()
    last = {}
    for row, base in zip(rows, batch.base_loss.astype(np.float64), strict=True):
        loss, flips, gains = float(row["loss_nats"]), int(row["num_flips"]), max(0, int(row["num_gains"]))
        last[int(row["sample_id"])] = {
            "token_flip": flips / 10,
            "net_flip": max(0, flips - gains) / 10,
            "excess_loss": max(0.0, loss - base),
            "threshold": float(base <= 2.0 and loss - base > 0.5),
        }[settings["signal"]]
    found = samples(client, limit=1000)
    assert found["signal"] == settings["signal"]
    assert {each["sample_id"]: each["damage"] for each in found["samples"]} == pytest.approx(last)
    damage = [each["damage"] for each in found["samples"]]
    assert damage == sorted(damage, reverse=True) and len(set(damage)) > 1
    page, paged = samples(client, limit=7), []
    while page["cursor"]:
        paged += page["samples"]
        page = samples(client, limit=7, cursor=page["cursor"])
    assert paged + page["samples"] == found["samples"]


def test_samples_say_where_they_are_of_and_how_old_their_loss_is(reported: TestClient) -> None:
    batch_of(reported, 20, 5)
    whole = samples(reported, limit=1000)["samples"]
    for each in whole:
        assert each["stratum_name"] == f"{each['domain']}/q{each['stratum'] % 2}"
        assert each["domain"] == ("en", "fr")[each["stratum"] // 2]
        assert each["age_steps"] == 24 - each["last_step"]
        assert each["text"] is None
    of_domain = samples(reported, limit=1000, domain="fr")["samples"]
    assert of_domain == [each for each in whole if each["domain"] == "fr"] != []
    of_stratum = samples(reported, limit=1000, domain="fr", stratum=3)["samples"]
    assert of_stratum == [each for each in whole if each["stratum"] == 3] != []


def test_an_unknown_domain_is_told_the_nearest_ones(reported: TestClient) -> None:
    for part in ("samples", "strata"):
        answer = reported.get(f"/v1/runs/tune/{part}", params={"domain": "fra"})
        assert "no domain 'fra'; it has fr" in assert_problem(answer, 422, "invalid-request")["detail"]


def test_texts_are_those_of_the_corpus_or_it_is_said_why_not(
    root: Path, reported: TestClient, tiny_model: Path
) -> None:
    found = samples(reported, text=True)
    assert "has no tokenizer.json" in found["text_problem"] and found["samples"][0]["text"] is None
    rules = (tiny_model / "tokenizer.json").read_text(encoding="utf-8")
    write_tokenizer(root / "corpora" / "wiki", rules)
    found = samples(reported, text=True)
    assert found["text_problem"] is None
    (first, *_) = found["samples"]
    corpus = Corpus(root / "corpora" / "wiki")
    rows = corpus.rows(np.array([first["sample_id"]]))
    (expected,) = Texts(rules.encode()).of(rows.input_ids, rows.length)
    one = reported.get(f"/v1/runs/tune/samples/{first['sample_id']}?text=1").json()
    assert first["text"] == one["text"] == expected != ""
