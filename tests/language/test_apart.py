from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from replay_service.language.apart import LanguageLosses, take_apart
from replay_service.language.losses import TokenLosses, token_losses
from replay_service.language.model import autocast, prepare_to_score
from replay_service.language.precision import Precision

VOCAB, WIDTH = 200, 12
CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def make_model(kind: str) -> Any:
    torch.manual_seed(0)
    match kind:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**SIZES))
        case "tied llama":
            return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
            )
        case "phi":
            return PhiForCausalLM(PhiConfig(**SIZES))
        case "gemma2":
            return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8))
        case "cohere":
            return CohereForCausalLM(CohereConfig(**SIZES))
        case "granite":
            return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))
    raise AssertionError(kind)


APART = ["llama", "tied llama", "gpt2", "phi"]
WHOLE = ["gemma2", "cohere", "granite"]


def some_rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCAB, (4, WIDTH), generator=generator), torch.tensor([WIDTH, 7, 1, 0])


def plain_losses(model: Any) -> TokenLosses:
    rows = some_rows()
    return token_losses(model(input_ids=rows[0], use_cache=False).logits, *rows)


def gradients(model: Any, losses: TokenLosses) -> list[Tensor]:
    return list(torch.autograd.grad(losses.mean_nats().sum(), list(model.parameters())))


@pytest.mark.parametrize("kind", APART)
def test_a_model_whose_logits_are_its_heads_product_is_taken_apart(kind: str) -> None:
    model = make_model(kind)
    parts = take_apart(model)
    assert parts is not None
    ids = some_rows()[0]
    model.eval()
    torch.testing.assert_close(parts.head(parts.hidden(ids)), model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_model_that_caps_or_scales_its_logits_is_left_whole(kind: str) -> None:
    assert take_apart(make_model(kind)) is None


def test_a_cap_that_small_logits_do_not_feel_is_noticed() -> None:
    model = make_model("gemma2").eval()
    ids = some_rows()[0]
    plain = model.lm_head(model.base_model(ids).last_hidden_state)
    torch.testing.assert_close(model(input_ids=ids).logits, plain, atol=1e-4, rtol=1e-4)
    assert take_apart(model) is None


def test_a_head_that_takes_something_else_than_the_bodys_output_is_left_whole() -> None:
    model = make_model("llama")
    model.lm_head.register_forward_pre_hook(lambda _, arguments: (2 * arguments[0],))
    assert take_apart(model) is None


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_model_prepared_to_score_is_taken_apart_too(precision: Precision) -> None:
    model = prepare_to_score(make_model("tied llama").eval(), precision)
    with torch.inference_mode(), autocast(precision, CPU):
        assert take_apart(model) is not None


def test_to_take_a_model_apart_changes_neither_it_nor_generators() -> None:
    model = make_model("gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    take_apart(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize("kind", [*APART, *WHOLE])
def test_losses_and_gradients_are_those_of_the_models_logits(kind: str) -> None:
    model = make_model(kind).eval()
    module = LanguageLosses(model)
    ours, plain = module(*some_rows()), plain_losses(model)
    torch.testing.assert_close(ours.nll_BS, plain.nll_BS, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.correct_BS, plain.correct_BS)
    for one, other in zip(gradients(model, ours), gradients(model, plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_module_of_losses_has_the_models_parameters_and_modes() -> None:
    model = make_model("llama").eval()
    module = LanguageLosses(model)
    assert [id(each) for each in module.parameters()] == [id(each) for each in model.parameters()]
    assert not model.training
    module.train()
    assert model.training


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch hides it, but not from a filter that makes errors
def test_a_compiled_module_gives_the_same_losses_and_gradients() -> None:
    model = make_model("llama").eval()
    module = LanguageLosses(model)
    plain = module(*some_rows())
    compiled = torch.compile(module, backend="eager")(*some_rows())
    torch.testing.assert_close(compiled.nll_BS, plain.nll_BS)
    for one, other in zip(gradients(model, compiled), gradients(model, plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_distributed_training_wraps_a_module_of_losses(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = make_model("tied llama").eval()
        plain = gradients(model, plain_losses(model))
        losses = DistributedDataParallel(LanguageLosses(model))(*some_rows())
        assert isinstance(losses, TokenLosses)
        torch.autograd.backward(losses.mean_nats().sum())
    finally:
        torch.distributed.destroy_process_group()
    for parameter, expected in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)
