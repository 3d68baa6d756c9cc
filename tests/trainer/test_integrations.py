"""The plugins for programs that build the Trainer themselves, with modules that stand in for those programs.

What was tried with the programs themselves is in the README beside each plugin.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Trainer

from replay_service.testing import ServiceUnderTest, replay_service
from tests.trainer.hf_worlds import SEQ_LEN, arguments, dataset

INTEGRATIONS = Path(__file__).parents[2] / "integrations"
SETTINGS = {"corpus": "pretraining", "injection_ratio": "0.4", "policy": "uniform"}


class OfTheProgram(Trainer):  # type: ignore[misc]
    """Its trainer, whose loss is its own."""

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        return super().compute_loss(*args, **options)


class OtherOfTheProgram(OfTheProgram):
    pass


@pytest.fixture(scope="module")
def service(tiny_model: Path) -> Iterator[ServiceUnderTest]:
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    with replay_service(seq_len=SEQ_LEN, vocab_size=vocab_size, serve=True) as found:
        yield found


def stand_in(patched: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """A module of this name with these contents, and the packages that it is in."""
    package = ""
    for part in name.split("."):
        parent, package = package, f"{package}.{part}".lstrip(".")
        if package not in sys.modules:
            patched.setitem(sys.modules, package, ModuleType(package))
        if parent:
            patched.setattr(sys.modules[parent], part, sys.modules[package], raising=False)
    vars(sys.modules[name]).update(contents)
    return sys.modules[name]


def plugin(patched: pytest.MonkeyPatch, folder: str, name: str) -> Any:
    patched.syspath_prepend(INTEGRATIONS / folder)
    patched.delitem(sys.modules, name, raising=False)
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(name, None)


def train(kind: Any, service: ServiceUnderTest, tiny_model: Path, folder: Path, run: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    kind(model=model, args=arguments(folder, max_steps=2), train_dataset=dataset()).train()
    with service.client() as client:
        stats = client.stats(run)
    assert stats["num_reported"] == stats["rows_rehearsed"] > 0


def test_axolotl_gets_a_trainer_that_rehearses_where_the_file_says_so(
    service: ServiceUnderTest, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_URL", service.url)
    stand_in(monkeypatch, "axolotl.core.trainers.base", AxolotlTrainer=OfTheProgram)
    stand_in(monkeypatch, "axolotl.integrations.base", BasePlugin=object)
    module = plugin(monkeypatch, "axolotl", "replay_axolotl")
    rehearsing = module.RehearsalPlugin()
    assert rehearsing.get_input_args() == f"{module.__name__}.{module.RehearsalArgs.__name__}"
    assert rehearsing.get_trainer_cls(SimpleNamespace(rehearsal=None)) is None
    settings = module.RehearsalArgs(rehearsal={**SETTINGS, "run": "axolotl"}).rehearsal
    found = rehearsing.get_trainer_cls(SimpleNamespace(rehearsal=settings))
    assert issubclass(found, OfTheProgram)
    train(found, service, tiny_model, tmp_path, "axolotl")


def test_llama_factory_runs_with_trainers_that_rehearse(
    service: ServiceUnderTest, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLAY_URL", service.url)
    workflows = {}
    for stage, kind in (("sft", {"CustomSeq2SeqTrainer": OfTheProgram}), ("pt", {"CustomTrainer": OtherOfTheProgram})):
        stand_in(monkeypatch, f"llamafactory.train.{stage}.trainer", **kind)
        workflows[stage] = stand_in(monkeypatch, f"llamafactory.train.{stage}.workflow", **kind)
    commands: list[list[str]] = []
    stand_in(monkeypatch, "llamafactory.cli", main=lambda: commands.append(sys.argv[1:]))
    module = plugin(monkeypatch, "llama_factory", "replay_llamafactory")
    monkeypatch.setattr(sys, "argv", ["replay_llamafactory", "train", "job.yaml"])
    module.main()
    assert commands == [["train", "job.yaml"]]
    kinds: list[Any] = [workflows["sft"].CustomSeq2SeqTrainer, workflows["pt"].CustomTrainer]
    assert issubclass(kinds[0], OfTheProgram) and issubclass(kinds[1], OtherOfTheProgram)
    for number, kind in enumerate(kinds):
        run = f"llama-factory-{number}"
        monkeypatch.setattr(kind, "rehearsal_settings", {**SETTINGS, "run": run})
        train(kind, service, tiny_model, tmp_path / run, run)
    monkeypatch.setenv("FORCE_TORCHRUN", "1")
    with pytest.raises(SystemExit, match="start the processes yourself"):
        module.main()
