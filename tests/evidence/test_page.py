import re
from pathlib import Path

import pytest

from replay_trainer.study.cells import Study
from replay_trainer.study.outcomes import write_outcomes
from replay_trainer.study.settings import StudySettings
from tests.evidence.page import Results, filled, tables
from tests.trainer.study.test_outcomes import outcome
from tests.trainer.study.worlds import STUDY, write_study

ARMS = {"none": (0.6, 0), "uniform 25 %": (0.3, 40), "KL, weight 3": (0.1, 40)}


def finish(file: Path, *, without: tuple[tuple[str, int], ...] = ()) -> Path:
    """Results of a study's cells, but for those of an arm with a seed."""
    study = Study.of(StudySettings.read(file))
    for cell in study.cells:
        if (cell.arm, cell.seed) not in without:
            nats, rows = ARMS.get(cell.arm, (0.05, 40))
            own = [outcome(cell.arm, cell.target, cell.seed, nats, rows=rows, frontier=cell.arm[0] in "nu")]
            shares = [outcome(arm, cell.target, cell.seed, 0.5) for arm, _ in cell.interpolated]
            write_outcomes(study.folder / "results" / f"{cell.name}.json", own + shares)
    return file


def test_arms_of_two_studies_are_compared_pair_by_pair(tmp_path: Path, tiny_model: Path) -> None:
    first = finish(write_study(tmp_path / "first", tiny_model, "http://127.0.0.1:1"))
    head = STUDY[: STUDY.index("[[study.arms]]")]
    more = f'{head}[[study.arms]]\nname = "recommended"\nrehearsal.recipe = "recommended"\n'
    second = finish(write_study(tmp_path / "second", tiny_model, "http://127.0.0.1:1", more))
    made = tables(Results.of([first, second]), {})
    rows = [line for line in made["intervals"].splitlines() if line.startswith("| recommended")]
    assert len(rows) == 1 and re.search(r"\d to \d", rows[0])
    assert "p (Holm)" not in made["intervals"], "two seeds give none"
    assert "2 pairs of a target and a seed" in made["intervals"] and "| KL, weight 3 " in made["all-arms"]


def test_an_arm_with_one_seed_is_in_no_table_of_intervals(tmp_path: Path, tiny_model: Path) -> None:
    file = finish(write_study(tmp_path, tiny_model, "http://127.0.0.1:1"), without=(("KL, weight 3", 1),))
    made = tables(Results.of([file]), {})
    assert "KL, weight 3" not in made["intervals"] and "KL, weight 3" in made["all-arms"]
    assert re.search(r"\d to \d", made["intervals"]) and not re.search(r"\d to \d", made["all-arms"])
    assert "stories: worst domain" in made["intervals-by-target"]


def test_targets_of_which_an_arm_has_one_seed_are_in_no_table_of_intervals(tmp_path: Path, tiny_model: Path) -> None:
    poems = '[[study.targets]]\nname = "poems"\ntarget = "text/poems/train.parquet"\n'
    lines = STUDY.replace(
        "[[study.arms]]", f'{poems}heldout_target = "text/poems/heldout.parquet"\n\n[[study.arms]]', 1
    )
    file = finish(write_study(tmp_path, tiny_model, "http://127.0.0.1:1", lines))
    study = Study.of(StudySettings.read(file))
    for cell in study.cells:
        if (cell.arm, cell.target) == ("KL, weight 3", "poems") or (cell.target, cell.seed) == ("poems", 1):
            (study.folder / "results" / f"{cell.name}.json").unlink()
    made = tables(Results.of([file]), {})
    assert "stories; 2 pairs" in made["all-arms"]
    assert "stories; 2 pairs" in made["intervals"] and "KL, weight 3" in made["intervals"]


def test_without_any_outcome_the_tables_say_so(tmp_path: Path, tiny_model: Path) -> None:
    study = Results.of([write_study(tmp_path, tiny_model, "http://127.0.0.1:1")])
    made = tables(study, {"untuned": study})
    assert made["intervals"] == made["all-arms"] == made["untuned"] == "No arm has enough cells yet."


def test_targets_on_which_nothing_was_chosen_need_one_seed_of_an_arm(tmp_path: Path, tiny_model: Path) -> None:
    file = finish(
        write_study(tmp_path, tiny_model, "http://127.0.0.1:1"),
        without=tuple((arm, 1) for arm in ("none", "uniform 25 %", "KL, weight 3")),
    )
    made = tables(Results.of([]), {"untuned": Results.of([file])})
    assert "1 pair of a target and a seed" in made["untuned"] and "| KL, weight 3 " in made["untuned"]
    assert made.keys() == {"untuned", "untuned-by-target"}, "tables of studies that are not given stay"


def test_a_column_that_says_nothing_is_left_out(tmp_path: Path, tiny_model: Path) -> None:
    """Nobody knows how many rows of uniform rehearsal an arm is worth, where that was tried at one ratio alone."""
    lines = STUDY.replace("[0, 1]", "[0]")
    file = finish(write_study(tmp_path, tiny_model, "http://127.0.0.1:1", lines))
    assert "rows equal to its" in tables(Results.of([]), {"all": Results.of([file])})["all"]
    study = Study.of(StudySettings.read(file))
    for cell in study.cells:
        if cell.arm == "none":
            (study.folder / "results" / f"{cell.name}.json").unlink()
    made = tables(Results.of([]), {"all": Results.of([file])})["all"]
    assert "extra target loss" in made and "rows equal to its" not in made


def test_parts_stand_between_their_markers_however_often_they_are_written() -> None:
    page = "before\n<!-- table a -->\nold\n<!-- end -->\nbetween\n<!-- table b --><!-- end -->\n"
    once = filled(page, {"a": "new", "b": "other"})
    assert filled(once, {"a": "new", "b": "other"}) == once
    assert "old" not in once and "before\n" in once and "\nbetween\n" in once and "\n\nother\n\n" in once
    assert filled(once, {"a": "newer"}) == once.replace("new", "newer")
    with pytest.raises(ValueError, match="no table 'c'"):
        filled(page, {"c": "new"})
    assert filled(page, {"a-by-target": "new"}) == page, "a page may do without a table by target"
