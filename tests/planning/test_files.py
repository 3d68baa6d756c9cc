import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from replay_service.errors import UnusableRuns
from replay_service.planning.files import read_runs
from replay_trainer.study.measuring import Measured
from replay_trainer.study.outcomes import Cost, Outcome, write_parquet
from tests.planning.worlds import World, table_of, write_runs


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_every_format_gives_the_same_runs(ending: str, tmp_path: Path) -> None:
    runs = World().runs()
    found = read_runs([write_runs(runs, tmp_path / f"runs.{ending}")])
    for name in runs.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(runs, name))


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    paths = [
        write_runs(World().runs(sizes=(size,)), tmp_path / f"{size:.0f}.{ending}")
        for size, ending in ((1e6, "csv"), (4e6, "parquet"))
    ]
    assert read_runs(paths).num_parameters.tolist() == [1e6] * 15 + [4e6] * 15


def with_column(name: str, values: list[Any], path: Path) -> Path:
    pq.write_table(table_of(World().runs()).append_column(name, pa.array(values)), path)
    return path


@pytest.mark.parametrize("name", ["target", "learning_rate"])
def test_runs_of_several_targets_or_learning_rates_must_be_chosen_from(name: str, tmp_path: Path) -> None:
    values = ["a", "b", "c"] if name == "target" else [0.001, 0.002, 0.003]
    path = with_column(name, values * 15, tmp_path / "runs.parquet")
    with pytest.raises(UnusableRuns, match=f"several values of {name}: .*--where {name}={values[0]}"):
        read_runs([path])
    assert len(read_runs([path], [f"{name}={values[1]}"])) == 15


def test_each_model_size_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    runs = World().runs()
    rates = [1e3 / size for size in runs.num_parameters]
    path = with_column("learning_rate", rates, tmp_path / "runs.parquet")
    assert len(set(rates)) == 3 and len(read_runs([path])) == len(rates)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("nothing", "not column=value"),
        ("color=red", "a column of the runs; they have num_parameters"),
        ("injection_ratio=much", "'much' is no value of the column injection_ratio"),
        ("injection_ratio=0.9", "no run is left"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(condition: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableRuns, match=said):
        read_runs([write_runs(World().runs(), tmp_path / "runs.csv")], [condition])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("runs.xlsx", "", "no ending of a known format; name a file that ends in .parquet, .csv, .jsonl"),
        ("runs.parquet", "no parquet", "cannot be read as parquet"),
        ("runs.csv", "", "cannot be read as csv"),
        ("runs.jsonl", "{", "cannot be read as jsonl"),
        ("runs.csv", "a,b\n1,2\n", "no column num_parameters"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UnusableRuns, match=said):
        read_runs([tmp_path / name])


def test_a_missing_file_a_missing_value_and_text_in_the_place_of_numbers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_runs([tmp_path / "runs.csv"])
    table = table_of(World().runs())
    place = table.column_names.index("base_loss")
    pq.write_table(table.set_column(place, "base_loss", pa.array([None, *[3.0] * 44])), tmp_path / "a.parquet")
    with pytest.raises(UnusableRuns, match=r"base_loss is missing or not finite in 1 of 45 runs \(run 1\)"):
        read_runs([tmp_path / "a.parquet"])
    csv.write_csv(table.set_column(place, "base_loss", pa.array(["much"] * 45)), tmp_path / "b.csv")
    with pytest.raises(UnusableRuns, match="the column base_loss holds string and no numbers"):
        read_runs([tmp_path / "b.csv"])
    with pytest.raises(UnusableRuns, match="the files do not fit together"):
        read_runs([tmp_path / "a.parquet", tmp_path / "b.csv"])


def measured(nats: float, num_domains: int) -> Measured:
    halves = [[50, 50]] * num_domains
    after = [[50 * (nats + domain)] * 2 for domain in range(num_domains)]
    return Measured([[100.0, 100.0]] * num_domains, after, halves, halves, halves, halves)


def outcome(
    arm: str, seed: int, rehearsed: int, nats: float, weight: float | None, failure: str | None = None
) -> Outcome:
    cost = Cost(100, rehearsed, 10_000, 100 * rehearsed, 1.0, 1e9, 1_000_000)
    parts = {"domains": ("law", "news"), "pretraining": measured(nats, 2), "target_text": measured(1.5, 1)}
    more: dict[str, Any] = {"failure": failure} if failure else parts
    return Outcome(arm, "tales", seed, weight == 1, cost, learning_rate=1e-3, uniform_weight=weight, **more)


def test_the_results_of_a_study_are_runs(tmp_path: Path) -> None:
    outcomes = [
        outcome("none", 0, 0, 2.6, 1.0),
        outcome("none", 1, 0, 2.8, 1.0),
        outcome("uniform 5 %", 0, 5, 2.2, 1.0),
        outcome("weight 3", 0, 5, 2.1, 3.0),
        outcome("KL", 0, 5, 2.05, None),
        outcome("broken", 0, 5, 2.05, 1.0, "it broke down"),
    ]
    write_parquet(tmp_path / "results.parquet", outcomes)
    found = read_runs([tmp_path / "results.parquet"])
    assert found.num_parameters.tolist() == [1e6] * 4
    assert found.target_tokens.tolist() == [10_000, 10_000, 9_500, 9_500]
    assert found.injection_ratio.tolist() == [0, 0, 0.05, 0.05]
    assert found.rehearsal_weight.tolist() == [1, 1, 1, 3]
    assert found.forgetting == pytest.approx(np.array([1.1, 1.3, 0.7, 0.6]))
    assert found.target_loss == pytest.approx(np.full(4, 1.5))
    assert len(read_runs([tmp_path / "results.parquet"], ["arm=none"])) == 2


def test_the_results_of_several_studies_may_be_one_file_although_their_arms_have_the_same_names(tmp_path: Path) -> None:
    small, large = outcome("none", 0, 0, 2.6, 1.0), outcome("none", 0, 0, 2.2, 1.0)
    large = replace(large, cost=replace(large.cost, num_parameters=4_000_000), learning_rate=2e-3)
    write_parquet(tmp_path / "results.parquet", [small, large])
    found = read_runs([tmp_path / "results.parquet"])
    assert sorted(zip(found.num_parameters.tolist(), found.forgetting.round(3).tolist(), strict=True)) == [
        (1e6, 1.1),
        (4e6, 0.7),
    ]


def test_a_study_and_a_file_of_runs_go_together(tmp_path: Path) -> None:
    write_parquet(tmp_path / "results.parquet", [outcome("none", 0, 0, 2.6, 1.0)])
    line = {"num_parameters": 4e6, "target_tokens": 5, "injection_ratio": 0.1, "base_loss": 2, "pretraining_loss": 3}
    more = {"rehearsal_weight": 1, "target_loss": 1, "target": "tales", "learning_rate": 1e-3}
    (tmp_path / "more.jsonl").write_text(json.dumps(line | more) + "\n")
    assert read_runs([tmp_path / "results.parquet", tmp_path / "more.jsonl"]).num_parameters.tolist() == [1e6, 4e6]
