"""The Inception-v3 of the Fréchet inception distance: TensorFlow's graph of 2015-12-05, as pytorch-fid has it.

It differs from the Inception-v3 of the libraries: the means of its branches leave the padding out, the last of them is
a maximum, and its weights are others. Names of the weights are those of pytorch-fid's published file.

Also the inception score (Salimans et al. 2016, arXiv 1606.03498), which is computed from the logits of this network.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from smalti.metrics.conv_graph import Branches, ConvLayer, Layers, PoolLayer, Weights, run_layers, weight_shapes
from smalti.metrics.features import Network

_SIDE = 299
_POOL = PoolLayer("max", (3, 3), (2, 2), (0, 0))
_MEAN = PoolLayer("mean", (3, 3), (1, 1), (1, 1))
_MAX = PoolLayer("max", (3, 3), (1, 1), (1, 1))


def _conv(
    name: str, into: int, out: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, valid: bool = False
) -> ConvLayer:
    padding = (0, 0) if valid else (kernel[0] // 2, kernel[1] // 2)
    return ConvLayer(f"{name}.conv", f"{name}.bn", (out, into, *kernel), (stride, stride), padding)


def _chain(name: str, *parts: tuple[str, int, int, tuple[int, int]]) -> Layers:
    return tuple(_conv(f"{name}.{part}", into, out, kernel) for part, into, out, kernel in parts)


def _block_35(name: str, into: int, pooled: int) -> Branches:
    """Return a block of 35 x 35 cells."""
    five = _chain(name, ("branch5x5_1", into, 48, (1, 1)), ("branch5x5_2", 48, 64, (5, 5)))
    twice = _chain(
        name,
        ("branch3x3dbl_1", into, 64, (1, 1)),
        ("branch3x3dbl_2", 64, 96, (3, 3)),
        ("branch3x3dbl_3", 96, 96, (3, 3)),
    )
    one = _chain(name, ("branch1x1", into, 64, (1, 1)))
    return Branches((one, five, twice, (_MEAN, *_chain(name, ("branch_pool", into, pooled, (1, 1))))))


def _down_17(name: str) -> Branches:
    """Return the block from 35 x 35 cells to 17 x 17."""
    single = (_conv(f"{name}.branch3x3", 288, 384, (3, 3), 2, valid=True),)
    twice = _chain(name, ("branch3x3dbl_1", 288, 64, (1, 1)), ("branch3x3dbl_2", 64, 96, (3, 3)))
    last = _conv(f"{name}.branch3x3dbl_3", 96, 96, (3, 3), 2, valid=True)
    return Branches((single, (*twice, last), (_POOL,)))


def _block_17(name: str, width: int) -> Branches:
    """Return a block of 17 x 17 cells, with long kernels along one axis and then the other."""
    row, column = (1, 7), (7, 1)
    seven = _chain(
        name,
        ("branch7x7_1", 768, width, (1, 1)),
        ("branch7x7_2", width, width, row),
        ("branch7x7_3", width, 192, column),
    )
    twice = _chain(
        name,
        ("branch7x7dbl_1", 768, width, (1, 1)),
        ("branch7x7dbl_2", width, width, column),
        ("branch7x7dbl_3", width, width, row),
        ("branch7x7dbl_4", width, width, column),
        ("branch7x7dbl_5", width, 192, row),
    )
    one = _chain(name, ("branch1x1", 768, 192, (1, 1)))
    return Branches((one, seven, twice, (_MEAN, *_chain(name, ("branch_pool", 768, 192, (1, 1))))))


def _down_8(name: str) -> Branches:
    """Return the block from 17 x 17 cells to 8 x 8."""
    three = _conv(f"{name}.branch3x3_1", 768, 192), _conv(f"{name}.branch3x3_2", 192, 320, (3, 3), 2, valid=True)
    seven = _chain(
        name,
        ("branch7x7x3_1", 768, 192, (1, 1)),
        ("branch7x7x3_2", 192, 192, (1, 7)),
        ("branch7x7x3_3", 192, 192, (7, 1)),
    )
    last = _conv(f"{name}.branch7x7x3_4", 192, 192, (3, 3), 2, valid=True)
    return Branches((three, (*seven, last), (_POOL,)))


def _block_8(name: str, into: int, pool: PoolLayer) -> Branches:
    """Return a block of 8 x 8 cells; two branches end in a 1 x 3 kernel beside a 3 x 1 kernel."""
    split, split_twice = (
        Branches(tuple(_chain(name, (f"{last}{side}", 384, 384, kernel)) for side, kernel in _SPLIT))
        for last in ("branch3x3_2", "branch3x3dbl_3")
    )
    three = _chain(name, ("branch3x3_1", into, 384, (1, 1)))
    twice = _chain(name, ("branch3x3dbl_1", into, 448, (1, 1)), ("branch3x3dbl_2", 448, 384, (3, 3)))
    one = _chain(name, ("branch1x1", into, 320, (1, 1)))
    pooled = (pool, *_chain(name, ("branch_pool", into, 192, (1, 1))))
    return Branches((one, (*three, split), (*twice, split_twice), pooled))


_SPLIT = (("a", (1, 3)), ("b", (3, 1)))

INCEPTION_STAGES: tuple[Layers, ...] = (
    (
        _conv("Conv2d_1a_3x3", 3, 32, (3, 3), 2, valid=True),
        _conv("Conv2d_2a_3x3", 32, 32, (3, 3), valid=True),
        _conv("Conv2d_2b_3x3", 32, 64, (3, 3)),
        _POOL,
    ),
    (_conv("Conv2d_3b_1x1", 64, 80), _conv("Conv2d_4a_3x3", 80, 192, (3, 3), valid=True), _POOL),
    (
        _block_35("Mixed_5b", 192, 32),
        _block_35("Mixed_5c", 256, 64),
        _block_35("Mixed_5d", 288, 64),
        _down_17("Mixed_6a"),
        _block_17("Mixed_6b", 128),
        _block_17("Mixed_6c", 160),
        _block_17("Mixed_6d", 160),
        _block_17("Mixed_6e", 192),
    ),
    (_down_8("Mixed_7a"), _block_8("Mixed_7b", 1280, _MEAN), _block_8("Mixed_7c", 2048, _MAX)),
)
"""The graph in four stages of 64, 192, 768 and 2048 channels."""
_LAYERS: Layers = tuple(layer for stage in INCEPTION_STAGES for layer in stage)


def inception_input(frames: Tensor) -> Tensor:
    """Return frames `n 3 h w` on 0..255 as the graph takes them: 299 x 299, bilinear (it aliases), on [-1, 1]."""
    return F.interpolate(frames / 255, (_SIDE, _SIDE), mode="bilinear", align_corners=False) * 2 - 1


def _features(weights: Weights, frames: Tensor) -> Tensor:
    return run_layers(_LAYERS, weights, inception_input(frames)).mean((2, 3))


INCEPTION = Network(
    name="inception",
    score="rfid",
    dim=2048,
    per="frame",
    features=_features,
    shapes=weight_shapes(_LAYERS),
    head=("fc.weight", (1008, 2048)),
    ignored=("fc.",),
    file="pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)
"""pool3, 2,048 numbers a frame; the inception score uses the weights of the file's classifier without its bias."""


class InceptionScore(NamedTuple):
    """The mean over the parts of a set, and their standard deviation (divided by the number of parts)."""

    mean: float
    std: float


def inception_score(logits: Float[Tensor, "n c"], splits: int = 10) -> InceptionScore:
    """Compute exp(H(mean of p) - mean of H(p)), p = softmax(logits), in float64 for each of `splits` parts in order.

    This is exp of the mean divergence of p from its mean, at most the number of classes. Part i begins at vector
    floor(i n / splits), as in the authors' code. Raises ValueError for fewer vectors than parts.
    """
    if not 0 < splits <= len(logits):
        raise ValueError(f"an inception score of {splits} parts needs as many vectors, got {len(logits)}")
    p = logits.double().softmax(1)
    ends = [i * len(p) // splits for i in range(splits + 1)]
    scores = torch.stack([_divergence(p[a:b]) for a, b in pairwise(ends)])
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item())


def _divergence(p: Tensor) -> Tensor:
    return (torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()).exp()
