"""Causal language models: loading one, and in which precision it runs."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from replay_service.errors import CorpusError
from replay_service.language.precision import Precision
from replay_service.language.pretrained import check_has_weights, load_weights, loading
from replay_service.language.tokenizer import largest_id, load_tokenizer, vocab_size

_WHAT: Final = "causal language model"


def load_config(name_or_path: str) -> Any:
    """The configuration of a model; raises CorpusError when there is none."""
    from transformers import AutoConfig

    with loading("model configuration", name_or_path):
        return AutoConfig.from_pretrained(name_or_path)


def load_model(name_or_path: str) -> Any:
    """A causal language model with float32 weights, from a local folder or by its hub name, in evaluation mode.

    Raises:
        CorpusError: when there is none, or the checkpoint does not hold all of its weights.
    """
    from transformers import AutoModelForCausalLM

    return load_weights(AutoModelForCausalLM, _WHAT, name_or_path)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of a causal language model before its weights are read."""

    tokenizer: Any
    vocab_size: int
    """Ids that both the tokenizer and the model know lie below it."""
    num_logits: int
    """Width of the head, which may be more than the tokenizer has tokens."""


def outline_of(name_or_path: str, seq_len: int) -> Outline:
    """Find what is wrong with a causal language model and its tokenizer, as far as that shows without its weights.

    Raises:
        CorpusError: when there is none, when it is an encoder-decoder, when its checkpoint does not hold all of its
            weights, when it has fewer positions than `seq_len`, or when its tokenizer gives ids that it does not know.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(name_or_path)
    if config.is_encoder_decoder:
        raise CorpusError(
            f"the model {name_or_path!r} is an encoder-decoder ({config.model_type}), which does not predict a text "
            "from left to right; take a causal language model"
        )
    check_has_weights(name_or_path)
    tokenizer = load_tokenizer(name_or_path)
    model = load_weights(AutoModelForCausalLM, _WHAT, name_or_path, is_outline=True)
    check_seq_len(config, seq_len, _usable_positions(model))
    num_known = len(model.get_input_embeddings().weight)
    check_vocabulary(tokenizer, num_known, name_or_path)
    head = model.get_output_embeddings()
    if head is None:
        raise CorpusError(
            f"the model {name_or_path!r} ({config.model_type}) has no head of one matrix, which scoring needs; take "
            "another causal language model"
        )
    return Outline(tokenizer, min(vocab_size(tokenizer), num_known), len(head.weight))


def check_vocabulary(tokenizer: Any, num_known: int, name: str) -> None:
    """Raises CorpusError when a text may have a token that a model with `num_known` embeddings does not know."""
    largest = largest_id(tokenizer)
    if largest >= num_known:
        raise CorpusError(
            f"the tokenizer of {name!r} gives ids up to {largest}, but the model has embeddings for {num_known} tokens "
            "only; resize them (model.resize_token_embeddings), or take the tokenizer that the model was trained with"
        )


def prepare_to_score(model: Any, precision: Precision) -> Any:
    """The model for forward passes alone: what `bf16` would cast in every pass is cast once, to the same results."""
    model.requires_grad_(False)
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                # A parameter of its own: weights that are tied to an embedding stay float32 there.
                module.weight = torch.nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)
    return model


def check_seq_len(config: Any, seq_len: int, num_usable: int | None = None) -> None:
    """Raises CorpusError when rows of `seq_len` tokens are more than the model states positions for.

    Some models have fewer than they state: `num_usable`, if known; else `replay_service.language.trial` finds out.
    """
    stated = getattr(config, "max_position_embeddings", None)
    limits = [each for each in (stated, num_usable) if each is not None]
    if limits and seq_len > min(limits):
        raise too_long(seq_len, min(limits))


def _usable_positions(model: torch.nn.Module) -> int | None:
    """How many positions are left where those up to that of padding are not used, as RoBERTa has it; None elsewhere."""
    padded = [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return min(padded, default=None)


def too_long(seq_len: int, limit: int) -> CorpusError:
    return CorpusError(f"seq_len {seq_len} is beyond the model's {limit} positions; choose at most {limit}")


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards as it was, module by module."""
    in_training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in in_training:
            module.training = True


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context to run a forward pass in."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def faster_precision() -> Precision:
    """`bf16` where this machine multiplies matrices faster in it: a measurement of some milliseconds."""
    device = best_device()
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if _matmul_time_s(torch.bfloat16) < _matmul_time_s(torch.float32) else "float32"


def _matmul_time_s(dtype: torch.dtype) -> float:
    left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return min(times)
