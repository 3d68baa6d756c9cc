"""Per-token losses and hits, the one definition that base losses and training losses share.

Shapes: B rows, T = seq_len tokens, S = T - 1 predictions, V vocabulary. Prediction s is of the token at s + 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class TokenLosses(NamedTuple):
    """What a model's logits say of each prediction."""

    nll_BS: Tensor
    """float32 [B, S], nats; zero where there is nothing to predict. Differentiable."""
    correct_BS: Tensor
    """bool [B, S]: the argmax is the token that came; False where there is nothing to predict."""
    mask_BS: Tensor
    """bool [B, S]: there is a token to predict."""

    def mean_nats(self) -> Tensor:
        """Mean loss of each row, float32 [B], nats per predicted token."""
        return self.nll_BS.sum(dim=1) / self.mask_BS.sum(dim=1)


def token_losses(logits_BTV: Tensor, input_ids_BT: Tensor, length_B: Tensor) -> TokenLosses:
    """Losses of the next-token predictions within each row's length.

    Args:
        logits_BTV: any float type; taken to float32 before the softmax.
        input_ids_BT: int64.
        length_B: int64, real tokens of each row, at least 2.
    """
    target_BS = input_ids_BT[:, 1:]
    positions_S = torch.arange(1, input_ids_BT.shape[1], device=input_ids_BT.device)
    mask_BS = positions_S < length_B[:, None]
    predictions_BSV = logits_BTV[:, :-1]
    nll = cross_entropy(predictions_BSV.float().flatten(0, 1), target_BS.flatten(), reduction="none")
    nll_BS = nll.view_as(target_BS) * mask_BS
    with torch.no_grad():
        correct_BS = (predictions_BSV.argmax(dim=-1) == target_BS) & mask_BS
    return TokenLosses(nll_BS, correct_BS, mask_BS)
