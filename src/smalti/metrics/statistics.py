"""Moments of the features of originals and reconstructions, the distance between them, and moments on disk.

A file of moments holds the key that they depend on; a file with another key is refused. Files of moments that others
publish are read too.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smalti.config import Config
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.files import naming_os_errors, sha256, write_bytes
from smalti.foreign import leaves, naming_file, read_checkpoint
from smalti.metrics.features import FeatureName, Features, ScoreName
from smalti.metrics.frechet import Moments, frechet_distance
from smalti.metrics.report import Frechet
from smalti.unpickler import shown

_FRAMES = 16  # at once through a network of frames; bounds memory


class FeatureMoments:
    """Moments of originals and of reconstructions; those of parts of a set merge."""

    def __init__(self, features: Features, reference: Moments | None = None) -> None:
        """Begin without clips; with `reference`, moments of all originals, originals are not looked at.

        Raises ValueError for a reference of another width.
        """
        if reference is not None and reference.dim != features.network.dim:
            raise ValueError(f"a reference of width {reference.dim} for features of {features.network.dim}")
        self.features = features
        self.reference = reference
        self.originals = Moments(features.network.dim)
        self.reconstructions = Moments(features.network.dim)

    @property
    def fewest(self) -> int:
        """Number of samples of the smaller side."""
        if isinstance(self.reference, GivenMoments):
            return self.reconstructions.n
        return min(self.reconstructions.n, (self.reference or self.originals).n)

    def add_original(self, key: str, pixels: Tensor) -> None:
        """Add uint8 pixels `1 3 t h w` of an original. Raises InputError where a clip is too short."""
        if self.reference is None:
            self._add(self.originals, key, pixels)

    def add_reconstruction(self, key: str, pixels: Tensor) -> None:
        """Add uint8 pixels of a reconstruction, as `add_original` does."""
        self._add(self.reconstructions, key, pixels)

    def merge(self, other: "FeatureMoments") -> "FeatureMoments":
        """Return the moments of both together; neither is changed."""
        if other.features.digest != self.features.digest or (other.reference is None) != (self.reference is None):
            raise ValueError("moments of different features, or of other references, cannot be merged")
        merged = FeatureMoments(self.features, self.reference)
        merged.originals = self.originals.merge(other.originals)
        merged.reconstructions = self.reconstructions.merge(other.reconstructions)
        return merged

    def distance(self) -> Frechet:
        """Compute the distance so far. Raises ValueError below two samples."""
        return frechet_of(self.reference or self.originals, self.reconstructions, self.features.network.score)

    def _add(self, moments: Moments, key: str, pixels: Tensor) -> None:
        for part in feature_vectors(self.features, key, pixels):
            moments.update(part)


def feature_vectors(features: Features, key: str, pixels: UInt8[Tensor, "1 3 t h w"]) -> Iterator[Float[Tensor, "n d"]]:
    """Yield the features of a clip, a few frames at a time. Raises InputError if it is too short for the network."""
    network = features.network
    if pixels.shape[2] < network.fewest_frames:
        raise InputError(
            f"{key}: has {pixels.shape[2]} frames, {network.name} needs clips of {network.fewest_frames} or more"
        )
    for part in pixels.split(_FRAMES if network.per == "frame" else pixels.shape[2], dim=2):
        yield features(part)


def frechet_of(originals: Moments, outputs: Moments, name: ScoreName) -> Frechet:
    """Compute the distance of two sets for a report. Raises ValueError below two samples."""
    distance, means, covariances, n_originals, n_outputs, dim, warning = frechet_distance(originals, outputs)
    return Frechet(
        name=name,
        distance=distance,
        means=means,
        covariances=covariances,
        originals=n_originals,
        outputs=n_outputs,
        dim=dim,
        warning=warning,
        reference=originals.digest if isinstance(originals, GivenMoments) else None,
    )


class StatisticsKey(Config):
    """Everything that moments of originals depend on."""

    kind: Literal["statistics"] = "statistics"
    format: int = 1
    features: FeatureName
    features_digest: str
    """sha256 of the file of the network's weights."""
    rounding: str
    """How the originals went from [-1, 1] to 0..255."""
    data: dict[str, Any]
    """Config of the source: how files became pixels, without their place on this machine."""
    listed: str
    """sha256 of the names and sizes of the files, in their order."""
    count: int = Field(ge=1)
    """Number of files in the list."""

    @property
    def digest(self) -> str:
        """sha256 of the key."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()

    def path(self, folder: Path) -> Path:
        """Return the file of this key in a folder."""
        return folder / f"{self.features}-{self.digest[:16]}.safetensors"


def save_statistics(folder: Path, key: StatisticsKey, moments: Moments) -> Path:
    """Write moments under their key, whole or not at all; return the file."""
    tensors = {name: tensor.contiguous() for name, tensor in moments.tensors().items()}
    metadata = {"key": json.dumps(key.plain(), sort_keys=True), "sha256": _digest(moments)}
    path = key.path(folder)
    write_bytes(path, safetensors.torch.save(tensors, metadata=metadata))
    return path


def load_statistics(folder: Path, key: StatisticsKey) -> Moments | None:
    """Read the moments under a key, None if there are none. Raises IntegrityError for a damaged or wrong file."""
    path = key.path(folder)
    if not path.exists():
        return None
    try:
        with naming_os_errors(path), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            moments = Moments.of_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        key_of_file = StatisticsKey.parse(json.loads(metadata["key"]))
    except (SafetensorError, ConfigError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise IntegrityError(f"{path}: not whole statistics ({reason}); delete it, and it is computed again") from None
    if key_of_file != key:
        changed = [name for name in type(key).model_fields if getattr(key_of_file, name) != getattr(key, name)]
        raise IntegrityError(f"{path}: statistics of something else ({', '.join(changed)} differ); delete it")
    if metadata.get("sha256") != _digest(moments):
        raise IntegrityError(f"{path}: its numbers have changed since they were written; delete it")
    return moments


def _digest(moments: Moments) -> str:
    state = hashlib.sha256(str(moments.n).encode())
    for tensor in (moments.mean, moments.scatter):
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


_NAMES = {".npz": ("mu", "sigma"), ".pkl": ("real_mean", "real_cov")}
STATISTICS_SUFFIXES = tuple(_NAMES)
"""Suffixes of files of statistics."""


class GivenMoments(Moments):
    """A mean and a covariance whose number of samples is not known; nothing can be added."""

    def __init__(self, mean: Float[Tensor, "d"], covariance: Float[Tensor, "d d"], digest: str) -> None:
        super().__init__(len(mean))
        self.digest = digest
        """sha256 of the file: what a figure has to name."""
        self.mean = mean
        self._covariance = covariance

    def covariance(self) -> Float[Tensor, "d d"]:
        """Return the covariance as it was given."""
        return self._covariance

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Raise ValueError: these moments have no count to which samples could be added."""
        raise ValueError("moments of a file have no count, so no samples can be added to them")


