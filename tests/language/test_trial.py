from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from replay_service.errors import CorpusError
from replay_service.language.model import autocast, load_model
from replay_service.language.precision import Precision
from replay_service.language.scoring import RowScorer
from replay_service.language.trial import check_model, check_takes
from tests.language.faulty_models import bert_encoder, roberta_decoder

CPU = torch.device("cpu")


def llama(vocab_size: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_model_that_sees_the_future_is_refused(tiny_model: Path, tmp_path: Path, precision: Precision) -> None:
    model = bert_encoder(tiny_model, tmp_path / "encoder")
    with autocast(precision, CPU), pytest.raises(CorpusError, match=r"\(bert\) is not causal"):
        check_model(load_model(str(model)), 8)
    with pytest.raises(CorpusError, match="is not causal"):
        RowScorer(str(model), precision, batch_size=1, device=CPU)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_causal_models_are_taken(tiny_model: Path, tmp_path: Path, precision: Precision) -> None:
    for model in (tiny_model, roberta_decoder(tiny_model, tmp_path / "decoder", 34)):
        with autocast(precision, CPU):
            check_model(load_model(str(model)), 32)


def test_a_model_that_says_the_same_of_everything_or_nothing_at_all_is_causal() -> None:
    model = llama(vocab_size=50)
    for value in (0.0, float("nan")):
        torch.nn.init.constant_(model.lm_head.weight, value)
        check_model(model, 8)


def test_a_model_of_few_tokens_is_tried_too() -> None:
    check_model(llama(vocab_size=3), 8)


@pytest.mark.parametrize("seq_len", [33, 34, 1000])
def test_how_many_tokens_a_model_takes_is_found_by_trying(tiny_model: Path, tmp_path: Path, seq_len: int) -> None:
    model = roberta_decoder(tiny_model, tmp_path / "decoder", 34)
    with pytest.raises(CorpusError, match=f"seq_len {seq_len} is beyond the model's 32 positions; choose at most 32"):
        RowScorer(str(model), "float32", batch_size=1, device=CPU, seq_len=seq_len)


def test_a_model_that_takes_no_tokens_is_refused_with_its_reason() -> None:
    def run(_length: int) -> None:
        raise RuntimeError("no kernel for this")

    with pytest.raises(CorpusError, match="cannot run: no kernel for this"):
        check_takes(run, 8)


def test_too_little_memory_is_no_limit_of_the_model() -> None:
    def run(_length: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        check_takes(run, 8)


def test_trying_changes_neither_the_mode_nor_the_generator(tiny_model: Path) -> None:
    model = load_model(str(tiny_model)).train()
    state = torch.random.get_rng_state()
    check_model(model, 16)
    assert model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(each.grad is None for each in model.parameters())
