"""Frozen networks as tables: convolutions with the norms that they were trained with, pools, branches, residuals.

A table holds every size, so the names and shapes of the weights follow from it; `run_layers` executes it.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Weights: TypeAlias = Mapping[str, Tensor]

_NORM = ("weight", "bias", "running_mean", "running_var")


class ConvLayer(NamedTuple):
    """A convolution, the batch norm after it (or its bias), and an activation."""

    name: str
    """The tensor of the kernel is `name`.weight."""
    norm: str | None
    """Name of the batch norm, which uses its stored statistics; None: the convolution has a bias instead."""
    shape: tuple[int, ...]
    """Shape of the kernel: out, in / groups, then its sides."""
    stride: tuple[int, ...]
    padding: tuple[int, ...] | None
    """Zeros on both sides; None pads as TensorFlow's "same" does, with the odd zero at the end."""
    groups: int = 1
    activation: Literal["relu", "relu6", "none"] = "relu"
    eps: float = 1e-3
    """Added to the variances of the batch norm."""


class PoolLayer(NamedTuple):
    """A maximum, or a mean that leaves the padding out."""

    kind: Literal["max", "mean"]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | None


class Branches(NamedTuple):
    """Chains that all see the input; their outputs are concatenated along the channels."""

    chains: "tuple[Layers, ...]"


class Residual(NamedTuple):
    """A chain whose output is added to its input."""

    chain: "Layers"


Layers: TypeAlias = "tuple[ConvLayer | PoolLayer | Branches | Residual, ...]"


def run_layers(layers: Layers, weights: Weights, x: Tensor) -> Tensor:
    """Return the output of a chain for `x`, `n c h w` or `n c t h w`."""
    for layer in layers:
        if isinstance(layer, ConvLayer):
            x = _convolve(layer, weights, x)
        elif isinstance(layer, PoolLayer):
            x = _pool(layer, x)
        elif isinstance(layer, Branches):
            x = torch.cat([run_layers(chain, weights, x) for chain in layer.chains], 1)
        else:
            x = x + run_layers(layer.chain, weights, x)
    return x


def convolutions(layers: Layers) -> Iterator[ConvLayer]:
    """Yield the convolutions in the order of the graph."""
    for layer in layers:
        if isinstance(layer, ConvLayer):
            yield layer
        elif isinstance(layer, Branches):
            for chain in layer.chains:
                yield from convolutions(chain)
        elif isinstance(layer, Residual):
            yield from convolutions(layer.chain)


def weight_shapes(layers: Layers) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights, in the order of the graph."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in convolutions(layers):
        shapes[f"{conv.name}.weight"] = conv.shape
        names = (f"{conv.name}.bias",) if conv.norm is None else (f"{conv.norm}.{part}" for part in _NORM)
        shapes |= dict.fromkeys(names, conv.shape[:1])
    return shapes


def _convolve(conv: ConvLayer, weights: Weights, x: Tensor) -> Tensor:
    if conv.padding is None:
        x = _pad_same(x, conv.shape[2:], conv.stride)
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    bias = None if conv.norm is not None else weights[f"{conv.name}.bias"]
    padding = conv.padding or (0,) * len(conv.stride)
    x = convolve(x, weights[f"{conv.name}.weight"], bias, conv.stride, padding, groups=conv.groups)
    if conv.norm is not None:
        gain, shift, mean, var = (weights[f"{conv.norm}.{part}"] for part in _NORM)
        x = F.batch_norm(x, mean, var, gain, shift, eps=conv.eps)
    if conv.activation == "none":
        return x
    return F.relu(x) if conv.activation == "relu" else F.relu6(x)


def _pool(pool: PoolLayer, x: Tensor) -> Tensor:
    if pool.padding is None:  # zeros never exceed the output of an activation, so a maximum ignores them
        x = _pad_same(x, pool.kernel, pool.stride)
    padding = pool.padding or (0,) * len(pool.kernel)
    if pool.kind == "max":
        return (F.max_pool2d if x.ndim == 4 else F.max_pool3d)(x, pool.kernel, pool.stride, padding)
    mean = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return mean(x, pool.kernel, pool.stride, padding, count_include_pad=False)


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        missing = max(0, (-(-size // s) - 1) * s + k - size)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads)
