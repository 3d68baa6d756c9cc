"""Per-token losses and hits, the one definition that base losses and training losses share.

Shapes: B rows, T = seq_len tokens, S = T - 1 predictions, V vocabulary. Prediction s is of the token at s + 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenLosses(NamedTuple):
    """What a model's logits say of each prediction."""

    nll_BS: Tensor
    """float32 [B, S], nats; zero where there is nothing to predict. Differentiable."""
    correct_BS: Tensor
    """bool [B, S]: no token is likelier than the one that came; False where there is nothing to predict."""
    mask_BS: Tensor
    """bool [B, S]: there is a token to predict."""

    def mean_nats(self) -> Tensor:
        """Mean loss of each row, float32 [B], nats per predicted token; 0 for a row without predictions."""
        return self.nll_BS.sum(dim=1) / self.mask_BS.sum(dim=1).clamp(min=1)


def token_losses(logits_BTV: Tensor, input_ids_BT: Tensor, length_B: Tensor) -> TokenLosses:
    """Losses of the next-token predictions within each row's length.

    Args:
        logits_BTV: any float type; taken to float32 before the softmax.
        input_ids_BT: int64.
        length_B: int64, real tokens of each row; one of fewer than 2 has nothing to predict.

    Logits are taken to float32 a row at a time: a batch of them would not fit into any cache.
    """
    target_BS = input_ids_BT[:, 1:]
    positions_S = torch.arange(1, input_ids_BT.shape[1], device=input_ids_BT.device)
    mask_BS = positions_S < length_B[:, None]
    rows = [
        position_losses(logits_TV[:-1], target_S) for logits_TV, target_S in zip(logits_BTV, target_BS, strict=True)
    ]
    nll_BS, correct_BS = torch.stack([row.nll_P for row in rows]), torch.stack([row.correct_P for row in rows])
    return TokenLosses(nll_BS * mask_BS, correct_BS & mask_BS, mask_BS)


class PositionLosses(NamedTuple):
    """What the logits of P positions say, each [P]."""

    nll_P: Tensor
    """float32, nats; differentiable."""
    correct_P: Tensor
    """bool: no token is likelier than the one that came."""
    log_total_P: Tensor
    """float32: logit minus this is log-probability."""


def position_losses(logits_PV: Tensor, target_P: Tensor, *, overwrite: bool = False) -> PositionLosses:
    """Losses of P predictions.

    Args:
        logits_PV: any float type; taken to float32.
        target_P: int64.
        overwrite: whether float32 logits may be lost to the arithmetic, which is quicker, and not differentiable.
    """
    logits_PV = logits_PV.float()
    chosen_P = logits_PV.gather(1, target_P[:, None]).squeeze(1)
    most_P = logits_PV.detach().amax(dim=1)
    below_PV = logits_PV.sub_(most_P[:, None]) if overwrite else logits_PV - most_P[:, None]
    log_total_P = below_PV.exp_().sum(dim=1).log() + most_P
    return PositionLosses(log_total_P - chosen_P, chosen_P.detach() >= most_P, log_total_P)
