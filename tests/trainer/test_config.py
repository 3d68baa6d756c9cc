import re
from pathlib import Path

import pytest

from replay_trainer.config import read_config
from replay_trainer.errors import InvalidTraining

WHOLE = """
model = "a-model"
output = "out"
num_steps = 5

[data]
target = "text"

[rehearsal]
corpus = "wiki"
run = "a-run"
injection_ratio = "0.05"
"""


def written(folder: Path, text: str = WHOLE) -> Path:
    path = folder / "job.toml"
    path.write_text(text)
    return path


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    config = read_config(written(tmp_path))
    assert config.output == tmp_path / "out"
    assert config.data.target == str(tmp_path / "text")
    assert config.model == "a-model"


def test_a_model_folder_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "a-model").mkdir()
    assert read_config(written(tmp_path)).model == str(tmp_path / "a-model")


def test_flags_override_keys_of_sections(tmp_path: Path) -> None:
    config = read_config(written(tmp_path), {"num_steps": 7, "rehearsal.injection_ratio": "0.1"})
    assert config.rehearsal is not None
    assert (config.num_steps, config.rehearsal.injection_ratio) == (7, "0.1")


def test_the_environment_may_name_the_service_and_a_flag_counts_more(tmp_path: Path) -> None:
    path, environment = written(tmp_path), {"REPLAY_URL": "http://a:8400, http://b:8400"}
    flag = {"rehearsal.service_url": "http://c:8400"}
    found = [read_config(path, overrides, environment).rehearsal for overrides in ({}, flag)]
    assert [each and each.service_url for each in found] == [environment["REPLAY_URL"], "http://c:8400"]
    alone = written(tmp_path, WHOLE.partition("[rehearsal]")[0])
    assert read_config(alone, {}, environment).rehearsal is None


def test_a_service_may_have_a_list_of_urls(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, WHOLE + 'service_url = ["http://a:8400", "http://b:8400"]'))
    assert config.rehearsal is not None and config.rehearsal.service_url == ("http://a:8400", "http://b:8400")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "service_url = 'http://a:8400,b:8400'",
            "number 2 cannot be used: 'b:8400' is no URL",
        ),
        ("service_url = ['http://a', 'https://b']", "http://a, https://b, differ in their scheme"),
        ("learning_rat = 1", "rehearsal.learning_rat: unknown key; known are service_url, "),
        ("injection_mod = 1", "rehearsal.injection_mod: unknown key; did you mean injection_mode?"),
        (
            "schedule = { curve = 'cosine', num_step = 5 }",
            "rehearsal.schedule.num_step: unknown key; did you mean num_st",
        ),
        ("schedule = { curve = 'cosin' }", "rehearsal.schedule.curve: Input should be 'constant', "),
        ("schedule = { curve = 'steps', points = [[0, 0.5]] }", "schedule.points must have ascending steps from 1 on"),
        ("floor = 1.5", "rehearsal.floor: "),
        ("prior_weight = 0", "rehearsal.prior_weight: "),
        ("recipe = 'best'", "rehearsal.recipe: Input should be 'recommended' or 'papers'"),
        ("recipe = 'recommended'\nobjective = 'median'", "rehearsal.objective: Input should be 'mean' or 'worst'"),
        ("recipe = ['papers']", "rehearsal.recipe: "),
        ("objective = 'worst'", "rehearsal: Value error, an objective goes with recipe"),
        ("recipe = 'papers'\nobjective = 'mean'", "rehearsal: Value error, an objective goes with recipe"),
        ("[rehearsl]", "rehearsl: unknown key; did you mean rehearsal?"),
        ("[lora]\nrank = 5", "lora.rank: unknown key; known are r, alpha"),
    ],
)
def test_an_unknown_key_is_named_with_what_was_probably_meant(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(InvalidTraining, match=re.escape(said)):
        read_config(written(tmp_path, WHOLE + more))


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("{ nat = 0.1 }", "rehearsal.budget.nat: unknown key; did you mean nats?"),
        ("{ nats = 0.1, law = { alfa = 1 } }", "rehearsal.budget.law.alfa: unknown key"),
        ("{ law = { A = 1 } }", "rehearsal.budget.law.B: Field required"),
        ("{ nats = 0 }", "rehearsal.budget.nats: "),
    ],
)
def test_an_unknown_key_of_a_budget_is_named(tmp_path: Path, budget: str, said: str) -> None:
    text = WHOLE.replace('"0.05"', f'"auto"\nbudget = {budget}')
    with pytest.raises(InvalidTraining, match=re.escape(said)):
        read_config(written(tmp_path, text))


def test_the_run_gets_what_the_file_says(tmp_path: Path) -> None:
    settings = read_config(written(tmp_path)).run_settings()
    assert (settings["injection_ratio"], settings["global_batch_size"], settings["policy"]) == ("0.05", 8, "mix_cd")


@pytest.mark.parametrize(
    ("schedule", "num_steps"),
    [
        ('{ curve = "warmup" }', 5),
        ('{ curve = "warmup", num_steps = 40 }', 40),
        ('{ curve = "cosine", final_ratio = "0.02" }', 5),
        ('{ curve = "steps", points = [[5, "0.1"]] }', 0),
    ],
)
def test_a_schedule_is_as_long_as_the_job_unless_it_says_more(tmp_path: Path, schedule: str, num_steps: int) -> None:
    config = read_config(written(tmp_path, WHOLE + f"\nschedule = {schedule}\n"))
    assert config.run_settings()["schedule"]["num_steps"] == num_steps


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("num_steps = 5", "num_steps = 0", "num_steps"),
        ("num_steps = 5", "num_stepz = 5", "num_stepz"),
        ('run = "a-run"', 'run = "../a"', "rehearsal.run"),
        ('"0.05"', '"1.5"', "injection_ratio"),
        ('"0.05"', '"much"', "injection_ratio"),
        ('"0.05"', '"auto"\ninjection_fixed = true', "injection_fixed promises"),
        ('"0.05"', '"0.05"\ninjection_fixed = "yes, indeed"', "injection_fixed"),
        ("num_steps = 5", "num_steps = 5\nnum_workers = 9", "is less than num_workers 9"),
        ("num_steps = 5", "num_steps = 5\nmin_workers = 2", "min_workers 2 is more than num_workers 1"),
        ("[data]", "[daten]", "daten"),
        ('target = "text"', 'target = "text"\nseq_len = 1', "data.seq_len"),
        ("num_steps = 5", "num_steps =", "cannot be read"),
        ('run = "a-run"', 'run = "a-run"\ntoken = "rpl_swordfish"', "REPLAY_TOKEN"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, names: str) -> None:
    with pytest.raises(InvalidTraining, match=names) as mistake:
        read_config(written(tmp_path, WHOLE.replace(old, new)))
    assert "swordfish" not in f"{mistake.value}{mistake.value.__cause__}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTraining, match=r"none\.toml cannot be read"):
        read_config(tmp_path / "none.toml")
