"""Sources whose batches take turns: images and videos (`Joint`), or one source in several sizes and lengths with about
as many pixels a batch (`Views`)."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.data.images import ImagesConfig
from smalti.data.source import Medium, Order, Source, mix
from smalti.data.videos import VideosConfig


class JointConfig(Config):
    """Batches of images and batches of clips in turn, from two sources."""

    kind: Literal["joint"] = "joint"
    images: ImagesConfig
    """Source of images."""
    videos: VideosConfig
    """Source of clips."""
    share: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps whose batch is images."""
    images_per_clip: int = Field(default=1, ge=1, le=4096)
    """Size of a batch of images, relative to a batch of clips."""

    def build(self) -> "Joint":
        """List the files of both. Raises InputError as they do."""
        return Joint(self.images.build(), self.videos.build(), share=self.share, images_per_clip=self.images_per_clip)


class Turn(NamedTuple):
    """The kind of batch of a step."""

    kind: Medium
    nth: int
    """Number of steps of this kind before it."""


class Joint:
    """Two sources and the rule that takes turns; itself a `Source`, of all images and then all videos."""

    def __init__(self, images: Source, videos: Source, *, share: float | Fraction, images_per_clip: int = 1) -> None:
        self.images = images
        self.videos = videos
        self.share = Fraction(share).limit_denominator(1_000_000)
        self.images_per_clip = images_per_clip

    def with_videos(self, videos: Source) -> "Joint":
        """Return the same with other videos."""
        return Joint(self.images, videos, share=self.share, images_per_clip=self.images_per_clip)

    def __len__(self) -> int:
        return len(self.images) + len(self.videos)

    def key(self, index: int) -> str:
        """Return the path relative to the root of its kind; images come first."""
        source, own = self._of(index)
        return source.key(own)

    def label(self, index: int) -> int | None:
        """Return the class of a sample, or None."""
        source, own = self._of(index)
        return source.label(own)

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """Load an image (t = 1) or a clip. Raises BadFile."""
        source, own = self._of(index)
        return source.load(own, rng)

    def _of(self, index: int) -> tuple[Source, int]:
        return (self.images, index) if index < len(self.images) else (self.videos, index - len(self.images))

    def turn(self, step: int, seed: int) -> Turn:
        """Return the kind of batch of a step: a pure function of (seed, step).

        Of the first n steps, floor(n share + phase) - floor(phase) are images, with a phase in [0, 1) from the
        seed: the kinds are spread evenly, and any step is known without the ones before. In exact fractions.
        """
        phase = Fraction(mix(seed, 0x6A6F696E74) >> 32, 1 << 32)
        before, after = (int(n * self.share + phase) for n in (step, step + 1))
        return Turn("images", before) if after > before else Turn("videos", step - before)


class Views:
    """The samples of a source in K views; itself a `Source`, in the first view.

    Steps n K ... n K + K - 1 have each view once, in an order that follows from (seed, n). Each view has an order of
    the samples of its own, and goes on in it from one of its steps to the next.
    """

    def __init__(self, views: Sequence[Source], pixels: Sequence[int]) -> None:
        self.views = tuple(views)
        self.pixels = tuple(pixels)
        """Pixels of a sample in each view, over all its frames."""

    def __len__(self) -> int:
        return len(self.views[0])

    def key(self, index: int) -> str:
        """Return the name of a sample."""
        return self.views[0].key(index)

    def label(self, index: int) -> int | None:
        """Return the class of a sample, or None."""
        return self.views[0].label(index)

    def load(self, index: int, rng: torch.Generator) -> UInt8[Tensor, "t h w 3"]:
        """Load a sample in the first view. Raises BadFile."""
        return self.views[0].load(index, rng)

    def turn(self, step: int, seed: int) -> tuple[int, int]:
        """Return the number of the view of a step, and the number of its steps before: a pure function."""
        block, place = divmod(step, len(self.views))
        order = sorted(range(len(self.views)), key=lambda view: mix(seed, _TURN, block, view))
        return order[place], block

    def pixels_of(self, step: int, seed: int) -> int:
        """Return the pixels of each sample of a step."""
        return self.pixels[self.turn(step, seed)[0]]

    def plan(self, seed: int, batch_size: int) -> Callable[[int], list[tuple[int, int, int]]]:
        """Return the function from a step to (view, epoch, sample) of each row of its batch."""
        sizes = even_batches(batch_size, self.pixels)
        orders = [Order(len(self), mix(seed, _TURN, view) >> 1) for view in range(len(self.views))]

        def rows(step: int) -> list[tuple[int, int, int]]:
            view, nth = self.turn(step, seed)
            return [(view, *orders[view](nth * sizes[view] + i)) for i in range(sizes[view])]

        return rows


_TURN = 0x7669657773
"""Stream of random numbers that decides whose turn it is."""


def even_batches(batch_size: int, pixels: Sequence[int]) -> tuple[int, ...]:
    """Return the samples of a batch of each view: as many as have about the pixels of `batch_size` of the first, at
    least one."""
    return tuple(max(1, round(Fraction(batch_size * pixels[0], each))) for each in pixels)
