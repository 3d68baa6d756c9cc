from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.gateway.worlds import assert_problem, batch_of, create_run, losses_of, report


def stats_of(client: TestClient) -> dict[str, Any]:
    content: dict[str, Any] = client.get("/v1/runs/tune/stats").raise_for_status().json()
    return content


def strata_of(client: TestClient) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = client.get("/v1/runs/tune/strata").raise_for_status().json()["strata"]
    return content


def total(strata: list[dict[str, Any]], name: str) -> float:
    return sum(each[name] for each in strata)


def test_a_new_run_has_learned_nothing(running: TestClient) -> None:
    stats = stats_of(running)
    assert (stats["rows_planned"], stats["rows_rehearsed"], stats["num_reported"], stats["num_pending"]) == (0, 0, 0, 0)
    assert (stats["planned_ratio"], stats["flip_rate"], stats["mean_loss_nats"]) == (0.0, None, None)
    strata = strata_of(running)
    assert [each["name"] for each in strata] == ["en/q0", "en/q1", "fr/q0", "fr/q1"]
    assert [each["damage_rate"] for each in strata] == [None] * 4
    for each in (stats["forgetting"], *stats["forgetting_by_domain"].values()):
        assert (each["nats"], each["low"], each["high"], each["step"]) == (None,) * 4
        assert each["reason"] == "no first visit was reported yet"
    assert [each["draw_share"] for each in strata] == pytest.approx([0.25] * 4)
    assert total(strata, "num_samples") == 80


def test_plans_are_counted(running: TestClient) -> None:
    batch = batch_of(running, 0, 10)
    stats, strata = stats_of(running), strata_of(running)
    assert (stats["next_step"], stats["rows_planned"]) == (10, 80)
    assert stats["rows_rehearsed"] == stats["num_pending"] == len(batch) == 24
    assert stats["planned_ratio"] == pytest.approx(0.3)
    assert [each["num_drawn"] for each in strata] == np.bincount(batch.stratum, minlength=4).tolist()


def test_the_statistics_are_the_sums_of_the_reports(running: TestClient) -> None:
    batch = batch_of(running, 0, 10)
    rows = losses_of(batch)
    rng = np.random.default_rng(0)
    rows["loss_nats"], rows["num_flips"] = rng.uniform(1, 5, len(rows)), rng.integers(0, 10, len(rows))
    report(running, rows[:10])
    report(running, rows[10:])
    stats, strata = stats_of(running), strata_of(running)
    assert stats["num_reported"] == total(strata, "num_reported") == len(rows)
    assert stats["num_pending"] == 0
    assert stats["num_tokens"] == total(strata, "num_tokens") == rows["num_tokens"].sum()
    assert stats["num_flips"] == total(strata, "num_flips") == rows["num_flips"].sum()
    assert stats["flip_rate"] == pytest.approx(rows["num_flips"].sum() / rows["num_tokens"].sum())
    assert stats["mean_loss_nats"] == pytest.approx(rows["loss_nats"].mean())
    assert stats["mean_excess_nats"] == pytest.approx((rows["loss_nats"] - batch.base_loss).mean())
    for k, each in enumerate(strata):
        here = batch.stratum == k
        assert each["num_reported"] == here.sum()
        assert each["num_flips"] == rows["num_flips"][here].sum()
        assert each["mean_loss_nats"] == pytest.approx(rows["loss_nats"][here].mean())
        assert each["mean_excess_nats"] == pytest.approx((rows["loss_nats"] - batch.base_loss)[here].mean())


