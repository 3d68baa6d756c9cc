"""The teacher of distilled rehearsal: the base model itself, run on the rehearsed rows alone.

A corpus can store a few of the base model's likeliest tokens (`replay_trainer.methods.distill`). The base model says
all of it, for a forward pass on the rehearsed rows: with a share p of the batch, about p / 3 of a step. With adapters
(LoRA) it is the model in training with its adapters off and takes no memory; otherwise it is a frozen copy.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from replay_trainer.errors import InvalidTraining

_MEMINFO: Final = Path("/proc/meminfo")
_SPARE: Final = 1.1
"""How much more memory than the copy takes must be free."""


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the model as it is now, without dropout, that no optimizer changes; as large as the model.

    Raises:
        InvalidTraining: when there is not enough memory for it, or the model's weights are spread over processes.
    """
    _check_whole(model)
    _check_memory(model)
    return copy.deepcopy(model).eval().requires_grad_(False)


class Teacher:
    """The base model of a model that is trained.

    Build it before training, and before the model is restored from a checkpoint: the base model is what the weights
    are now.

    Args:
        model: what is trained, bare: what DDP would be given, not DDP itself.
        base: the frozen base model, as `frozen_copy` makes one. None for a model with adapters, which is the base model
            when its adapters are off; it must have `disable_adapter()`, as those of the library peft do.

    Raises:
        InvalidTraining: when there is none and the model has no adapters to turn off.
    """

    def __init__(self, model: nn.Module, *, base: nn.Module | None) -> None:
        if base is None and not hasattr(model, "disable_adapter"):
            raise InvalidTraining(
                f"{type(model).__name__} has no adapters to turn off, so the base model must be given: "
                "base=frozen_copy(model), before training"
            )
        self._model, self._base = model, base

    @classmethod
    def of(cls, model: nn.Module) -> "Teacher":
        """The model as it is now: by its adapters if it has any, else by a frozen copy."""
        return cls(model, base=None if hasattr(model, "disable_adapter") else frozen_copy(model))

    @contextmanager
    def speaking(self) -> Iterator[Any]:
        """The base model, to be called within it; without gradients and without dropout."""
        with torch.no_grad():
            if self._base is not None:
                yield self._base
            else:
                with adapters_off(self._model):
                    yield self._model


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The model as its base model: adapters off, nothing dropped out; afterwards as it was, module by module."""
    in_training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with model.disable_adapter():
            yield
    finally:
        for module in in_training:
            module.training = True


def _check_whole(model: nn.Module) -> None:
    if any(hasattr(each, "ds_id") or type(each).__name__ == "DTensor" for each in model.parameters()):
        raise InvalidTraining(
            "the base model cannot be copied, since its weights are spread over processes (FSDP or ZeRO-3); train "
            "adapters (LoRA), whose base model needs no copy, or learn from the corpus's stored tokens"
        )


def _check_memory(model: nn.Module) -> None:
    num_bytes = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    device = next(iter(model.parameters()), torch.empty(0)).device
    free = _free_bytes(device)
    if free is not None and free < _SPARE * num_bytes:
        raise InvalidTraining(
            f"a frozen copy of the base model takes {num_bytes / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free "
            f"on {device}; train adapters (LoRA), whose base model needs no copy, or learn from the corpus's stored "
            "tokens"
        )


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where nobody tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10
