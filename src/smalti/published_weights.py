"""Weights that others have published: where their file is sought, and whether it holds what it should.

Nothing is downloaded; a package that has the file is found and not imported.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.errors import IntegrityError, MachineError
from smalti.files import cache_folder
from smalti.foreign import read_checkpoint


class PublishedFile(NamedTuple):
    """The places of a file of weights, in the order in which they are tried."""

    variable: str
    """The environment variable that names it."""
    cached: str
    """Its name in the cache folder."""
    package: str | None
    """The installed package that may have it, and below it the name."""
    packaged: str
    absent: str
    """The error message where it is in none of these places: what is missing, and how to get it."""

    def find(self) -> Path:
        """Give the first place that is set or exists. Raises MachineError where there is none."""
        if value := os.environ.get(self.variable):
            return Path(value)
        cached = cache_folder() / self.cached
        if cached.is_file():
            return cached
        package = importlib.util.find_spec(self.package) if self.package else None
        for folder in (package.submodule_search_locations or []) if package else []:
            for path in sorted(Path(folder).rglob(self.packaged)):
                return path
        raise MachineError(self.absent)


def read_published(path: Path, wanted: str) -> Any:
    """Read the file as `read_checkpoint` does, but raise MachineError, with what is `wanted`, if it is not there."""
    if not path.is_file():
        raise MachineError(f"{path}: no such file; {wanted}")
    return read_checkpoint(path)


def check_weights(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], name: str, ignored: tuple[str, ...] = ()
) -> None:
    """Raise IntegrityError unless these are finite floating-point tensors of these names and shapes, and no others.

    Names that begin with one of `ignored` may be there too. The line tells the first fault and the `name` of the file.
    """
    for key in sorted({*shapes, *weights}):
        if key not in shapes:
            if not key.startswith(ignored):
                raise IntegrityError(f"unexpected tensor {key!r}; is this {name}?")
            continue
        if key not in weights:
            raise IntegrityError(f"the tensor {key!r} is missing; is this {name}?")
        value, shape = weights[key], tuple(shapes[key])
        if tuple(value.shape) != shape:
            raise IntegrityError(f"{key} has shape {tuple(value.shape)}, expected {shape}; is this {name}?")
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise IntegrityError(f"{key} holds values that are not finite floating-point numbers; is this {name}?")
