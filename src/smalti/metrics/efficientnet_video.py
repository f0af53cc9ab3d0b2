"""One vector a clip, half what it shows and half how it moves, from a network of frames that pip installs.

With f_1 .. f_t the 1,280 features of EfficientNet-lite0 of the frames, a clip is

    P (f_1 + ... + f_t) / t    beside    gain Q (|f_2 - f_1| + ... + |f_t - f_(t-1)|) / (t - 1)

where |.| is taken number by number, and P and Q are fixed orthogonal projections to 32 numbers each, so that the
covariance of 65 clips is whole already. A still clip has nothing in the second half. A Fréchet distance of these
vectors is no FVD: its figures have their own name and compare with each other alone. Which way time runs it does not
see: a clip and its reverse have one vector.
"""

import hashlib
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smalti.metrics.conv_graph import Weights
from smalti.metrics.efficientnet import EFFICIENTNET

HALF = 32
"""Numbers of each half of a vector."""
GAIN = 4.0
"""Of the half that moves: its variance among clips of film is 1/28 of that of the other half without it."""
_FRAMES = 16
"""At once through the network; bounds memory."""


def described(frames: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
    """The vectors of clips, from the features of their frames. Raises ValueError below two frames."""
    if frames.shape[1] < 2:
        raise ValueError(f"motion needs clips of 2 frames or more, got {frames.shape[1]}")
    shows = frames.mean(1) @ projection("shows", frames.shape[2]).to(frames)
    moves = frames.diff(dim=1).abs().mean(1) @ projection("moves", frames.shape[2]).to(frames)
    return torch.cat([shows, GAIN * moves], 1)


@cache
def projection(name: str, dim: int) -> Float[Tensor, "d e"]:
    """`HALF` orthogonal columns of length sqrt(dim / HALF), which keep squared lengths on the average.

    They span columns of signs, which are the bits of SHAKE-256 of the name: the same space on every machine. A Fréchet
    distance does not depend on the basis in it.
    """
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(name.encode()).digest(dim * HALF // 8), np.uint8))
    signs = torch.from_numpy(bits.reshape(dim, HALF)).double() * 2 - 1
    return torch.linalg.qr(signs).Q * (dim / HALF) ** 0.5


def _features(weights: Weights, clips: Tensor) -> Tensor:
    frames = clips.transpose(1, 2)
    parts = [EFFICIENTNET.features(weights, part) for part in frames.flatten(0, 1).split(_FRAMES)]
    return described(torch.cat(parts).unflatten(0, frames.shape[:2]))


EFFICIENTNET_VIDEO = EFFICIENTNET._replace(
    name="efficientnet-lite0-video",
    score="frechet_efficientnet_video",
    dim=2 * HALF,
    of="clips",
    features=_features,
    weights_of=EFFICIENTNET.name,
    fewest_frames=2,
)
"""EfficientNet-lite0 of a clip: 64 numbers."""
