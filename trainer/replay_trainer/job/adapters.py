"""Adapters (LoRA): small matrices beside the model's, which learn while it stays as it is.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, as the library peft has it.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replay_trainer.config import LoraConfig
from replay_trainer.errors import InvalidTraining


def check_peft() -> None:
    """Raises InvalidTraining when the library is missing; nothing is loaded."""
    from importlib.util import find_spec

    if find_spec("peft") is None:
        raise InvalidTraining("[lora] needs the package peft: pip install 'replay-service[lora]', or leave it out")


class Adapters:
    """The adapters of a model, which is changed in place: afterwards they alone learn.

    Args:
        model: a causal language model of the library transformers.
        config: how large they are and where they stand.

    Raises:
        InvalidTraining: when the model has no such modules.
    """

    def __init__(self, model: Any, config: LoraConfig) -> None:
        check_peft()
        import peft

        targets = config.target_modules
        settings = peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        try:
            with warnings.catch_warnings():
                # It asks the model for something that transformers has given another name.
                warnings.simplefilter("ignore", FutureWarning)
                # As peft wraps it: `disable_adapter` makes it the base model for a while.
                self.with_model: Any = peft.get_peft_model(model, settings)
        except ValueError as error:
            raise InvalidTraining(f"[lora] does not fit the model: {error}") from error

    @staticmethod
    def path_of(layer: str) -> str:
        """The path of one of the model's modules in the model with adapters."""
        return f"base_model.model.{layer}"

    def state_dict(self) -> dict[str, Tensor]:
        return {name: each.detach() for name, each in self.with_model.named_parameters() if each.requires_grad}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises InvalidTraining when these are the weights of other adapters."""
        own = self.state_dict()
        shapes = [{name: tuple(each.shape) for name, each in weights.items()} for weights in (own, state)]
        if shapes[0] != shapes[1]:
            raise InvalidTraining("the checkpoint is of adapters with another r or other target_modules; put them back")
        for name, weight in own.items():
            weight.copy_(state[name])

    def save(self, folder: Path) -> None:
        """As peft reads them; the base model is named there, and not written."""
        self.with_model.save_pretrained(folder, save_embedding_layers=False)
