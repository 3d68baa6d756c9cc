"""Causal language models: loading one, and in which precision it runs."""

import contextlib
import time
from typing import Any

import torch

from replay_service.errors import CorpusError
from replay_service.language.precision import Precision


def load_config(name_or_path: str) -> Any:
    """The configuration of a model; raises CorpusError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise CorpusError(f"no model configuration could be loaded from {name_or_path!r}: {error}") from error


def load_model(name_or_path: str) -> Any:
    """A causal language model with float32 weights, from a local folder or by its hub name, in evaluation mode."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CorpusError(f"no causal language model could be loaded from {name_or_path!r}: {error}") from error
    return model.eval()


def prepare_to_score(model: Any, precision: Precision) -> Any:
    """The model for forward passes alone: what `bf16` would cast in every pass is cast once, to the same results."""
    model.requires_grad_(False)
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                # A parameter of its own: weights that are tied to an embedding stay float32 there.
                module.weight = torch.nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)
    return model


def check_seq_len(config: Any, seq_len: int) -> None:
    """Raises CorpusError when rows of `seq_len` tokens are more than the model has positions for."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and seq_len > limit:
        raise CorpusError(f"seq_len {seq_len} is beyond the model's {limit} positions; choose at most {limit}")


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
