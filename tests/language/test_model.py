from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replay_service.errors import CorpusError
from replay_service.language.model import (
    Precision,
    autocast,
    check_seq_len,
    faster_precision,
    load_config,
    load_model,
    outline_of,
    prepare_to_score,
)
from tests.language.faulty_models import roberta_decoder

CPU = torch.device("cpu")
IDS = torch.arange(1, 49).reshape(2, 24)


def logits_of(model: LlamaForCausalLM, precision: Precision) -> torch.Tensor:
    with torch.inference_mode(), autocast(precision, CPU):
        logits: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_model_prepared_to_score_gives_the_very_logits_of_training(tiny_model: Path, precision: Precision) -> None:
    as_trained = logits_of(load_model(str(tiny_model)), precision)
    prepared = logits_of(prepare_to_score(load_model(str(tiny_model)), precision), precision)
    assert prepared.dtype == as_trained.dtype
    assert torch.equal(prepared, as_trained)


def test_a_weight_that_is_tied_to_the_embedding_is_cast_for_the_head_alone() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config).eval()
    as_trained = logits_of(model, "bf16")
    prepared = prepare_to_score(model, "bf16")
    assert torch.equal(logits_of(prepared, "bf16"), as_trained)
    assert prepared.get_input_embeddings().weight.dtype == torch.float32
    assert prepared.get_output_embeddings().weight.dtype == torch.bfloat16


def test_precisions_differ_so_the_comparison_says_something(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    assert not torch.equal(logits_of(model, "bf16").float(), logits_of(model, "float32"))


def test_a_model_is_loaded_in_float32_and_for_evaluation(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_a_model_prepared_to_score_has_nothing_to_train(tiny_model: Path) -> None:
    for precision in ("float32", "bf16"):
        model = prepare_to_score(load_model(str(tiny_model)), precision)
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_rows_up_to_the_models_positions_are_allowed_and_longer_ones_refused(tiny_model: Path) -> None:
    config = load_config(str(tiny_model))
    check_seq_len(config, 64)
    with pytest.raises(CorpusError, match="65 is beyond the model's 64 positions"):
        check_seq_len(config, 65)


@pytest.mark.parametrize("seq_len", [33, 34, 64])
def test_positions_that_stand_for_padding_are_no_limit_to_choose(
    tiny_model: Path, tmp_path: Path, seq_len: int
) -> None:
    model = str(roberta_decoder(tiny_model, tmp_path / "roberta", 34))
    assert outline_of(model, 32).num_logits > 0
    with pytest.raises(CorpusError, match=f"seq_len {seq_len} is beyond the model's 32 positions; choose at most 32"):
        outline_of(model, seq_len)


def test_a_model_that_states_no_limit_takes_rows_of_any_length() -> None:
    check_seq_len(object(), 10**6)


@pytest.mark.parametrize("load", [load_config, load_model])
def test_a_folder_without_a_model_is_named_in_the_error(tmp_path: Path, load: object) -> None:
    with pytest.raises(CorpusError, match=str(tmp_path)):
        load(str(tmp_path))  # type: ignore[operator]


def test_the_faster_precision_is_one_that_can_be_asked_for() -> None:
    assert faster_precision() in ("float32", "bf16")
