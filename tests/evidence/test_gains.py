import json
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest

from replay_trainer.study.cells import Study
from replay_trainer.study.measuring import Measured
from replay_trainer.study.outcomes import Outcome
from replay_trainer.study.settings import StudySettings
from tests.evidence.gains import Gain, gains_of, in_words, regression
from tests.trainer.study.test_outcomes import outcome
from tests.trainer.study.worlds import STUDY, write_study

SHARP = "mix_cd excess ^2, 5 %"
ARMS = f"""
[[study.arms]]
name = "CE 5 %"

[[study.arms]]
name = "{SHARP}"
rehearsal.policy = "mix_cd"
"""
PREDICTED = {
    "mean_reduction": {"value": 0.05, "low": 0.0, "high": 0.1},
    "worst_reduction": {"value": 0.4, "low": 0.3, "high": 0.5},
    "reason": None,
}


def forgot(arm: str, seed: int, *by_domain: float) -> Outcome:
    """An outcome whose domains forgot so much, nats per token, on either half."""
    tokens = np.full((len(by_domain), 2), 1000)
    base = np.full((len(by_domain), 2), 3000.0)
    nats = base + 1000.0 * np.array(by_domain)[:, None]
    zeros = np.zeros_like(tokens)
    halves = (tokens.tolist(), tokens.tolist(), zeros.tolist(), zeros.tolist())
    measured = Measured(base.tolist(), nats.tolist(), *halves)
    return replace(outcome(arm, "stories", seed, 0.0), pretraining=measured)


@pytest.fixture
def study(tmp_path: Path, tiny_model: Path) -> Study:
    head = STUDY[: STUDY.index("[[study.arms]]")]
    return Study.of(StudySettings.read(write_study(tmp_path, tiny_model, "http://127.0.0.1:1", head + ARMS)))


def told(study: Study, *lines: object) -> None:
    """Let every cell's job tell this in its metrics."""
    for cell in study.cells:
        folder = study.folder / "cells" / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))


OUTCOMES = [
    forgot("CE 5 %", 0, 0.1, 0.4),
    forgot(SHARP, 0, 0.15, 0.33),
    forgot("CE 5 %", 1, 0.1, 0.3),
    forgot(SHARP, 1, 0.12, 0.32),
]


def test_what_was_predicted_stands_beside_what_was_measured_against_uniform_draws(study: Study) -> None:
    told(study, {"kind": "step"}, {"kind": "step", "predicted_gain": PREDICTED}, {"kind": "evaluation"})
    first, second = gains_of([study], OUTCOMES)
    assert (first.arm, first.predicted_mean.value, first.predicted_worst.high) == (SHARP, 0.05, 0.5)
    assert first.mean == pytest.approx(1 - 0.24 / 0.25)
    assert first.worst == pytest.approx(1 - log(0.33 / 0.24) / log(0.4 / 0.25))
    assert second.mean == pytest.approx(1 - 0.22 / 0.2)
    words = in_words([first, second])
    assert f"| {SHARP} | 2 | 5 % | -3 % (-10 to 4) | 1 of 2 | 40 % | " in words
    assert "4 jobs" in words


def test_a_cell_without_a_prediction_or_a_counterpart_is_left_out(study: Study) -> None:
    assert gains_of([study], OUTCOMES) == [], "no job ran"
    told(study, {"kind": "step"})
    assert gains_of([study], OUTCOMES) == [], "none predicted"
    told(study, {"predicted_gain": PREDICTED | {"reason": "too few reports"}})
    assert gains_of([study], OUTCOMES) == [], "none could"
    told(study, {"predicted_gain": PREDICTED})
    assert gains_of([study], OUTCOMES[1:2]) == [], "there is nothing to compare with"
    assert in_words([]) == "No arm has enough cells yet."


def test_the_line_goes_through_jobs_that_follow_the_closed_form(study: Study) -> None:
    told(study, {"predicted_gain": PREDICTED})
    (gain, _) = gains_of([study], OUTCOMES)

    def of(level: float, reduction: float) -> Gain:
        worst = replace(gain.predicted_worst, value=reduction)
        return replace(gain, predicted_worst=worst, uniform_log_ratio=level, log_ratio=level - 0.5 * reduction)

    found = regression([of(0.5, 0.2), of(0.5, 0.4), of(0.8, 0.4)])
    assert found is not None
    assert (found.slope, found.r_squared, found.num_jobs) == (pytest.approx(0.5), pytest.approx(1.0), 5)
    assert regression([gain]) is None
