"""Moments of originals as other projects publish them: `.npz` of guided diffusion (ADM) and pytorch-fid, `.pkl` of
MagicMaster. Nothing in a file runs."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from smalti.errors import InputError, IntegrityError
from smalti.files import naming_os_errors, sha256
from smalti.foreign import leaves, naming_file, read_checkpoint
from smalti.metrics.frechet import Moments
from smalti.unpickler import shown

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
    found = torch.from_numpy(np.array(array)) if isinstance(array, np.ndarray) else array
    if not isinstance(found, Tensor) or not found.is_floating_point() or not bool(found.isfinite().all()):
        raise IntegrityError(f"{name} is not an array of finite numbers")
    return found.double()
