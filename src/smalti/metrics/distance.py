"""Moments of the features of originals and of reconstructions, clip by clip, and the distance between them."""

from collections.abc import Iterator

from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.errors import InputError
from smalti.metrics.features import Features, ScoreName
from smalti.metrics.frechet import Moments, frechet_distance
from smalti.metrics.report import Frechet

_FRAMES = 16  # at once through a network of frames; bounds memory


class FeatureMoments:
    """Two sums of features; parts merge. With `reference`, moments of all originals, none are taken of them."""

    def __init__(self, features: Features, reference: Moments | None = None) -> None:
        """Raises ValueError for a reference of another width."""
        if reference is not None and reference.dim != features.network.dim:
            raise ValueError(f"a reference of width {reference.dim} for features of {features.network.dim}")
        self.features = features
        self.reference = reference
        self.originals = Moments(features.network.dim)
        self.made = Moments(features.network.dim)

    @property
    def fewest(self) -> int:
        """Samples of the smaller side."""
        return min(self.made.n, (self.reference or self.originals).n)

    def add_original(self, key: str, pixels: Tensor) -> None:
        """Take uint8 pixels `1 3 t h w` of an original. Raises InputError where a clip is too short."""
        if self.reference is None:
            self._add(self.originals, key, pixels)

    def add_made(self, key: str, pixels: Tensor) -> None:
        """Take uint8 pixels of a reconstruction, as `add_original` does."""
        self._add(self.made, key, pixels)

    def merge(self, other: "FeatureMoments") -> "FeatureMoments":
        """The moments of both together; neither is changed."""
        if other.features.digest != self.features.digest or (other.reference is None) != (self.reference is None):
            raise ValueError("moments of different features, or of other references, cannot be merged")
        merged = FeatureMoments(self.features, self.reference)
        merged.originals = self.originals.merge(other.originals)
        merged.made = self.made.merge(other.made)
        return merged

    def distance(self) -> Frechet:
        """The distance so far. Raises ValueError below two samples."""
        return distance_of(self.reference or self.originals, self.made, self.features.network.score)

    def _add(self, moments: Moments, key: str, pixels: Tensor) -> None:
        for part in vectors(self.features, key, pixels):
            moments.update(part)


def vectors(features: Features, key: str, pixels: UInt8[Tensor, "1 3 t h w"]) -> Iterator[Float[Tensor, "n d"]]:
    """The features of a clip, a few frames at a time. Raises InputError where it is too short for the network."""
    network = features.network
    if pixels.shape[2] < network.fewest_frames:
        raise InputError(
            f"{key}: has {pixels.shape[2]} frames, {network.name} needs clips of {network.fewest_frames} or more"
        )
    for part in pixels.split(_FRAMES if network.of == "frames" else pixels.shape[2], dim=2):
        yield features(part)


def distance_of(originals: Moments, made: Moments, name: ScoreName) -> Frechet:
    """The distance of two sets as reports have it. Raises ValueError below two samples."""
    found = frechet_distance(originals, made)
    return Frechet(
        name=name,
        distance=found.distance,
        means=found.means,
        covariances=found.covariances,
        originals=found.n_a,
        made=found.n_b,
        dim=found.dim,
        warning=found.warning,
    )