@pytest.mark.parametrize("damaged", range(4))
def test_a_stratum_that_takes_damage_is_rehearsed_more(running: TestClient, damaged: int) -> None:
    before = strata_of(running)[damaged]["draw_share"]
    batch = batch_of(running, 0, 20)
    rows = losses_of(batch)
    rows["num_flips"][batch.stratum == damaged] = 8
    report(running, rows)
    strata = strata_of(running)
    assert strata[damaged]["draw_share"] > 1.5 * before
    assert max(strata, key=lambda each: each["damage_rate"])["stratum"] == damaged
    assert total(strata, "draw_share") == pytest.approx(1.0)
    assert stats_of(running)["policy_version"] == batch_of(running, 20).header.steps[0].policy_version > 1
    later = batch_of(running, 20, 500)
    shares = np.bincount(later.stratum, minlength=4) / len(later)
    assert shares == pytest.approx([each["draw_share"] for each in strata], abs=0.02)


def test_the_statistics_say_what_drawing_by_damage_is_worth(client: TestClient) -> None:
    create_run(client, injection_ratio="1", policy="uniform", held_back=0)
    before = stats_of(client)["predicted_gain"]
    assert before["reason"] == "forgetting is not known: no first visit was reported yet"
    assert (before["spread"], before["rows_saved"], before["advice"]) == (None,) * 3
    assert (before["elasticity"], before["elasticity_source"]) == (
        {"value": 0.33, "low": 0.26, "high": 0.41},
        "default",
    )
    batch = batch_of(client, 0, 9)
    rows = losses_of(batch)
    rows["loss_nats"] = batch.base_loss + np.array([0.2, 0.2, 0.8, 0.8])[batch.stratum]
    report(client, rows)
    found = stats_of(client)["predicted_gain"]
    assert found["spread"]["value"] == pytest.approx(np.sqrt(np.log(1 + (0.3 / 0.5) ** 2)), abs=0.05)
    for name in ("spread", "mean_reduction", "rows_saved", "worst_reduction"):
        assert 0 < found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["advice"].startswith("drawing by damage saves about")
    assert (found["reason"], found["num_effective"]) == (None, pytest.approx(72, rel=0.01))


def test_the_uniform_policy_does_not_follow_the_damage(client: TestClient) -> None:
    create_run(client, policy="uniform")
    batch = batch_of(client, 0, 20)
    rows = losses_of(batch)
    rows["num_flips"][batch.stratum == 0] = 8
    report(client, rows)
    assert [each["draw_share"] for each in strata_of(client)] == pytest.approx([0.25] * 4)


def test_a_stratum_that_was_drawn_through_begins_a_new_epoch(client: TestClient) -> None:
    create_run(client, injection_ratio="1", policy="uniform")
    batch_of(client, 0, 10)
    assert [(each["num_drawn"], each["epoch"]) for each in strata_of(client)] == [(20, 1)] * 4


@pytest.mark.parametrize("part", ["stats", "strata"])
def test_an_unknown_run_has_no_statistics(client: TestClient, part: str) -> None:
    assert_problem(client.get(f"/v1/runs/nobody/{part}"), 404, "unknown-run")


def test_strata_of_one_domain_are_those_of_all(running: TestClient) -> None:
    report(running, losses_of(batch_of(running, 0, 12), num_flips=2))
    every = strata_of(running)
    found = running.get("/v1/runs/tune/strata?domain=fr").json()["strata"]
    assert found == [each for each in every if each["domain"] == "fr"] and len(found) == 2
    for each in every:
        assert 0 < each["reports_recent"] <= each["num_reported"]


def test_watchers_share_an_answer_and_nobody_else_gets_an_old_one(running: TestClient) -> None:
    def as_of(query: str) -> int:
        number: int = running.get(f"/v1/runs/tune/stats{query}").raise_for_status().json()["as_of"]
        return number

    assert [as_of("?max_age_s=60"), as_of("")] == [0, 0]
    batch_of(running, 0)
    assert [as_of("?max_age_s=60"), as_of(""), as_of("?max_age_s=0")] == [0, 1, 1]
    for bad in ("-1", "61", "nan", "inf", "soon"):
        assert_problem(running.get(f"/v1/runs/tune/stats?max_age_s={bad}"), 422, "invalid-request")
