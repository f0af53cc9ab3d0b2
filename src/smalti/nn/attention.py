"""Attention between the positions of one frame."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from smalti.nn.blocks import GROUPS, Norm, NormKind
from smalti.nn.stream import Stream


class FrameAttention(nn.Module):
    """x + out(attention(query, key, value of norm(x))): one head over all positions of a frame (VQGAN)."""

    def __init__(self, channels: int, *, norm: NormKind = "frame", groups: int = GROUPS) -> None:
        super().__init__()
        self.norm = Norm(norm, channels, groups=groups)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "t b c h w"], stream: Stream | None = None) -> Float[Tensor, "t b c h w"]:
        """The shape of x; frames do not meet, so a stream has nothing to carry."""
        tokens = self.norm(x).flatten(0, 1).flatten(2).transpose(1, 2)  # (t b) (h w) c
        # With an axis of heads torch never makes the matrix of all pairs: 9 GB for 176 x 264 positions.
        query, key, value = self.query_key_value(tokens).unsqueeze(1).chunk(3, -1)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(query, key, value)[:, 0])
        return x + mixed.transpose(1, 2).unflatten(0, x.shape[:2]).unflatten(3, x.shape[3:])
