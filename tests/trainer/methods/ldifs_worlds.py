"""Small models, and a slow LDIFS, that its tests compare with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from replay_trainer.methods.ldifs import Drift, FeatureDrift

DEPTH = 5
QUARTERS = (2, 3, 4, 5)
"""The blocks, counted from one, at each quarter of five, rounded up."""


def language_model(depth: int = DEPTH, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=depth,
        num_attention_heads=2,
        max_position_embeddings=16,
        **settings,
    )
    return LlamaForCausalLM(config).train()


def vision_model() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    return ViTModel(config, add_pooling_layer=False).train()


@contextmanager
def cut(model: Any, depth: int, norm: str) -> Iterator[None]:
    """The model without what comes after `depth` blocks."""
    layers, last = model.layers, getattr(model, norm)
    model.layers = layers[:depth]
    setattr(model, norm, nn.Identity())
    yield
    model.layers = layers
    setattr(model, norm, last)


def language_features(model: LlamaForCausalLM, ids: Tensor) -> list[Tensor]:
    """What comes out of the blocks, by a forward pass each of a model that is cut off there."""
    features = []
    for depth in QUARTERS:
        with cut(model.model, depth, "norm"):
            features.append(model.model(input_ids=ids, use_cache=False).last_hidden_state)
    return features


def vision_features(model: ViTModel, pixels: Tensor) -> list[Tensor]:
    features = []
    for depth in (0, *QUARTERS):
        with cut(model, depth, "layernorm"):
            features.append(model(pixel_values=pixels).last_hidden_state)
    return features


def language_reference(tuned: list[Tensor], base: list[Tensor], mask: Tensor) -> Tensor:
    """0.2 times twice one minus the cosine, token by token."""
    values = []
    for ours, theirs in zip(tuned, base, strict=True):
        for row, t in mask.nonzero().tolist():
            u, v = ours[row, t].double(), theirs[row, t].detach().double()
            values.append(2 * (1 - (u @ v) / (u.norm() * v.norm())))
    return 0.2 * torch.stack(values).mean()


def vision_reference(tuned: list[Tensor], base: list[Tensor]) -> Tensor:
    """10 times the mean over layers, rows, tokens and channels, each channel of a row divided by its norm."""
    values = []
    for ours, theirs in zip(tuned, base, strict=True):
        for row in range(len(ours)):
            for channel in range(ours.shape[2]):
                u, v = ours[row, :, channel].double(), theirs[row, :, channel].detach().double()
                values.append(((u / u.norm() - v / v.norm()) ** 2).mean())
    return 10 * torch.stack(values).mean()


def disturbed(model: nn.Module, seed: int = 5) -> nn.Module:
    """The model after some training, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 1e-3, atol: float = 1e-7) -> None:
    """The same gradients; one that is missing is zero."""
    assert any(each.abs().max() > 100 * atol for each in theirs.values())
    for name in ours.keys() | theirs.keys():
        some = ours.get(name, theirs.get(name))
        torch.testing.assert_close(
            ours.get(name, torch.zeros_like(some)), theirs.get(name, torch.zeros_like(some)), rtol=rtol, atol=atol
        )


def token_ids(num_rows: int = 3, num_tokens: int = 6) -> tuple[Tensor, Tensor]:
    """Rows and their mask; the second row is shorter."""
    ids = torch.randint(0, 30, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = False
    return ids, mask


def drift_of(drift: FeatureDrift, model: Any, ids: Tensor, mask: Tensor) -> Drift:
    """Of one forward pass of `model`, which may be wrapped."""
    with drift.recording():
        model(input_ids=ids, use_cache=False)
    return drift.of(mask, lambda base: base(input_ids=ids, use_cache=False))


def conv_net() -> nn.Sequential:
    """Three stages of maps that get smaller."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.ReLU()) for channels in (1, 4, 4)]
    return nn.Sequential(nn.Sequential(*stages), nn.Flatten(), nn.Linear(4, 3))
