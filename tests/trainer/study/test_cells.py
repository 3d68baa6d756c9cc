"""Which jobs a study's file makes, and what is refused before any of them begins."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from replay_trainer.client import RetryPolicy
from replay_trainer.errors import CorpusMismatch, InvalidTraining, ServiceUnavailable
from replay_trainer.study.cells import Study
from replay_trainer.study.checks import check_study, write_folder
from replay_trainer.study.settings import StudySettings
from tests.support import free_port
from tests.trainer.study.worlds import STUDY, write_study

IMPATIENT = RetryPolicy(first_contact_s=0.2)
NOWHERE = "http://127.0.0.1:1"


def study_of(path: Path) -> Study:
    return Study.of(StudySettings.read(path))


def test_a_cell_is_the_job_with_the_keys_of_its_arm_and_target(tmp_path: Path, tiny_model: Path) -> None:
    study = study_of(write_study(tmp_path, tiny_model, NOWHERE))
    assert [(cell.seed, cell.arm) for cell in study.cells] == [
        (seed, arm) for seed in (0, 1) for arm in ("none", "uniform 25 %", "KL, weight 3")
    ], "one seed of all arms comes first"
    none, uniform, distilled = (cell.job for cell in study.cells[3:])
    assert none.rehearsal is None and uniform.rehearsal is not None and distilled.rehearsal is not None
    assert {each.seed for each in (none, uniform, distilled)} == {1}
    assert distilled.rehearsal.rehearsal_loss == "distill" and uniform.rehearsal.rehearsal_loss == "cross_entropy"
    assert distilled.rehearsal.rehearsal_weight == 3.0
    assert len({cell.job.output for cell in study.cells}) == 6
    runs = {cell.job.rehearsal.run for cell in study.cells if cell.job.rehearsal is not None}
    assert len(runs) == 4 and all(run.startswith("study-") for run in runs)
    assert study.cells[0].interpolated == (("half of the way", 0.5),)
    assert set(study.arms) == {"none", "uniform 25 %", "KL, weight 3", "half of the way"}


def test_the_recipe_of_an_arm_wins_over_the_keys_of_all_arms(tmp_path: Path, tiny_model: Path) -> None:
    lines = STUDY + '\n[[study.arms]]\nname = "recipe"\nrehearsal.recipe = "recommended"\nrehearsal.sharpness = 3\n'
    lines += '\n[[study.arms]]\nname = "worst"\nrehearsal.recipe = "recommended"\nrehearsal.objective = "worst"\n'
    cells = study_of(write_study(tmp_path, tiny_model, NOWHERE, lines)).cells
    found = {cell.arm: cell.job.rehearsal for cell in cells}
    plain, recipe, worst = (found[name] for name in ("uniform 25 %", "recipe", "worst"))
    assert plain is not None and recipe is not None and worst is not None
    assert (plain.policy, plain.injection_ratio) == ("uniform", "0.25")
    assert (recipe.policy, recipe.injection_ratio, recipe.rehearsal_loss) == ("mix_cd", "0.05", "distill")
    assert (recipe.sharpness, worst.sharpness, recipe.corpus) == (3.0, 2.0, plain.corpus)
    refused = lines.replace('"recommended"\nrehearsal.objective', '"papers"\nrehearsal.objective')
    with pytest.raises(InvalidTraining, match="arm 'worst': rehearsal: Value error, an objective goes with recipe"):
        study_of(write_study(tmp_path, tiny_model, NOWHERE, refused))


def test_each_arm_is_trained_at_each_learning_rate_unless_it_names_one(tmp_path: Path, tiny_model: Path) -> None:
    lines = STUDY.replace("seeds = [0, 1]", "seeds = [0]\nlearning_rates = [1e-3, 3e-4]")
    lines += '\n[[study.arms]]\nname = "low"\nrehearsal = false\nlearning_rate = 1e-5\n'
    study = study_of(write_study(tmp_path, tiny_model, NOWHERE, lines))
    rates = {cell.arm: cell.job.learning_rate for cell in study.cells}
    assert rates["none @ 0.001"] == 1e-3 and rates["none @ 0.0003"] == 3e-4 and rates["low"] == 1e-5
    assert len(rates) == 7
    assert "half of the way @ 0.0003" in study.arms


def test_a_part_of_the_cells_is_chosen_by_arm_and_seed(tmp_path: Path, tiny_model: Path) -> None:
    study = study_of(write_study(tmp_path, tiny_model, NOWHERE))
    assert study.chosen() == study.cells
    part = study.chosen(["KL, weight 3", "none"], [1])
    assert [(cell.seed, cell.arm) for cell in part] == [(1, "none"), (1, "KL, weight 3")]
    with pytest.raises(InvalidTraining, match="no arm 'KL'; it trains 'none', 'uniform 25 %', 'KL, weight 3'"):
        study.chosen(["KL"])
    with pytest.raises(InvalidTraining, match="no seed 7; it trains 0, 1"):
        study.chosen([], [7])


def test_a_cell_is_known_by_all_that_its_results_depend_on(tmp_path: Path, tiny_model: Path) -> None:
    def names(study: str = STUDY, more: str = "", url: str = NOWHERE) -> dict[str, str]:
        return {each.title: each.name for each in study_of(write_study(tmp_path, tiny_model, url, study, more)).cells}

    same = names()
    assert names(STUDY.replace("cells_at_once = 1", "max_retries = 5")) == same
    assert names(url="http://127.0.0.1:2") == same
    assert same.items() < names(STUDY.replace("seeds = [0, 1]", "seeds = [0, 1, 2]")).items()
    assert same.items() < names(STUDY + '[[study.arms]]\nname = "low"\nlearning_rate = 1e-5\n').items()

    def changed(study: str = STUDY, more: str = "") -> set[str]:
        return {title.split("'")[1] for title, name in names(study, more).items() if same[title] != name}

    assert changed(STUDY.replace("rehearsal_weight = 3", "rehearsal_weight = 4")) == {"KL, weight 3"}
    assert changed(STUDY.replace("tuned_share = 0.5", "tuned_share = 0.6")) == {"none"}
    assert changed(more="floor = 0.2") == {"uniform 25 %", "KL, weight 3"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"uniform 25 %"', '"none"', "the name 'none' is there twice"),
        ("rehearsal.rehearsal_weight", "rehearsal.rehearsal_weigth", r"arm 'KL, weight 3': rehearsal.rehearsal_weigth: "
         "unknown key; did you mean rehearsal_weight"),
        ("seeds =", "seed =", r"\[study\] seed: unknown key; did you mean seeds"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "the value '0' is there twice"),
        ("rehearsal = false", "seed = 3", "arms.0: .*seed must be alike in all arms"),
        ("rehearsal = false", "rehearsal.run = 'mine'", "rehearsal.run must be alike in all arms"),
        ('interpolates = "none"', 'interpolates = "nun"', "'nun', which is no arm that trains; there are none, "),
        ("rehearsal = false", "lora.r = 2", r"interpolates 'none', which tunes adapters \(\[lora\]\)"),
        ("tuned_share = 0.5", "", "interpolates and tuned_share go together"),
        ("tuned_share = 0.5", "tuned_share = 1.5", "arms.3.tuned_share: Input should be less than 1"),
        ("[study]", "[study]\nnum_cpu = 2", "num_cpu: unknown key; did you mean num_cpus"),
        ('heldout_target = "text/stories/heldout.parquet"', 'seq_len = 4', "seq_len.*known are"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named(tmp_path: Path, tiny_model: Path, before: str, after: str, said: str) -> None:
    assert before in STUDY
    with pytest.raises(InvalidTraining, match=said):
        study_of(write_study(tmp_path, tiny_model, NOWHERE, STUDY.replace(before, after)))


def test_a_file_without_the_section_is_no_study(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(InvalidTraining, match=r"has no section \[study\]"):
        study_of(write_study(tmp_path, tiny_model, NOWHERE, ""))


def test_held_out_text_is_needed_of_both_kinds(tmp_path: Path, tiny_model: Path) -> None:
    path = write_study(tmp_path, tiny_model, NOWHERE)
    text = path.read_text()
    path.write_text(text.replace('heldout_pretraining = "text/held"', ""))
    with pytest.raises(InvalidTraining, match=r"has no data\.heldout_pretraining"):
        study_of(path)
    path.write_text(text.replace('heldout_target = "text/stories/heldout.parquet"', ""))
    with pytest.raises(InvalidTraining, match=r"target 'stories' has no data\.heldout_target"):
        study_of(path)


def test_what_can_be_carried_out_passes_and_writes_nothing(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    study = study_of(write_study(tmp_path, tiny_model, service_url))
    assert check_study(study) == "float32"
    assert not study.folder.exists()


def test_a_folder_takes_more_arms_and_seeds_and_refuses_another_study(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    def study(content: str = STUDY) -> Study:
        return study_of(write_study(tmp_path, tiny_model, service_url, content))

    more = STUDY.replace("[0, 1]", "[1, 2]") + '[[study.arms]]\nname = "low"\nlearning_rate = 1e-5\n'
    for each in (study(), study(more), study()):
        check_study(each)
        write_folder(each)
    with pytest.raises(
        InvalidTraining, match=r"another study: arm 'KL, weight 3', target 'stories', seed 0 has anothe"
    ):
        check_study(study(STUDY.replace("rehearsal_weight = 3", "rehearsal_weight = 4")))
    with pytest.raises(InvalidTraining, match="arm 'low', target 'stories', seed 1 has another job there"):
        check_study(study(more.replace("1e-5", "1e-6")))
    (tmp_path / "out" / "study.json").write_text('{"fingerprint": "0123456789abcdef"}')
    with pytest.raises(InvalidTraining, match="holds a study of an earlier release"):
        check_study(study())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("questions.jsonl", "the questions"),
        ("text/held/all.parquet", "the held-out text of pretraining"),
        ("text/stories/train.parquet", "the text of target 'stories'"),
        ("text/stories/heldout.parquet", "the held-out text of target 'stories'"),
        ("model/model.safetensors", "the base model's weights"),
    ],
)
def test_a_study_whose_input_is_another_now_is_refused(
    tmp_path: Path, tiny_model: Path, service_url: str, changed: str, said: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    question = {"prompt": "the cat", "choices": [" sat", " ran"], "answer": 0}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    asked = STUDY.replace("[study]", '[study]\nchoices = "questions.jsonl"')
    study = study_of(write_study(tmp_path, tmp_path / "model", service_url, asked))
    write_folder(study)
    check_study(study)
    path = tmp_path / changed
    if path.suffix == ".parquet":
        pq.write_table(pq.read_table(path).slice(1), path)
    elif path.suffix == ".jsonl":
        path.write_text(json.dumps(question | {"answer": 1}))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(InvalidTraining, match=f"another study: {said} changed since"):
        check_study(study)


def test_another_way_of_measuring_is_refused_for_new_arms_too(
    tmp_path: Path, tiny_model: Path, service_url: str
) -> None:
    write_folder(study_of(write_study(tmp_path, tiny_model, service_url)))
    other = STUDY.replace('"none"', '"nothing"').replace('"uniform 25 %"', '"CE"').replace("KL, weight", "KL x")
    path = write_study(tmp_path, tiny_model, service_url, other.replace("[study]", "[study]\nheldout_rows = 4"))
    with pytest.raises(InvalidTraining, match=r"\[data\], model, precision or heldout_rows changed since"):
        check_study(study_of(path))


def test_text_that_is_missing_or_lacks_a_column_is_named(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    nowhere = STUDY.replace('target = "text/stories/train.parquet"', 'target = "text/nowhere.parquet"', 1)
    with pytest.raises(InvalidTraining, match="nowhere"):
        check_study(study_of(write_study(tmp_path, tiny_model, service_url, nowhere)))
    path = write_study(tmp_path, tiny_model, service_url)
    path.write_text(path.read_text().replace('domain_column = "domain"', 'domain_column = "source"'))
    with pytest.raises(InvalidTraining, match="no column 'source'"):
        check_study(study_of(path))


def test_an_arm_that_the_corpus_cannot_serve_is_named(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    path = write_study(tmp_path, tiny_model, service_url)
    loss = 'rehearsal.rehearsal_loss = "distill"'
    text = path.read_text().replace('corpus = "with-topk"', 'corpus = "wiki"')
    path.write_text(text.replace(loss, f'{loss}\nrehearsal.teacher = "stored"'))
    with pytest.raises(CorpusMismatch, match="arm 'KL, weight 3': corpus 'wiki' does not store the base model's"):
        check_study(study_of(path))


def test_a_service_that_is_not_there_is_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1"):
        check_study(study_of(write_study(tmp_path, tiny_model, f"http://127.0.0.1:{free_port()}")), IMPATIENT)
