"""The demo's whole path on the real model, and what its numbers mean."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from replay_service.demo.distance import distances
from replay_service.demo.jobs import CORPUS, FAST, JOBS, RUN
from replay_service.demo.report import Outcome, in_words
from replay_service.language.model import load_model
from replay_service.language.tokenizer import load_tokenizer
from replay_service.sampling.injection import exact_ratio, num_rehearsed
from replay_trainer.client import ReplayClient
from replay_trainer.job.evaluation import TARGET
from replay_trainer.job.feed import load_heldout
from replay_trainer.job.metrics import MetricsFile
from tests.support import running_service
from tests.trainer.worlds import a_job

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `replay-service demo --fast` leaves, and what it printed."""
    folder, home = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("home")
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    done = subprocess.run(
        [sys.executable, "-m", "replay_service", "demo", "--fast", "--folder", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": cache},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder, done.stdout


@pytest.fixture(scope="module")
def outcomes(told: tuple[Path, str]) -> list[Outcome]:
    """Without rehearsal, with cross-entropy, and by the recommended recipe."""
    folder, _ = told
    return [Outcome.read(job.name, folder / job.output, FAST.global_batch_size, 0.0) for job in JOBS]


@pytest.fixture(scope="module")
def statistics(told: tuple[Path, str]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What the service says of the demo's run when it serves the demo's folder again."""
    with running_service(told[0]) as (base_url, _), ReplayClient(base_url) as client:
        yield client.stats(RUN), client.strata(RUN)


def test_rehearsal_forgets_less(outcomes: list[Outcome]) -> None:
    none, plain, recommended = outcomes
    assert none.mean_forgetting() > 0.05
    assert max(each.mean_forgetting() for each in (plain, recommended)) < none.mean_forgetting() - 0.02


def test_all_jobs_learn_the_target(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.last["target"] < outcome.base["target"] - 0.05


def test_all_jobs_begin_with_the_same_model(outcomes: list[Outcome]) -> None:
    assert len({tuple(each.base.items()) for each in outcomes}) == 1
    assert len(outcomes[0].base) == 5


def test_both_rehearsals_have_exactly_the_same_ratio(told: tuple[Path, str], outcomes: list[Outcome]) -> None:
    ratio = exact_ratio(FAST.injection_ratio)
    for job, outcome in zip(JOBS[1:], outcomes[1:], strict=True):
        lines = MetricsFile(told[0] / job.output / "metrics.jsonl").lines()
        counts = [line["num_rehearsed"] for line in lines if line["kind"] == "step"]
        assert counts == [num_rehearsed(step, ratio, FAST.global_batch_size) for step in range(FAST.num_steps)]
        assert outcome.num_rehearsed == ratio * outcome.num_trained
    assert outcomes[0].num_rehearsed == 0


def test_the_jobs_write_down_what_the_recipe_set(told: tuple[Path, str]) -> None:
    configs = [json.loads((told[0] / job.output / "config.json").read_text())["rehearsal"] for job in JOBS]
    none, plain, recommended = configs
    assert none is None and plain["recipe"] is None
    assert (plain["policy"], plain["rehearsal_loss"]) == ("uniform", "cross_entropy")
    assert recommended["recipe"] == "recommended" and recommended["teacher"] == "stored"
    assert recommended["injection_ratio"] == plain["injection_ratio"] == FAST.injection_ratio
    assert f"recipe recommended: injection_ratio {FAST.injection_ratio}, rehearsal_loss distill" in told[1]


def test_the_statistics_are_the_reports(
    outcomes: list[Outcome], statistics: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    stats, strata = statistics
    assert stats["num_reported"] == stats["rows_rehearsed"] == outcomes[2].num_rehearsed
    assert stats["num_pending"] == 0
    assert stats["next_step"] == FAST.num_steps
    assert 0 < stats["flip_rate"] < 0.5
    for name in ("num_reported", "num_tokens", "num_flips"):
        assert sum(each[name] for each in strata) == stats[name]
    assert sum(each["draw_share"] for each in strata) == pytest.approx(1.0)


def test_the_corpus_has_four_domains_and_two_languages(
    statistics: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    domains = {each["domain"] for each in statistics[1]}
    assert domains == {"encyclopedia_en", "encyclopedia_fr", "python_manual", "python_source"}


def test_only_what_falls_below_zero_is_called_a_proxy() -> None:
    def outcome(name: str, **nats: float) -> Outcome:
        base = {"en": 2.0, "fr": 3.0, "target": 4.0}
        after = {domain: base[domain] + nats.get(domain, 0.0) for domain in base}
        return Outcome(name, {0: base, 8: after}, 8, 64, 0.25)

    none, kept = outcome("none", en=0.2, fr=0.4), outcome("recipe", en=0.1, fr=0.1)
    above = in_words([none, outcome("plain", en=0.1, fr=0.3), kept])
    assert above.startswith("none: forgetting +0.300, distance 0.250; plain: forgetting +0.200, distance")
    assert "proxy" not in above
    below = in_words([none, outcome("plain", en=0.1, fr=-0.3), kept])
    assert "(fr)" in below and "proxy" in below


def test_the_distance_is_the_divergence_from_the_base_model(tmp_path: Path, tiny_model: Path) -> None:
    job = a_job(tmp_path, tiny_model, None)
    data = job.data.model_copy(update={"heldout_pretraining": job.data.target, "heldout_target": job.data.target})
    base = load_model(str(tiny_model))
    torch.manual_seed(0)
    other = copy.deepcopy(base)
    torch.nn.init.normal_(other.get_output_embeddings().weight)
    for name, model in (("same", base), ("other", other)):
        model.save_pretrained(tmp_path / name / "model")
    jobs = [job.model_copy(update={"data": data, "output": tmp_path / name}) for name in ("same", "other")]
    same, moved = distances(jobs)
    (rows,) = (
        each for name, each in load_heldout(data, load_tokenizer(str(tiny_model))).rows.items() if name != TARGET
    )
    ids, length = torch.from_numpy(rows.input_ids).long(), torch.from_numpy(rows.length).long()
    with torch.no_grad():
        log_p, log_q = (each(input_ids=ids).logits[:, :-1].double().log_softmax(2) for each in (base, other))
    kl = (log_p.exp() * (log_p - log_q)).sum(2)[torch.arange(1, ids.shape[1]) < length[:, None]].mean()
    assert same == pytest.approx(0.0, abs=1e-5) and moved == pytest.approx(float(kl), rel=1e-3)


def test_it_shows_a_table_a_picture_and_where_to_look(told: tuple[Path, str]) -> None:
    folder, output = told
    assert "forgetting, mean" in output
    assert "rehearsal share" in output and "distance from base" in output
    assert not list(folder.glob("*/model"))
    assert "12.50%" in output
    assert f"/v1/runs/{RUN}/strata" in output
    assert re.search(rf"^  http://[^ ]+:[0-9]+/runs/{RUN}$", output, re.MULTILINE)
    assert (folder / "forgetting.png").stat().st_size > 10_000
    assert (folder / "corpora" / CORPUS / "manifest.json").exists()
