"""Base models that somebody else names."""

import json
from pathlib import Path

import pytest

from replay_service.corpus.ingest.model_files import check_model
from replay_service.errors import CorpusError

NO_PICKLE = "loads no pickle"


def folder_of(path: Path, *files: str) -> str:
    path.mkdir()
    for name in ("config.json", *files):
        (path / name).write_text("{}")
    return str(path)


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M", "a.b/c_d-e", "none"])
def test_a_hub_name_may_be_one(name: str) -> None:
    check_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "x" * 300,
        "a:" + "b" * 300,
        "x" * 10_000,
        "nul\0",
        "half \ud800",
        "a/b/c",
        "/no/such/folder",
        "../up",
        "a--b",
        "a..b",
        "ünïcode",
        "new\nline",
        "https://host/model",
        " ",
        "-a",
        "os:getcwd",
    ],
)
def test_what_names_no_model_is_one_sentence(name: str) -> None:
    with pytest.raises(CorpusError) as refused:
        check_model(name)
    assert len(refused.value.detail) < 400
    assert "\n" not in refused.value.detail


def test_weights_must_be_safetensors(tmp_path: Path) -> None:
    check_model(folder_of(tmp_path / "whole", "model.safetensors"))
    check_model(folder_of(tmp_path / "both", "model.safetensors", "pytorch_model.bin"))
    for number, files in enumerate([(), ("pytorch_model.bin",), ("model.pt",), ("other.safetensors",)]):
        with pytest.raises(CorpusError, match=NO_PICKLE):
            check_model(folder_of(tmp_path / str(number), *files))


@pytest.mark.parametrize(
    ("content", "is_safe"),
    [
        (json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}), True),
        (json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "pytorch_model-2.bin"}}), False),
        (json.dumps({"weight_map": {"a": 1}}), False),
        ("{}", False),
        ("[]", False),
        ("{", False),
    ],
)
def test_an_index_must_name_safetensors_alone(tmp_path: Path, content: str, is_safe: bool) -> None:
    folder = folder_of(tmp_path / "model")
    (tmp_path / "model/model.safetensors.index.json").write_text(content)
    if is_safe:
        check_model(folder)
    else:
        with pytest.raises(CorpusError, match=NO_PICKLE):
            check_model(folder)


def test_an_adapter_is_refused_since_it_names_another_model(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is an adapter"):
        check_model(folder_of(tmp_path / "model", "model.safetensors", "adapter_config.json"))
