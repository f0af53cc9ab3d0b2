"""Feature networks of Fréchet distances: one law, and a digest.

uint8 pixels `b 3 t h w` become float32 features `n d`: one vector a frame, or one a clip. Networks are frozen, have no
modes, and are read from a file that the user has; nothing is downloaded and nothing in a file is run.
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
    """A graph without weights, and what is published of it."""

    name: FeatureName
    score: ScoreName
    """What a Fréchet distance of its features is called in reports."""
    dim: int
    of: Literal["frames", "clips"]
    """Of what it gives one vector."""
    features: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    """(weights, pixels on 0..255 as float `n 3 h w` or `b 3 t h w`) -> `n dim`."""
    shapes: Mapping[str, tuple[int, ...]]
    """The names and shapes of its weights."""
    file: str
    """The name under which its weights are published."""
    weights_of: FeatureName | None = None
    """Whose weights it has, where they are those of another network."""
    head: tuple[str, tuple[int, int]] | None = None
    """Name and shape (classes, dim) of the weights that make logits of features; the file may lack them."""
    ignored: tuple[str, ...] = ()
    """How names begin that the file may have beside them."""
    sha256: str = ""
    """How the digest of the published file begins; empty where smalti knows none."""
    fewest_frames: int = 1
    package: str | None = None
    """The installed package that has the file."""
    install: str | None = None
    """What pip calls it."""
    renamed: Callable[[Mapping[str, Tensor], str], dict[str, Tensor]] | None = None
    """(tensors, text of the TorchScript program) -> what brings other names to ours."""


class Features:
    """A network with its weights: a function from uint8 pixels to features."""

    def __init__(self, network: Network, weights: Mapping[str, Tensor], digest: str) -> None:
        """Raises IntegrityError for a missing, unexpected or misshapen tensor, and for values that are not finite."""
        self.network = network
        self.digest = digest
        """sha256 of the file of weights: two distances compare only if it is equal."""
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
        """Moves the weights to a device; pixels follow them there, features come back to the CPU."""
        self.device = device
        self._weights = {name: value.to(device) for name, value in self._weights.items()}
        return self

    def __call__(self, pixels: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "n d"]:
        """A vector for each frame, clip by clip, or for each clip; float32 on the CPU, without gradients.

        Raises ValueError for clips of fewer frames than the network needs.
        """
        if pixels.shape[2] < self.network.fewest_frames:
            raise ValueError(f"{self.network.name} needs clips of {self.network.fewest_frames} frames or more")
        if self.network.of == "frames":
            pixels = pixels.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            return self.network.features(self._weights, pixels.to(self.device).float()).cpu()

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Logits of the network's classes without a bias, float64. Raises IntegrityError if the file had no weights."""
        if self._head is None:
            named = self.network.head[0] if self.network.head else "a classifier"
            raise IntegrityError(f"the weights of {self.network.name} have no {named}, which logits need")
        return features.double() @ self._head.double().T

    def check(self, protocol: str, name: FeatureName, digest: str | None) -> None:
        """Raises ConfigError unless these are the features, and the weights, that a protocol takes."""
        own = self.network.name
        if own != name:
            raise ConfigError(f"protocol {protocol} takes features of {name}, those given are of {own}")
        if digest not in (None, self.digest):
            raise ConfigError(f"protocol {protocol} names other weights of {own} ({digest}) than are given")
