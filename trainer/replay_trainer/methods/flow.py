"""FLOW: fine-tuning samples that the base model finds easy count more.

Sanyal, Prairie, Das, Kavis, Sanghavi, "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting", ICML 2025
(arXiv 2502.02797). A sample that the base model predicts badly pulls hardest at the weights, away from what they knew.
So each sample i gets a weight from its loss under the base model, once, before training, and keeps it:

    w_i = exp(-f_i / tau)        L(theta) = sum_i w_i f_i(theta)

    f_i   loss of sample i under the base model, nats
    tau   temperature, nats: the median of the f_i over the whole fine-tuning set

A sample at the median weighs 1/e, and one that the base model predicts for certain weighs 1. No pretraining data is
needed. Its cost, by the paper: the hardest target samples are given up.

For language the paper's code has two forms. By sequence, f_i is the mean loss over the example's response tokens, and
all of them share w_i. By token, f is the loss of one response token, and each token has a weight of its own. The loss
of a batch is

    sum_i w_i sum_t nll_it / number of response tokens in the batch

It is divided by the number of tokens and not by the sum of the weights, so the weights also make the steps smaller.
`normalize` says whether they may; that choice is this project's, not the paper's.

Of samples to classify f_i is the cross-entropy of sample i, and the loss of a batch sum_i w_i f_i / number of samples:
`by sequence` is the form, and `replay_service.classification.scoring.ClassScorer` gives the base losses.

    stage     takes                                    does                      gives
    fit       base losses of the fine-tuning set       the median, the scale     FlowWeights
    of        base losses of some of it                exp(-f / tau) * scale     their weights

Beside a training loop:

    weights = FlowWeights.fit(base_losses)                       # [n], once, from the base model
    weight_n = torch.from_numpy(weights.of(base_losses))         # float32 [n], kept with the examples
    ...
    loss = (weight_B[:, None] * nll_BS).sum() / mask_BS.sum()    # nll_BS is zero where mask_BS is False
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from replay_trainer.errors import InvalidTraining

Form = Literal["sequence", "token"]
Normalize = Literal["none", "mean"]

Losses = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class FlowWeights:
    """The rule that turns a base loss into a weight, fitted to one fine-tuning set."""

    form: Form
    """The unit of a base loss: an example, by the mean over its response tokens, or one response token."""
    tau_nats: float
    """Temperature, nats; positive."""
    scale: float
    """Factor of every weight: 1, or one over the mean weight of the fitted set."""

    @classmethod
    def fit(
        cls,
        base_losses: Losses,
        *,
        form: Form = "sequence",
        tau: float | Literal["median"] = "median",
        normalize: Normalize = "none",
    ) -> "FlowWeights":
        """The rule for a fine-tuning set.

        Args:
            base_losses: float, nats, of the whole fine-tuning set under the base model. By sequence [n], the mean over
                the response tokens of each example; by token the loss of every response token, in one flat array.
            form: which of the two it is.
            tau: the temperature in nats. The paper's is the median of the base losses; a smaller one gives up more
                of the hard samples, and a very large one is plain fine-tuning.
            normalize: `none`, as in the paper, leaves weights between 0 and 1. Their mean is below 1, so the gradient,
                and with it the effective learning rate, falls by about that factor; where gradients are clipped or the
                optimizer is Adam, which does not see a constant factor, it falls by less. `mean` divides by the mean
                weight of the set: the weights average 1 over it, the effective learning rate stays what it was, and an
                easy sample weighs more than 1.

        Raises:
            InvalidTraining: when there are no base losses or one is not finite, when tau is not positive and finite,
                or the form or `normalize` is none of those above.
        """
        _check_choice("form", form, Form)
        _check_choice("normalize", normalize, Normalize)
        _check_losses(base_losses)
        unscaled = cls(form, _temperature(base_losses, tau), 1.0)
        if normalize == "none":
            return unscaled
        return cls(form, unscaled.tau_nats, 1.0 / unscaled._mean_weight(base_losses))

    def of(self, base_losses: Losses) -> NDArray[np.float32]:
        """The weights of samples by their base losses.

        Args:
            base_losses: float of any shape, nats; in the form that was fitted.

        Returns:
            float32 of the same shape: exp(-f / tau) times the scale.

        Raises:
            InvalidTraining: when a base loss is not finite.
        """
        _check_finite(base_losses)
        return (self._unscaled(base_losses) * self.scale).astype(np.float32)

    def _unscaled(self, base_losses: Losses) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = np.exp(-np.asarray(base_losses, dtype=np.float64) / self.tau_nats)
        return weights

    def _mean_weight(self, base_losses: Losses) -> float:
        mean = float(self._unscaled(base_losses).mean())
        if mean <= 0:
            raise InvalidTraining(
                f"every weight exp(-loss / tau) is zero at tau {self.tau_nats} nats, and they cannot be divided by "
                f"their mean; the least base loss is {float(base_losses.min())} nats: choose a tau near the median"
            )
        return mean


def _temperature(base_losses: Losses, tau: float | Literal["median"]) -> float:
    if isinstance(tau, str):
        _check_choice("tau", tau, Literal["median"])
        median = float(np.median(base_losses.astype(np.float64)))
        if median <= 0:
            raise InvalidTraining(
                f"the median base loss is {median} nats and cannot be a temperature: the base model already predicts "
                "half of the samples for certain; leave them out, or give tau in nats"
            )
        return median
    if not (np.isfinite(tau) and tau > 0):
        raise InvalidTraining(f'tau must be a positive number of nats or "median", not {tau}')
    return float(tau)


def _check_losses(base_losses: Losses) -> None:
    if base_losses.ndim != 1:
        raise InvalidTraining(f"base losses to fit must be one flat array, not of shape {base_losses.shape}")
    if len(base_losses) == 0:
        raise InvalidTraining("no base losses to fit weights to: the fine-tuning set has no samples")
    _check_finite(base_losses)


def _check_finite(base_losses: Losses) -> None:
    finite = np.isfinite(base_losses)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        raise InvalidTraining(
            f"{int((~finite).sum())} of {finite.size} base losses are not finite, the first is "
            f"{np.ravel(base_losses)[first]} at place {first}; leave such samples out, or score them again in float32"
        )


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise InvalidTraining(f"{name} must be one of {', '.join(map(str, get_args(choices)))}, not {value!r}")
