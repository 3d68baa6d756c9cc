"""LDIFS: on the fine-tuning inputs, the model's features may not move far from the base model's.

Mukhoti, Gal, Torr, Dokania, "Fine-tuning can cripple your foundation model; preserving features may be the solution",
TMLR 2024 (arXiv 2308.13320). To the task's loss is added

    weight * mean over layers l, tokens t and channels d of (u_ltd - v_ltd)^2

    u, v   features of the model in training and of the frozen base model, normalised

No pretraining data is needed. The paper's is `VISION`: for a ViT-B, what comes into the first block and out of blocks
3, 6, 9 and 12, all tokens, each [B, T, D] tensor divided by its norm along the *token* axis, weight 10.

A convolutional network's maps [B, D, H, W] are T = H * W tokens, of which each layer may have another number; each
layer's tokens are averaged before the layers are. That, too, is this project's choice.

For language this project chose `LANGUAGE`: what comes out of the blocks at each quarter of the depth, normalised along
the *hidden* axis, so that a token's features do not depend on how long its row is, nor on the tokens after it; padding
is left out. There the squared difference is summed over the channels, which makes it 2 (1 - cosine), between 0 and 4.
Normalised along T tokens a squared feature is 1 / T on average, so the paper's weight of 10 at the T = 50 tokens of a
ViT-B/32 is worth 10 / 50 = 0.2 here. The paper does not measure this form: take the weight as a place to start.

What it costs is one forward pass of the base model without gradients. The model in training runs once, as ever: hooks
take its features on the way. With adapters (LoRA) the base model is the same weights with adapters off, and takes no
memory.

    stage      takes                              does                              gives
    recording  the forward pass of the task loss  keeps what the layers give        features of all rows
    drift      features, mask, the base model     the base model's forward pass     Drift
    penalty    Drift                              weight * mean                     a term of the loss

Beside a training loop:

    drift = FeatureDrift(model, base=frozen_copy(model))        # base=None for a model with adapters
    model = DistributedDataParallel(torch.compile(model))       # afterwards, whatever wraps the model
    ...
    with drift.recording():
        logits = model(input_ids=input_ids_BT).logits
    moved = drift.of(mask_BT, lambda base: base(input_ids=input_ids_BT))
    loss = task_loss + drift.penalty(moved)

With images every token is real: `FeatureDrift(model, base=..., form=VISION)` and `drift.of(None, lambda base:
base(images))`; of a batch that is mixed with rehearsed images, `rows=slice(num_own)` compares one's own.

Shapes: B rows, T tokens, D channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from replay_trainer.errors import InvalidTraining
from replay_trainer.methods.features import FeatureRecorder, quarters
from replay_trainer.methods.teacher import Teacher


@dataclass(frozen=True, slots=True)
class DriftForm:
    """How far apart two tensors of features are, and how much that counts."""

    normalize_along: Literal["hidden", "tokens"]
    """`hidden`: each token's features have norm 1, and squared differences are summed over the channels. `tokens`: each
    row's values of a channel have norm 1, and squared differences are averaged over the channels."""
    weight: float
    """Weight of the mean distance, in nats if the task's loss is."""
    with_input: bool
    """Whether what comes into the first block is among the default layers."""


LANGUAGE: Final = DriftForm("hidden", 0.2, with_input=False)
"""This project's choice."""
VISION: Final = DriftForm("tokens", 10.0, with_input=True)
"""The paper's."""


class Drift(NamedTuple):
    """How far features have moved, over the tokens of one forward pass."""

    total: Tensor
    """float32 scalar: sum over tokens of the mean over layers of the distance. Without a mask, sum over rows of the
    mean over layers and their tokens. Differentiable."""
    num_tokens: Tensor
    """int64 scalar: tokens that the mask keeps; without a mask, rows."""

    def mean(self) -> Tensor:
        """Over the tokens; 0 where there are none."""
        return self.total / self.num_tokens.clamp(min=1)


