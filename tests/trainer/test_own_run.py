"""A Trainer that gets no rehearsal and makes its own run, from plain settings."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import AutoModelForCausalLM, TrainingArguments

from replay_service.testing import ServiceUnderTest, replay_service
from replay_trainer.errors import InvalidTraining, ServiceRefused
from replay_trainer.hf import RehearsalTrainer
from replay_trainer.own_run import OwnRun
from tests.trainer.test_hf import SEQ_LEN, arguments, dataset

SETTINGS = {"corpus": "pretraining", "injection_ratio": "0.4", "policy": "uniform"}


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[ServiceUnderTest]:
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=SEQ_LEN, vocab_size=vocab_size, serve=True) as found:
        yield found


@pytest.fixture(autouse=True)
def address(service: ServiceUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_URL", service.url)


class Named(RehearsalTrainer):
    rehearsal_settings: ClassVar[Any] = {**SETTINGS, "run": "of-the-class"}


def trained(kind: type[RehearsalTrainer], args: TrainingArguments, tiny_model: Path) -> RehearsalTrainer:
    trainer = kind(model=AutoModelForCausalLM.from_pretrained(tiny_model), args=args, train_dataset=dataset())
    trainer.train()
    return trainer


def test_the_settings_of_the_class_make_a_run_of_the_trainers_own_batch_size(
    service: ServiceUnderTest, tiny_model: Path, tmp_path: Path
) -> None:
    trained(Named, arguments(tmp_path, gradient_accumulation_steps=2, max_steps=3, seed=5), tiny_model)
    with service.client() as client:
        config = client.run("of-the-class")["config"]
        assert (config["global_batch_size"], config["injection_mode"], config["seed"]) == (8, "add", 5)
        assert client.stats("of-the-class")["num_reported"] == client.stats("of-the-class")["rows_rehearsed"] > 0


@pytest.mark.parametrize("place", ["arguments", "environment"])
def test_arguments_or_the_environment_hold_settings_and_the_folder_names_the_run(
    service: ServiceUnderTest, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    args = arguments(tmp_path / f"From {place}!", max_steps=2)
    if place == "arguments":
        args.rehearsal = dict(SETTINGS)
    else:
        monkeypatch.setenv("REPLAY_REHEARSAL", json.dumps(SETTINGS))
    trained(RehearsalTrainer, args, tiny_model)
    with service.client() as client:
        assert client.run(f"from-{place}")["next_step"] == 2


def test_a_trainer_knows_when_rehearsal_lasts(service: ServiceUnderTest, tiny_model: Path, tmp_path: Path) -> None:
    class Timed(RehearsalTrainer):
        rehearsal_settings: ClassVar[Any] = {**SETTINGS, "injection_ratio": "0.2", "run": "timed", "timing": "lasting"}

    args = arguments(tmp_path, max_steps=4, lr_scheduler_type="constant_with_warmup")
    trained(Timed, args, tiny_model)
    with service.client() as client:
        config = client.run("timed")["config"]
        assert (config["injection_ratio"], config["schedule"]["points"]) == ("0.047619048", [[3, "0.459459459"]])
    with pytest.raises(InvalidTraining, match=r"timing lasting knows the learning rates constant.* not inverse_sqrt"):
        trained(Timed, arguments(tmp_path, max_steps=4, lr_scheduler_type="inverse_sqrt"), tiny_model)


def test_a_second_training_of_another_batch_size_is_refused_by_the_service(
    service: ServiceUnderTest, tiny_model: Path, tmp_path: Path
) -> None:
    class Again(RehearsalTrainer):
        rehearsal_settings: ClassVar[Any] = {**SETTINGS, "run": "again"}

    trained(Again, arguments(tmp_path, max_steps=2), tiny_model)
    trained(Again, arguments(tmp_path, max_steps=2), tiny_model)
    with pytest.raises(ServiceRefused, match="run-exists"):
        trained(Again, arguments(tmp_path, max_steps=2, per_device_train_batch_size=8), tiny_model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "nothing says what to rehearse; give the trainer rehearsal="),
        ({}, "nothing says what to rehearse"),
        ({"corpus": "pretraining", "injection_ration": "0.4"}, "rehearsal.* unknown key; did you mean injection_ratio"),
        ({"corpus": "pretraining", "service_url": "localhost"}, "service_url: .*no URL of a service"),
        ({"injection_ratio": "0.4"}, "corpus: Field required"),
        ({**SETTINGS, "injection_mode": "replace"}, "injection_mode.*add"),
        ("pretraining", "must be a mapping of settings, not a str"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_before_training(
    tiny_model: Path, tmp_path: Path, settings: Any, said: str
) -> None:
    args = arguments(tmp_path)
    args.rehearsal = settings
    with pytest.raises(InvalidTraining, match=said):
        RehearsalTrainer(model=AutoModelForCausalLM.from_pretrained(tiny_model), args=args)


def test_an_environment_that_holds_no_json_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_REHEARSAL", "{corpus: pretraining}")
    with pytest.raises(InvalidTraining, match="REPLAY_REHEARSAL holds no JSON"):
        RehearsalTrainer(model=AutoModelForCausalLM.from_pretrained(tiny_model), args=arguments(tmp_path))


@pytest.mark.parametrize(("topk", "teacher"), [(4, "stored"), (0, None)])
def test_distilled_rows_learn_from_what_the_corpus_stores_where_it_does(
    tmp_path: Path, topk: int, teacher: str | None
) -> None:
    with replay_service(topk=topk, serve=True) as found:
        settings = {"corpus": found.corpus, "run": "r", "recipe": "recommended", "service_url": found.url}
        rehearsal = OwnRun.of(settings, arguments(tmp_path), {}).rehearsal()
        assert (rehearsal.teacher, rehearsal.rehearsal_loss, rehearsal.rehearsal_weight) == (teacher, "distill", 3.0)
        rehearsal.client.close()
