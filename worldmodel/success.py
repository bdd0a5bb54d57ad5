"""Has the world been solved at an imagined frame? A small head on the model's middle features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOOKS = 4  # places of the picture that the head can look at


class SuccessHead(nn.Module):
    """Tokens of a frame -> the logit that the world counts as solved there.

    Learned looks (attention pooling) instead of a mean: success is a matter of a few patches. It
    sees features, without a gradient back into them, and so leaves everything else as it is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.Linear(width, LOOKS)
        self.judge = nn.Sequential(nn.Linear(LOOKS * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """``[B, F, n, D]`` features of n tokens a frame -> ``[B, F]`` logits."""
        x = F.layer_norm(features, features.shape[-1:]).to(self.look.weight.dtype)
        weights = torch.softmax(self.look(x), dim=2)
        seen = torch.einsum("bfnl,bfnd->bfld", weights, x).flatten(2)
        return self.judge(seen)[..., 0].float()


def success_loss(logits: Tensor, success: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of binary cross-entropies over the labelled frames, and how many those are.

    Args:
        logits: ``[B, F]``.
        success: int8 ``[B, F]``: 1 solved, 0 not, -1 unknown.
    """
    known = success >= 0
    loss = F.binary_cross_entropy_with_logits(
        logits, success.clamp_min(0).float(), reduction="none"
    )
    return (loss * known).sum(), known.sum()
