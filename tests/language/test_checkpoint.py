import json
import shutil
from pathlib import Path

from transformers import AutoModelForCausalLM

from replay_service.language.checkpoint import checkpoint_fingerprint
from tests.language.faulty_models import with_config, with_weights
from tests.support import make_tiny_model


def test_the_same_model_by_another_path_has_the_same_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    known = checkpoint_fingerprint(str(tiny_model))
    assert len(known) == 16
    copied = shutil.copytree(tiny_model, tmp_path / "copied")
    assert checkpoint_fingerprint(str(copied)) == known
    said_otherwise = with_config(tiny_model, tmp_path / "other", transformers_version="9.9", _name_or_path="elsewhere")
    assert checkpoint_fingerprint(str(said_otherwise)) == known


def test_how_weights_are_dealt_out_to_files_does_not_count(tiny_model: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "cut", max_shard_size="30KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    assert checkpoint_fingerprint(str(tmp_path / "cut")) == checkpoint_fingerprint(str(tmp_path / "whole")) != ""


def test_other_weights_or_another_configuration_have_another_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    tuned = with_weights(
        tiny_model, tmp_path / "tuned", lambda weights: {name: each * 1.01 for name, each in weights.items()}
    )
    stretched = with_config(tiny_model, tmp_path / "stretched", rms_norm_eps=1e-5)
    seeded = make_tiny_model(tmp_path / "seeded", seed=1)
    models = (tiny_model, tuned, stretched, seeded)
    assert len({checkpoint_fingerprint(str(each)) for each in models}) == len(models)


def test_weights_of_the_older_kind_have_one_too(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "pytorch_model.bin").write_bytes(bytes([number]) * 100)
        found.append(checkpoint_fingerprint(str(folder)))
    assert found[0] != found[1]


def test_where_there_are_no_weights_it_is_not_known(tmp_path: Path) -> None:
    assert checkpoint_fingerprint(str(tmp_path)) == ""
    assert checkpoint_fingerprint("/no/such/folder") == ""
    assert checkpoint_fingerprint("nobody/has-this-model") == ""
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint_fingerprint(str(tmp_path)) == ""
