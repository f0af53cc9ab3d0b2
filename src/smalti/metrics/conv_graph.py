"""Frozen networks as tables: convolutions with the norms that they were trained with, pools, branches, residuals.

A table says every size, so the names and shapes of the weights follow from it, and `run` is all that executes.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Weights: TypeAlias = Mapping[str, Tensor]
Sides: TypeAlias = tuple[int, ...]


class Conv(NamedTuple):
    """A convolution of `name`.weight, the batch norm `norm` by its stored statistics (or a bias), an activation."""

    name: str
    norm: str | None
    shape: Sides
    """out, in / groups, kernel ..."""
    stride: Sides
    padding: Sides | None
    """None pads as TensorFlow's "same" does: zeros, the odd one at the end."""
    groups: int = 1
    active: Literal["relu", "relu6", "none"] = "relu"
    eps: float = 1e-3
    """Added to the variances of the batch norm."""


class Pool(NamedTuple):
    """A maximum, or a mean over what lies inside of the picture."""

    kind: Literal["max", "mean"]
    kernel: Sides
    stride: Sides
    padding: Sides | None


class Branches(NamedTuple):
    """Chains that all see the input; their channels are put side by side."""

    of: "tuple[Steps, ...]"


class Residual(NamedTuple):
    """A chain that is added to its input."""

    of: "Steps"


Steps: TypeAlias = "tuple[Conv | Pool | Branches | Residual, ...]"


def run(steps: Steps, weights: Weights, x: Tensor) -> Tensor:
    """The output of a chain for `x`, `n c h w` or `n c t h w`."""
    for step in steps:
        if isinstance(step, Conv):
            x = _convolve(step, weights, x)
        elif isinstance(step, Pool):
            x = _pool(step, x)
        elif isinstance(step, Branches):
            x = torch.cat([run(branch, weights, x) for branch in step.of], 1)
        else:
            x = x + run(step.of, weights, x)
    return x


def convolutions(steps: Steps) -> Iterator[Conv]:
    """The convolutions in the order of the graph."""
    for step in steps:
        if isinstance(step, Conv):
            yield step
        elif isinstance(step, Branches):
            for branch in step.of:
                yield from convolutions(branch)
        elif isinstance(step, Residual):
            yield from convolutions(step.of)


def shapes(steps: Steps) -> dict[str, Sides]:
    """The names and shapes of the weights, in the order of the graph."""
    found: dict[str, Sides] = {}
    for conv in convolutions(steps):
        found[f"{conv.name}.weight"] = conv.shape
        if conv.norm is None:
            found[f"{conv.name}.bias"] = conv.shape[:1]
            continue
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{conv.norm}.{part}"] = conv.shape[:1]
    return found


def _convolve(conv: Conv, weights: Weights, x: Tensor) -> Tensor:
    if conv.padding is None:
        x = _same(x, conv.shape[2:], conv.stride)
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    bias = None if conv.norm is not None else weights[f"{conv.name}.bias"]
    padding = conv.padding or (0,) * len(conv.stride)
    x = convolve(x, weights[f"{conv.name}.weight"], bias, conv.stride, padding, groups=conv.groups)
    if conv.norm is not None:
        gain, shift, mean, var = (
            weights[f"{conv.norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = F.batch_norm(x, mean, var, gain, shift, eps=conv.eps)
    if conv.active == "none":
        return x
    return F.relu(x) if conv.active == "relu" else F.relu6(x)


def _pool(pool: Pool, x: Tensor) -> Tensor:
    if pool.padding is None:  # zeros are no maximum of what an activation left, so they are as good as nothing
        x = _same(x, pool.kernel, pool.stride)
    padding = pool.padding or (0,) * len(pool.kernel)
    if pool.kind == "max":
        return (F.max_pool2d if x.ndim == 4 else F.max_pool3d)(x, pool.kernel, pool.stride, padding)
    mean = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return mean(x, pool.kernel, pool.stride, padding, count_include_pad=False)


def _same(x: Tensor, kernel: Sides, stride: Sides) -> Tensor:
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        room = max(0, (-(-size // s) - 1) * s + k - size)
        pads += [room // 2, room - room // 2]
    return F.pad(x, pads)
