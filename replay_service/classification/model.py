"""Models that classify: loading one, telling two apart, and calling one.

A model is named by a local folder or a hub name of the library transformers, or by a factory,
`package.module:callable`, which is called without arguments and gives a `torch.nn.Module`:

what is classified   the module is called with                                gives
tensors              float32 [B, ...], the numbers as they are stored         logits [B, C]
text                 input_ids int64 [B, T], attention_mask int64 [B, T]      logits [B, C]

So the module scales and normalises by itself what is stored as bytes. A model of transformers gets a tensor as its main
input, `pixel_values`, as it is stored, too: store what its processor gives, or wrap it in a factory.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from replay_service.classification.factory import is_factory, made_by
from replay_service.errors import CorpusError
from replay_service.language.pretrained import load_weights


def load_classifier(name: str, *, is_text: bool) -> nn.Module:
    """The model, with float32 weights, in evaluation mode; raises CorpusError when there is none."""
    model = _made_by(name) if is_factory(name) else _pretrained(name, is_text)
    return model.float().eval()


def fingerprint(model: nn.Module) -> str:
    """Equal for models with equal weights: a hash of their names, types, shapes and numbers, 16 hex digits."""
    found = hashlib.sha256()
    for name, each in sorted(model.state_dict().items()):
        found.update(f"{name} {each.dtype} {tuple(each.shape)}\n".encode())
        found.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits of a batch, [B, C].

    Args:
        model: of transformers, or such as a factory gives.
        inputs: one tensor, or `input_ids` and `attention_mask`, in the order in which a factory's model takes them.

    Raises:
        CorpusError: when the model gives something else.
    """
    name = getattr(model, "main_input_name", None)
    first, *more = inputs.values()
    output = model(first, *more) if name is None else model(**{**inputs, name: first} if more else {name: first})
    logits = getattr(output, "logits", output)
    num_rows = len(first)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_rows:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CorpusError(
            f"the model must give logits [rows, classes], not {found} for {num_rows} rows; wrap it in one that does"
        )
    return logits


def _made_by(name: str) -> nn.Module:
    model = made_by(name)
    if not isinstance(model, nn.Module):
        raise CorpusError(f"the factory {name!r} gives {type(model).__name__}, not a torch.nn.Module")
    return model


def _pretrained(name: str, is_text: bool) -> nn.Module:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    what, loader = (
        ("text", AutoModelForSequenceClassification) if is_text else ("images", AutoModelForImageClassification)
    )
    model: nn.Module = load_weights(loader, f"model that classifies {what}", name)
    return model
