"""One word sets the keys that are not written, in a job's file, in an arm of a study, and in loops of one's own."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from replay_service.language.tokenizer import load_tokenizer
from replay_trainer.client import ReplayClient
from replay_trainer.config import read_config
from replay_trainer.corpus_info import CorpusInfo
from replay_trainer.errors import CorpusMismatch, InvalidTraining
from replay_trainer.job.feed import with_teacher
from replay_trainer.job.ray_train import preflight
from replay_trainer.methods.teacher import Teacher
from replay_trainer.new_run import new_rehearsal
from replay_trainer.proxy_text import warn_if_proxy
from replay_trainer.recipe import OBJECTIVES, RECIPES
from replay_trainer.rehearsal_config import RehearsalConfig
from tests.trainer.test_config import WHOLE, written
from tests.trainer.worlds import a_job


def rehearsal_of(**keys: Any) -> RehearsalConfig:
    return RehearsalConfig.model_validate({"corpus": "wiki", "run": "a-run", **keys})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"recipe": "papers"}, RECIPES["papers"]),
        ({"recipe": "recommended"}, RECIPES["recommended"] | OBJECTIVES["mean"]),
        ({"recipe": "recommended", "objective": "mean"}, RECIPES["recommended"] | OBJECTIVES["mean"]),
        ({"recipe": "recommended", "objective": "worst"}, RECIPES["recommended"] | OBJECTIVES["worst"]),
    ],
)
def test_a_recipe_sets_what_it_says(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    rehearsal = rehearsal_of(**keys)
    assert {name: getattr(rehearsal, name) for name in expected} == expected
    assert all(f"{name} {value}" in rehearsal.in_words() for name, value in expected.items())


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_key_that_is_written_wins(recipe: str) -> None:
    stated = {
        "injection_ratio": "0.2",
        "rehearsal_loss": "mixed",
        "rehearsal_weight": 7.0,
        "teacher": "base",
        "policy": "uniform",
        "signal": "net_flip",
        "sharpness": 3.5,
    }
    assert stated.keys() >= RECIPES[recipe].keys() | OBJECTIVES["worst"].keys()
    for name, value in stated.items():
        found = rehearsal_of(recipe=recipe, **{name: value})
        assert getattr(found, name) == value
        others = rehearsal_of(recipe=recipe).model_dump() | {name: value}
        assert found.model_dump() == others, "and nothing else changes"


def test_without_a_recipe_everything_is_as_before() -> None:
    rehearsal = rehearsal_of(injection_ratio="0.05")
    assert (rehearsal.policy, rehearsal.signal, rehearsal.sharpness) == ("mix_cd", "token_flip", 1.0)
    assert (rehearsal.rehearsal_loss, rehearsal.rehearsal_weight) == ("cross_entropy", 1.0)


def test_a_file_of_one_word_is_a_job_whose_dump_has_all_values(tmp_path: Path) -> None:
    file = written(tmp_path, WHOLE.replace('injection_ratio = "0.05"', 'recipe = "recommended"'))
    job = read_config(file, {"rehearsal.injection_ratio": "0.01"})
    dumped = job.model_dump(mode="json")["rehearsal"]
    assert dumped["injection_ratio"] == "0.01" and dumped["rehearsal_weight"] == 3.0 and dumped["signal"]
    assert type(job).model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("corpus", "changes", "teacher"),
    [("wiki", {}, "base"), ("with-topk", {}, "stored"), ("with-topk", {"chunked_head": True}, "base")],
)
def test_the_teacher_is_what_the_corpus_stores_or_else_the_base_model(
    tmp_path: Path, tiny_model: Path, service_url: str, corpus: str, changes: dict[str, Any], teacher: str
) -> None:
    rehearsal = {"recipe": "recommended"}
    job = a_job(tmp_path, tiny_model, service_url, corpus=corpus, rehearsal=rehearsal, **changes)
    chosen = with_teacher(job)
    assert chosen.rehearsal is not None and chosen.rehearsal.teacher == teacher
    assert with_teacher(chosen) is chosen


def test_a_teacher_that_is_written_is_not_chosen(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    job = a_job(tmp_path, tiny_model, service_url, rehearsal={"recipe": "recommended", "teacher": "stored"})
    assert with_teacher(job) is job


def test_a_loop_of_your_own_takes_the_same_word(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        rehearsal = new_rehearsal(
            client, "one-word", "with-topk", global_batch_size=4, recipe="recommended", sharpness=2, window_steps=3
        )
        config = client.run("one-word")["config"]
    assert (rehearsal.rehearsal_loss, rehearsal.rehearsal_weight, rehearsal.teacher) == ("distill", 3.0, "stored")
    assert rehearsal.window_steps == 3
    assert (config["injection_ratio"], config["injection_mode"], config["global_batch_size"]) == ("0.05", "add", 4)
    assert (config["policy"], config["signal"], config["sharpness"]) == ("mix_cd", "excess_loss", 2.0)


def test_where_nothing_is_stored_a_loop_gives_the_teacher(service_url: str) -> None:
    teacher = Teacher(SimpleNamespace(disable_adapter=None), base=None)  # type: ignore[arg-type]
    with ReplayClient(service_url) as client:
        own = new_rehearsal(client, "own", "wiki", global_batch_size=4, recipe="recommended", teacher=teacher)
        none = new_rehearsal(client, "none", "wiki", global_batch_size=4, recipe="recommended")
        plain = new_rehearsal(client, "plain", "wiki", global_batch_size=4, recipe="papers")
        with pytest.raises(InvalidTraining, match=r"no teacher; give teacher=Teacher.of\(model\)"):
            none.open()
    assert (own.teacher, none.teacher, plain.teacher) == (teacher, None, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"recipe": "best"}, "recipe: Input should be 'recommended' or 'papers'"),
        ({"recipe": "papers", "sharpnes": 2}, "sharpnes: unknown key; did you mean sharpness?"),
        ({}, "injection_ratio: Field required"),
        ({"recipe": "papers", "objective": "worst"}, "an objective goes with recipe"),
    ],
)
def test_wrong_keys_create_no_run(service_url: str, keys: dict[str, Any], said: str) -> None:
    with ReplayClient(service_url) as client:
        with pytest.raises(InvalidTraining, match=said.replace("?", r"\?")):
            new_rehearsal(client, "never", "wiki", global_batch_size=4, **keys)
        assert "never" not in [each["run"] for each in client._json("GET", "/v1/runs")["runs"]]


def test_a_corpus_that_stores_nothing_creates_no_run_for_who_wants_it(service_url: str) -> None:
    with ReplayClient(service_url) as client:
        with pytest.raises(CorpusMismatch, match="does not store the base model's likeliest tokens"):
            new_rehearsal(client, "never", "wiki", global_batch_size=4, recipe="recommended", teacher="stored")
        assert "never" not in [each["run"] for each in client._json("GET", "/v1/runs")["runs"]]


def corpus_info(*domains: tuple[float | None, int], kind: str = "language") -> CorpusInfo:
    """A corpus of domains with a base loss of 2 nats, each with what is unexpected of it, and its tokens."""
    said = [{"mean_base_loss_nats": 2.0, "loss_above_entropy_nats": above, "num_tokens": num} for above, num in domains]
    return CorpusInfo("wiki", "", 0, 8, "float32", 1, 0, 9, kind=kind, domains=said)


@pytest.mark.parametrize(
    ("domains", "share"),
    [([], None), ([(None, 5)], None), ([(0.5, 30), (-0.1, 10), (None, 1000)], 0.175), ([(0.0, 0)], None)],
)
def test_the_unexpected_share_is_that_of_the_tokens_that_were_measured(
    domains: list[tuple[float | None, int]], share: float | None
) -> None:
    assert corpus_info(*domains).share_unexpected == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("above", "template", "loss", "said"),
    [
        (0.3, None, "cross_entropy", "did not expect 15%"),
        (0.3, "{{ messages }}", "mixed", "did not expect 15%"),
        (0.3, "{{ messages }}", "distill", None),
        (0.05, "{{ messages }}", "cross_entropy", None),
        (-0.3, None, "cross_entropy", None),
        (None, "{{ messages }}", "cross_entropy", "has a chat template"),
        (None, None, "cross_entropy", None),
    ],
)
def test_who_learns_text_with_cross_entropy_that_it_did_not_expect_is_told(
    above: float | None, template: str | None, loss: str, said: str | None
) -> None:
    with capture_logs() as logs:
        warn_if_proxy(SimpleNamespace(chat_template=template), loss, corpus_info((above, 10)))
        warn_if_proxy(None, loss, corpus_info((above, 10), kind="classification"))
    assert [each["event"] for each in logs] == ["rehearsal_fits_proxy"] * (said is not None)
    assert said is None or said in logs[0]["hint"]


def test_a_job_and_a_loop_tell_it_before_they_begin(tmp_path: Path, tiny_model: Path, service_url: str) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "instruct")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    for run, recipe, is_said in (("proxy", "papers", True), ("no-proxy", "recommended", False)):
        with capture_logs() as logs:
            preflight(a_job(tmp_path / run, model, service_url, run=run, rehearsal={"recipe": recipe}))
        assert [each["event"] for each in logs] == ["rehearsal_fits_proxy"] * is_said
    with ReplayClient(service_url) as client, capture_logs() as logs:
        rehearsal = new_rehearsal(client, "proxy-loop", "wiki", global_batch_size=4, recipe="papers")
        tokenizer = load_tokenizer(str(model))
        for rank in (0, 1):
            rehearsal.open(rank, 2, tokenizer=tokenizer).close()
    assert [each["event"] for each in logs] == ["rehearsal_fits_proxy"]