def read_published_statistics(path: Path | str, dim: int) -> GivenMoments:
    """Read the mean and the covariance of `dim` features: `mu` and `sigma` of an .npz, `real_mean` and `real_cov` of a
    .pkl; a file's other arrays are left alone.

    Raises InputError if there is no such file, MachineError if it cannot be opened, IntegrityError if it holds
    something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; `statistics` and `real` take an .npz or .pkl of statistics")
    names = _NAMES.get(path.suffix.lower(), _NAMES[".pkl"])
    with naming_file(path):
        arrays = _read_npz(path, names, 8 * dim * dim + 4096) if names[0] == "mu" else _read_pickle(path, names)
        mean, covariance = (_matrix(array, name) for array, name in zip(arrays, names, strict=True))
        if mean.shape != (dim,) or covariance.shape != (dim, dim):
            shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
            raise IntegrityError(f"holds {' and '.join(names)} of {shapes}; the network has {dim} features")
        if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * float(covariance.diagonal().max())):
            raise IntegrityError(f"{names[1]} is not symmetric, so it is no covariance")
        return GivenMoments(mean, (covariance + covariance.T) / 2, sha256(path))


def _read_npz(path: Path, names: tuple[str, str], most: int) -> list[Any]:
    with naming_os_errors(path):
        raw = path.open("rb")
    try:  # a place in it that cannot be is an OSError, and a damage of the file all the same
        with raw, np.load(raw, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise IntegrityError("is one array, not an .npz of several")
            missing = [name for name in names if name not in file.files]
            if missing:
                raise IntegrityError(f"has no array {missing[0]!r} (there are: {shown(', '.join(file.files))})")
            for name in names:
                if file.zip is None or file.zip.getinfo(f"{name}.npy").file_size > most:
                    raise IntegrityError(f"{name} is larger than the network's statistics, {most:,} bytes")
            return [file[name] for name in names]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"is no whole .npz of plain arrays ({' '.join(str(error).split())[:120]})") from None


def _read_pickle(path: Path, names: tuple[str, str]) -> list[Any]:
    arrays = dict(leaves(read_checkpoint(path)))
    if any(name not in arrays for name in names):
        raise IntegrityError(f"is no table with {' and '.join(names)}")
    return [arrays[name] for name in names]


def _matrix(array: Any, name: str) -> Tensor:
    values = torch.from_numpy(np.array(array)) if isinstance(array, np.ndarray) else array
    if not isinstance(values, Tensor) or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise IntegrityError(f"{name} is not an array of finite numbers")
    return values.double()
