"""Outcomes as files, as arrays over pairs, and as a report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from replay_trainer.study.cells import Study
from replay_trainer.study.measuring import Measured
from replay_trainer.study.outcomes import Cost, Outcome, Paired, read_outcomes, write_outcomes, write_parquet
from replay_trainer.study.report import write_report
from replay_trainer.study.settings import StudySettings
from tests.trainer.study.worlds import STUDY, write_study


def measured(forgotten: float, num_domains: int) -> Measured:
    """Domain d has lost `forgotten` * (d + 1) nats per token on both halves."""
    halves = [[50, 50]] * num_domains
    nats = [[50 * (2.0 + forgotten * (domain + 1))] * 2 for domain in range(num_domains)]
    return Measured(
        [[100.0, 100.0]] * num_domains, nats, halves, [[20, 20]] * num_domains, [[3, 1]] * num_domains, halves
    )


def outcome(arm: str, target: str, seed: int, forgotten: float, *, rows: int = 0, frontier: bool = False) -> Outcome:
    cost = Cost(num_rows=160, num_rehearsed_rows=rows, num_tokens=2000, training_s=3.0, flops=1e12)
    rng = np.random.default_rng((seed, len(arm)))
    return Outcome(
        arm,
        target,
        seed,
        frontier,
        cost,
        domains=("law", "news"),
        pretraining=measured(forgotten + 0.01 * rng.standard_normal(), 2),
        target_text=measured(-0.5, 1),
        estimate={"nats": 0.3, "low": 0.2, "high": 0.4},
    )


def study_outcomes(targets: tuple[str, ...], seeds: range) -> list[Outcome]:
    """Three arms: none, uniform rehearsal, and one with as many rows that forgets a third of that."""
    return [
        each
        for target in targets
        for seed in seeds
        for each in (
            outcome("none", target, seed, 0.6, frontier=True),
            outcome("uniform 25 %", target, seed, 0.3, rows=40, frontier=True),
            outcome("KL, weight 3", target, seed, 0.1, rows=40),
            outcome("half of the way", target, seed, 0.5),
        )
    ]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    outcomes = [*study_outcomes(("a",), range(2)), Outcome("none", "b", 0, True, Cost(), failure="it broke down")]
    write_outcomes(tmp_path / "results" / "one.json", outcomes)
    assert read_outcomes([tmp_path / "results" / "one.json", tmp_path / "missing.json"]) == outcomes
    assert [each.name for each in (tmp_path / "results").iterdir()] == ["one.json"]


def test_figures_of_an_outcome() -> None:
    found = Outcome(
        "a", "t", 0, False, Cost(), domains=("law",), pretraining=measured(0.25, 1), target_text=measured(0.5, 1)
    )
    assert found.forgetting() == pytest.approx(np.full((1, 2), 0.25))
    assert found.target_loss() == pytest.approx(2.5)
    assert found.share_of_flips() == pytest.approx(4 / 40)
    assert found.share_of_gains() == pytest.approx(100 / 60)


def test_pairs_are_those_that_all_arms_have_and_arms_that_broke_down_are_left_out() -> None:
    outcomes = study_outcomes(("a", "b"), range(2))
    arms = ("none", "uniform 25 %", "KL, weight 3", "half of the way", "not begun")
    outcomes.remove(next(each for each in outcomes if (each.arm, each.target, each.seed) == ("none", "b", 1)))
    paired = Paired.of(outcomes, arms, ("a", "b"))
    assert paired is not None
    assert paired.arms == arms[:-1]
    assert paired.target_of_pair.tolist() == [0, 0, 1]
    assert paired.forgetting.shape == (4, 3, 2, 2)
    assert paired.rows[1].tolist() == [40.0] * 3 and paired.is_frontier.tolist() == [True, True, False, False]
    broken = [*outcomes, Outcome("half of the way", "c", 0, False, Cost(), failure="it broke down")]
    again = Paired.of(broken, arms, ("a", "b"))
    assert again is not None and again.arms == arms[:3]
    assert Paired.of([], arms, ("a",)) is None and paired.on(["c"]) is None


def test_the_parquet_file_has_a_row_for_each_half_of_each_domain(tmp_path: Path) -> None:
    write_parquet(tmp_path / "results.parquet", study_outcomes(("a",), range(1)))
    table = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len(table) == 4 * (2 + 1) * 2
    law = next(row for row in table if row["arm"] == "KL, weight 3" and row["domain"] == "law")
    assert (law["num_base_right"], law["num_flips"], law["num_rehearsed_rows"], law["estimate_high"]) == (
        20,
        3,
        40,
        0.4,
    )
    assert sum(row["domain"] is None for row in table) == 4 * 2


def test_an_arm_is_chosen_on_tuning_targets_and_reported_on_the_others(tmp_path: Path, tiny_model: Path) -> None:
    poems = '[[study.targets]]\nname = "poems"\ntarget = "text/poems/train.parquet"\ntuning = true\n'
    poems += 'heldout_target = "text/poems/heldout.parquet"\n'
    path = write_study(tmp_path, tiny_model, "http://127.0.0.1:1", STUDY + poems)
    study = Study.of(StudySettings.read(path))
    written = write_report(study, study_outcomes(("stories", "poems"), range(3)))
    assert "## stories\n" in written.text and "## poems (for the choice)\n" in written.text
    assert written.recommendation.startswith("Take 'KL, weight 3': it keeps 6")
    assert "It forgets less on 1 of 1 targets" in written.recommendation
    assert len(written.pictures) == 3


def test_a_frontier_is_of_adapters_of_one_rank_or_of_all_weights() -> None:
    ranks = {"none": None, "LoRA": 8, "LoRA none": 8, "LoRA KL": 8, "uniform": None, "wide LoRA": 64}
    outcomes = [
        replace(outcome(arm, "a", 0, 0.3, rows=0 if "none" in arm else 40, frontier="KL" not in arm), lora_rank=rank)
        for arm, rank in ranks.items()
    ]
    paired = Paired.of(outcomes, tuple(ranks), ("a",))
    assert paired is not None and paired.is_frontier.tolist() == [False, True, True, False, False, False]


def test_an_arm_with_another_learning_rate_is_no_part_of_the_frontier() -> None:
    rates = {"none": 5e-4, "slow none": 1e-4, "uniform": 5e-4, "slow uniform": 1e-4, "KL": 5e-4}
    outcomes = [
        replace(
            outcome(arm, "a", 0, 0.3, rows=0 if "none" in arm else 40, frontier=arm != "KL"), learning_rate=rates[arm]
        )
        for arm in rates
    ]
    paired = Paired.of(outcomes, tuple(rates), ("a",))
    assert paired is not None and paired.is_frontier.tolist() == [True, False, True, False, False]
    alone = Paired.of(outcomes, ("slow none", "none", "KL"), ("a",))
    assert alone is not None and alone.is_frontier.tolist() == [True, False, False]
