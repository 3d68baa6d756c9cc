"""Models whose weights are not all there, or that are no models, are refused in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, ResNetConfig, ResNetForImageClassification

from replay_service.classification.model import load_classifier
from replay_service.errors import CorpusError
from replay_service.language.model import load_config, load_model, outline_of
from replay_service.language.pretrained import is_hub_name
from replay_service.language.tokenizer import load_tokenizer
from tests.language.faulty_models import with_config, with_pointer, with_prefix, with_weights
from tests.support import make_tiny_model


def outlined(name: str) -> Any:
    return outline_of(name, 8)


loads = pytest.mark.parametrize("load", [load_model, outlined])
Load = Callable[[str], Any]


def refusal(load: Load, name: Path | str) -> str:
    with pytest.raises(CorpusError) as refused:
        load(str(name))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@loads
@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("_orig_mod.", "which torch.compile puts there"),
        ("module.", "which DistributedDataParallel puts there"),
        ("net.", "begin with 'net.': save the model that was wrapped"),
    ],
)
def test_weights_under_other_names_are_refused_and_the_prefix_is_named(
    tiny_model: Path, tmp_path: Path, load: Load, prefix: str, hint: str
) -> None:
    said = refusal(load, with_prefix(tiny_model, tmp_path / "wrapped", prefix))
    assert "lm_head.weight, model.embed_tokens.weight" in said and "more" in said
    assert hint in said


@loads
def test_a_layer_that_is_missing_is_refused(tiny_model: Path, tmp_path: Path, load: Load) -> None:
    model = with_weights(
        tiny_model,
        tmp_path / "short",
        lambda weights: {name: each for name, each in weights.items() if ".layers.1." not in name},
    )
    assert "would stay random: model.layers.1." in refusal(load, model)


@loads
def test_weights_that_the_configuration_leaves_out_are_refused(tiny_model: Path, tmp_path: Path, load: Load) -> None:
    said = refusal(load, with_config(tiny_model, tmp_path / "cut", num_hidden_layers=1))
    assert "leaves out: model.layers.1." in said
    biased = with_weights(
        tiny_model,
        tmp_path / "biased",
        lambda weights: {**weights, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
    )
    assert "leaves out: model.layers.0.self_attn.q_proj.bias" in refusal(load, biased)


@loads
def test_weights_of_another_shape_are_refused_with_both_shapes(tiny_model: Path, tmp_path: Path, load: Load) -> None:
    said = refusal(load, with_config(tiny_model, tmp_path / "wide", intermediate_size=48))
    assert "[64, 32]" in said.replace("[32, 64]", "[64, 32]") and "48" in said


@loads
def test_what_has_no_part_in_the_predictions_may_be_left_over(tiny_model: Path, tmp_path: Path, load: Load) -> None:
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "pooler.dense.weight": torch.ones(2, 2)}
    load(str(with_weights(tiny_model, tmp_path / "more", lambda weights: {**weights, **more})))


@loads
def test_a_head_that_is_tied_to_the_embedding_may_be_absent(tiny_model: Path, tmp_path: Path, load: Load) -> None:
    def without_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: each for name, each in weights.items() if name != "lm_head.weight"}

    untied = with_weights(tiny_model, tmp_path / "untied", without_head)
    assert "random: lm_head.weight" in refusal(load, untied)
    load(str(with_config(untied, tmp_path / "tied", tie_word_embeddings=True)))


def test_of_buffers_only_statistics_are_learned(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=2)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "whole")

    def without(name: str) -> Path:
        return with_weights(
            tmp_path / "whole",
            tmp_path / name,
            lambda weights: {key: each for key, each in weights.items() if not key.endswith(name)},
        )

    load_classifier(str(without("num_batches_tracked")), is_text=False)
    with pytest.raises(CorpusError, match=r"would stay random: .*running_mean"):
        load_classifier(str(without("running_mean")), is_text=False)


def test_a_classifier_without_its_head_is_refused(tiny_model: Path) -> None:
    with pytest.raises(CorpusError, match=r"would stay random: score\.weight"):
        load_classifier(str(tiny_model), is_text=True)


@loads
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(tiny_model: Path, tmp_path: Path, load: Load, file: str) -> None:
    said = refusal(load, with_pointer(tiny_model, tmp_path / "cloned", file))
    assert said.startswith(f"{file} in ") and "git lfs pull" in said


@loads
def test_a_file_that_was_cut_off_is_refused(tiny_model: Path, tmp_path: Path, load: Load) -> None:
    model = with_config(tiny_model, tmp_path / "cut")
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    assert "no causal language model could be loaded" in refusal(load, model)


def test_a_folder_without_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = with_config(tiny_model, tmp_path / "bare")
    (model / "model.safetensors").unlink()
    assert "holds no weights" in refusal(outlined, model)


@pytest.mark.parametrize(
    "name", ["./nothing", "../nothing", "/no/such/folder", "~/nothing/there", "a/b/c", "a/b/", "a/.."]
)
def test_a_path_that_is_not_there_is_no_hub_name(name: str) -> None:
    assert not is_hub_name(name)
    assert refusal(load_config, name).endswith("there is no such folder")


def test_a_name_within_a_folder_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("models/tiny")
    Path("models").mkdir()
    assert not is_hub_name("models/tiny")
    said = refusal(load_config, "models/tiny")
    assert "'models/tiny': there is no such folder in 'models'; to take the model of that name from the" in said


def test_a_folder_without_a_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = with_config(tiny_model, tmp_path / "mute")
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "holds no tokenizer; save it beside the config.json" in refusal(load_tokenizer, model)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter and not a model" in refusal(load_config, tmp_path)


def test_a_file_is_no_model(tiny_model: Path) -> None:
    assert "name the folder that it is in" in refusal(load_config, tiny_model / "model.safetensors")


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-70m", "meta-llama/Llama-3.1-8B"])
def test_names_of_the_hub_are_told_from_paths(name: str) -> None:
    assert is_hub_name(name)


def test_an_encoder_decoder_is_refused_with_the_reason(tiny_model: Path, tmp_path: Path) -> None:
    model = with_config(tiny_model, tmp_path / "t5", model_type="t5", is_encoder_decoder=True)
    assert "is an encoder-decoder (t5)" in refusal(outlined, model)


def test_a_model_of_no_causal_kind_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = with_config(tiny_model, tmp_path / "vit")
    BertConfig().save_pretrained(model)
    (model / "config.json").write_text('{"model_type": "vit"}')
    assert "no causal language model could be loaded" in refusal(outlined, model)


def test_an_outline_has_the_sizes_and_reads_no_weights(tiny_model: Path) -> None:
    outline = outline_of(str(tiny_model), 64)
    vocab_size = AutoModelForCausalLM.from_pretrained(tiny_model).config.vocab_size
    assert (outline.vocab_size, outline.num_logits) == (vocab_size, vocab_size)
    with pytest.raises(CorpusError, match="65 is beyond the model's 64 positions"):
        outline_of(str(tiny_model), 65)


def test_a_tokenizer_that_gives_ids_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    tokenizer = outline_of(str(model), 8).tokenizer
    num_known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(model)
    assert outline_of(str(model), 8).vocab_size == num_known
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(model)
    assert f"gives ids up to {num_known + 1}, but the model has embeddings for {num_known}" in refusal(outlined, model)


def test_a_head_may_be_wider_than_the_tokenizer(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path)
    wide = AutoModelForCausalLM.from_pretrained(model)
    num_tokens = wide.config.vocab_size
    wide.resize_token_embeddings(num_tokens + 64, mean_resizing=False)
    wide.save_pretrained(model)
    outline = outline_of(str(model), 8)
    assert (outline.vocab_size, outline.num_logits) == (num_tokens, num_tokens + 64)
