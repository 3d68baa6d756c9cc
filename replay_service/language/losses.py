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
    rows = [_row_losses(logits_TV[:-1], target_S) for logits_TV, target_S in zip(logits_BTV, target_BS, strict=True)]
    nll_BS, correct_BS = (torch.stack(column) for column in zip(*rows, strict=True))
    return TokenLosses(nll_BS * mask_BS, correct_BS & mask_BS, mask_BS)


def _row_losses(logits_SV: Tensor, target_S: Tensor) -> tuple[Tensor, Tensor]:
    logits_SV = logits_SV.float()
    chosen_S = logits_SV.gather(1, target_S[:, None]).squeeze(1)
    with torch.no_grad():
        correct_S = chosen_S >= logits_SV.amax(dim=1)
    return logits_SV.logsumexp(dim=1) - chosen_S, correct_S