class FeatureDrift:
    """Measures how far the features of a model in training have moved from the base model's.

    Build it before the model is wrapped, compiled, or restored from a checkpoint: the hooks must be there when
    `torch.compile` looks, and the base model is what the weights are now.

    Args:
        model: what is trained, bare: what DDP would be given, not DDP itself.
        base: the frozen base model, as `frozen_copy` makes one; any other is frozen here. None for a model with
            adapters, which is the base model when its adapters are off; it must have `disable_adapter()`, as those of
            the library peft do.
        form: `LANGUAGE`, `VISION`, or another.
        layers: paths of the modules whose outputs are compared, such as "model.layers.5"; with ":input" at the end,
            their first input instead. By default the blocks at each quarter of the depth, and in `VISION` what comes
            into the first. Each must be of shape [B, T, D] or [B, D, H, W], or a tuple that begins with that, and run
            once a pass.

    Raises:
        InvalidTraining: when the model has no such layer, or no blocks that can be told; when the base model is built
            differently; when there is none and the model has no adapters to turn off.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        base: nn.Module | None,
        form: DriftForm = LANGUAGE,
        layers: Sequence[str] | None = None,
    ) -> None:
        self._teacher = Teacher(model, base=base)
        if base is not None:
            _check_alike(model, base)
            base.eval().requires_grad_(False)
        self.form = form
        self.layers = tuple(quarters(model, with_input=form.with_input) if layers is None else layers)
        self._tuned = FeatureRecorder(model, self.layers)
        self._frozen = self._tuned if base is None else FeatureRecorder(base, self.layers)
        self._features: dict[str, Tensor] | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, one forward pass of the model in training, wrapped or bare; the backward pass comes later."""
        self._features = None
        with self._tuned.recording() as features:
            yield
        self._features = features

    def of(self, mask_BT: Tensor | None, run_base: Callable[[Any], object], *, rows: slice = slice(None)) -> Drift:
        """How far the features of the recorded pass have moved, which are forgotten then.

        Args:
            mask_BT: bool [B, T], the real tokens of the whole batch; None: every token is real, as in images.
            run_base: called once with the base model, unless there are no rows; runs it on the inputs of `rows`, in the
                arithmetic (autocast) that the model in training ran in. Gradients are off then, and so is dropout. It
                may run the part that has the layers alone: `base.base_model(...)` of a language model of the library
                transformers leaves out the logits.
            rows: those to compare; a batch that is mixed with rehearsed rows compares its fine-tuning rows alone.

        Raises:
            InvalidTraining: when nothing was recorded, when no feature has a gradient to give, or when the base model's
                features are of other shapes.
        """
        tuned, self._features = self._features, None
        if tuned is None:
            raise InvalidTraining("no forward pass was recorded; run the model within `with drift.recording():` first")
        self._tuned.check(tuned)
        _check_gradient(tuned)
        tuned = {layer: feature[rows] for layer, feature in tuned.items()}
        mask = None if mask_BT is None else mask_BT[rows]
        some_BTD = next(iter(tuned.values()))
        # Few models can run no rows at all.
        base = self._base_features(run_base) if len(some_BTD) else tuned
        distances = [self._distance(layer, feature, base[layer], mask) for layer, feature in tuned.items()]
        counted = torch.tensor(len(some_BTD), device=some_BTD.device) if mask is None else mask.sum()
        return Drift(torch.stack(distances).mean(), counted)

    def penalty(self, drift: Drift) -> Tensor:
        """The weight times the mean drift, a term of the loss, float32 scalar.

        Where gradients are averaged over ranks that have different numbers of tokens, this weighs each rank alike. To
        weigh each token alike add `form.weight * drift.total * world_size / tokens of all ranks` instead.
        """
        return self.form.weight * drift.mean()

    def close(self) -> None:
        """Take the hooks off the model."""
        self._tuned.close()
        self._frozen.close()

    def _base_features(self, run_base: Callable[[Any], object]) -> dict[str, Tensor]:
        with self._teacher.speaking() as base, self._frozen.recording() as features:
            run_base(base)
        self._frozen.check(features)
        return features

    def _distance(self, layer: str, tuned_BTD: Tensor, base_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        if mask_BT is None:
            every_BT = torch.ones(tuned_BTD.shape[:2], dtype=torch.bool, device=tuned_BTD.device)
            return self._distance(layer, tuned_BTD, base_BTD, every_BT) / max(1, tuned_BTD.shape[1])
        if tuned_BTD.shape != base_BTD.shape or tuned_BTD.shape[:2] != mask_BT.shape:
            raise InvalidTraining(
                f"the features of {layer} are of shape {tuple(tuned_BTD.shape)} in the rows to compare, of "
                f"{tuple(base_BTD.shape)} in the base model, the mask is of {tuple(mask_BT.shape)}; run the base model "
                "on the same rows"
            )
        return feature_distance(tuned_BTD, base_BTD, mask_BT, self.form.normalize_along)


def feature_distance(
    tuned_BTD: Tensor, base_BTD: Tensor, mask_BT: Tensor, normalize_along: Literal["hidden", "tokens"]
) -> Tensor:
    """The distance between two tensors of features, summed over the tokens that the mask keeps, float32 scalar.

    Args:
        tuned_BTD: any float type; taken to float32. Differentiable.
        base_BTD: likewise.
        mask_BT: bool.
        normalize_along: see `DriftForm`.
    """
    axis = 2 if normalize_along == "hidden" else 1
    with torch.autocast(tuned_BTD.device.type, enabled=False):
        # What padding gives may be anything, NaN too.
        tuned, base = (
            nn.functional.normalize(each.float().masked_fill(~mask_BT[:, :, None], 0.0), dim=axis, eps=1e-10)
            for each in (tuned_BTD, base_BTD)
        )
        squared = (tuned - base).square()
        return squared.sum() if normalize_along == "hidden" else squared.mean(dim=2).sum()


def _check_gradient(features: dict[str, Tensor]) -> None:
    """Of the last feature: what comes before it has one only if it has one itself."""
    layer, feature = next(reversed(features.items()))
    if torch.is_grad_enabled() and not feature.requires_grad:
        raise InvalidTraining(
            f"the features of {layer} have no gradient: either all that comes before them is frozen, or reentrant "
            "gradient checkpointing hides it; choose later layers, or use_reentrant=False"
        )


def _check_alike(model: nn.Module, base: nn.Module) -> None:
    if base is model:
        raise InvalidTraining("the base model is the model in training itself; give base=frozen_copy(model)")
    ours, theirs = ({name: tuple(each.shape) for name, each in m.state_dict().items()} for m in (model, base))
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise InvalidTraining(
            f"the base model is built differently: {len(different)} weights differ in name or shape, the first is "
            f"{name}, {_shape(ours.get(name))} here and {_shape(theirs.get(name))} in the base model; give "
            "base=frozen_copy(model), before training, or base=None for a model with adapters"
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(shape)
