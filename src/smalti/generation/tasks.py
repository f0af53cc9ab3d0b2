"""Tasks on video as masks: which pixels are given, which latent cells are then exact, and which only hint.

One rule makes the latent masks of all tasks. A cell of a causal tokenizer is *known* if every pixel that its token
depends on is given: then the token of the given pixels is the token of the whole video, and stays as it is. A cell is
*hinted* if it is not known but some pixel of its own is given: its token in the condition (the given pixels, with the
rest filled in plainly) is shown to the model in place of a mask and drawn anew (COMMIT, MAGVIT, arXiv 2212.05199). All
other cells are masked.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.errors import ConfigError
from smalti.generation.blocks import Condition, TaskKind
from smalti.generation.prompt import Prompt
from smalti.video import legal_size

Grid = tuple[int, int, int]


class GenerationTask(Config):
    """Nothing is given: whole pictures or videos, of a class or of none."""

    kind: Literal["generation"] = "generation"

    def given(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """No pixel."""
        return torch.zeros(size, dtype=torch.bool)

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Grey."""
        return torch.zeros_like(video)


class PredictionTask(Config):
    """The first frames are given. 1 + s n of them are known latent frames; a remainder hints at the next one."""

    kind: Literal["prediction"] = "prediction"
    frames: int = Field(1, ge=1)
    """Number of known frames at the beginning; the papers have 1 (BAIR) and 5 (Kinetics-600)."""

    def given(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """The first frames. Raises ConfigError if none is left to predict."""
        if self.frames >= size[0]:
            raise ConfigError(f"task.frames: {self.frames} frames are given of {size[0]}, so none is left to predict")
        return (torch.arange(size[0]) < self.frames)[:, None, None].repeat(1, *size[1:])

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The last given frame, repeated."""
        return video[:, :, torch.arange(video.shape[2]).clamp(max=self.frames - 1)]


class InterpolationTask(Config):
    """The first and the last frame are given."""

    kind: Literal["interpolation"] = "interpolation"

    def given(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """The first and the last frame. Raises ConfigError if there is none between them."""
        if size[0] < 3:
            raise ConfigError(f"task interpolation: {size[0]} frames have none between the first and the last")
        given = torch.zeros(size, dtype=torch.bool)
        given[0] = given[-1] = True
        return given

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """From the first frame to the last in equal steps."""
        along = torch.linspace(0, 1, video.shape[2], dtype=video.dtype, device=video.device).view(-1, 1, 1)
        return video[:, :, :1] * (1 - along) + video[:, :, -1:] * along


class PaintingTask(Config):
    """A box of half the side is given and its surroundings are painted (out), or the other way round (in).

    central: the middle in both directions; vertical: the middle columns; horizontal: the middle rows; moving: columns
    whose left edge goes from 0 to the middle over the clip (out: of all rows; in: of the middle rows).
    """

    kind: Literal["outpainting", "inpainting"]
    """Whether the surroundings of the box are generated (`outpainting`) or its inside (`inpainting`)."""
    region: Literal["central", "vertical", "horizontal", "moving"] = "central"
    """Position of the box: the middle in both directions, the middle columns, the middle rows, or columns that move to
    the right over the clip."""

    def box(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """True inside the box, which leaves a quarter of a side, rounded down, on each side of it."""
        t, h, w = size
        row, column = torch.arange(h), torch.arange(w)
        middle_rows = (row >= h // 4) & (row < h - h // 4)
        left = torch.full((t,), w // 4)
        width = w - 2 * (w // 4)
        if self.region == "moving":
            left = torch.linspace(0, w - width, t, dtype=torch.float64).round().long()
        columns = (column >= left[:, None]) & (column < left[:, None] + width)
        if self.region == "horizontal":
            columns = torch.ones_like(columns)
        if self.region == "vertical" or (self.region == "moving" and self.kind == "outpainting"):
            middle_rows = torch.ones_like(middle_rows)
        return middle_rows[None, :, None] & columns[:, None, :]

    def given(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """The box, or all but the box."""
        box = self.box(size)
        return box if self.kind == "outpainting" else ~box

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """The nearest pixel of the box where it stands still and its surroundings are wanted; grey elsewhere."""
        given = self.given((video.shape[2], video.shape[3], video.shape[4])).to(video.device)
        if self.kind == "outpainting" and self.region != "moving":
            rows, columns = (given.any(axes).nonzero()[:, 0] for axes in ((0, 2), (0, 1)))
            i = torch.arange(video.shape[3], device=video.device).clamp(int(rows[0]), int(rows[-1]))
            j = torch.arange(video.shape[4], device=video.device).clamp(int(columns[0]), int(columns[-1]))
            return video[:, :, :, i[:, None], j]
        return torch.where(given, video, 0.0)


TaskConfig = Annotated[GenerationTask | PredictionTask | InterpolationTask | PaintingTask, Field(discriminator="kind")]


class Cells(NamedTuple):
    """The latent grid of a task."""

    known: Bool[Tensor, "t h w"]
    hinted: Bool[Tensor, "t h w"]


def cells(given: Bool[Tensor, "t h w"], strides: Grid, reach: int | None = None) -> Cells:
    """The latent cells of given pixels, by the rule at the top of this file.

    A token depends on the frames up to the end of its own, and on pixels up to `reach` away from its own (a tokenizer's
    `encoder.reach`); None is the whole frame. Beyond the edges of the frame there is nothing to know. Raises
    ConfigError for a size that is not legal for the strides.
    """
    size = (given.shape[0], given.shape[1], given.shape[2])
    if tuple(legal_size(size, strides)) != size:
        frames, rows, columns = strides
        raise ConfigError(
            f"size: {size[0]} x {size[1]} x {size[2]} has no whole latent grid; it takes 1 + {frames} n frames and "
            f"multiples of {rows} rows and {columns} columns"
        )
    hinted = _groups(given.float(), strides) > 0
    absent = (~given).float()
    if reach is None:
        unseen = absent.amax((1, 2), keepdim=True).expand(-1, size[1] // strides[1], size[2] // strides[2])
    else:
        sides = (strides[1] + 2 * reach, strides[2] + 2 * reach)
        unseen = F.max_pool2d(absent[:, None], sides, strides[1:], padding=reach)[:, 0]
    past = unseen.cummax(0).values
    known = past[:: strides[0]] == 0
    return Cells(known, hinted & ~known)


def _groups(x: Float[Tensor, "t h w"], strides: Grid) -> Float[Tensor, "t2 h2 w2"]:
    """The largest value over each cell's own pixels: the first frame alone, then every `strides[0]` frames."""
    stretched = torch.cat([x[:1].expand(strides[0] - 1, -1, -1), x])
    return F.max_pool3d(stretched[None], strides, strides)[0]


def task_prompt(
    task: TaskConfig,
    ids: Int[Tensor, "b t h w"],
    strides: Grid,
    *,
    reach: int | None = None,
    condition: Condition | None = None,
) -> Prompt:
    """The prompt of a task, from the ids of its condition: of `task.fill(video)`, encoded. (Of generation: any ids.)"""
    grid = ids.shape[1:]
    size = (1 + (grid[0] - 1) * strides[0], grid[1] * strides[1], grid[2] * strides[2])
    known, hinted = (mask.to(ids.device).expand_as(ids) for mask in cells(task.given(size), strides, reach))
    return Prompt(ids, known, hinted, condition or Condition())


def task_tokens(kind: TaskKind, tasks: tuple[TaskKind, ...], count: int) -> Int[Tensor, "b"] | None:
    """The `tasks` of a condition: `count` times the index of a task among those of a model; None if it has no such
    tokens. Raises ConfigError for a task that the model has not learned.
    """
    if not tasks:
        return None
    if kind not in tasks:
        raise ConfigError(f"task: this model has not learned {kind} (it has: {', '.join(tasks)})")
    return torch.full((count,), tasks.index(kind))


def paste(
    given: Bool[Tensor, "t h w"], video: Float[Tensor, "b 3 t h w"], generated: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b 3 t h w"]:
    """The generated video with the given pixels of the true one in their places."""
    return torch.where(given.to(video.device), video, generated)


def hold(
    last: Float[Tensor, "b 3 h w"],
    generated: Float[Tensor, "b 3 t h w"],
    place: int,
    *,
    change: float = 0.8,
    window: int = 7,
) -> Float[Tensor, "b 3 t h w"]:
    """The generated video where it moves, and the last given frame, pixel for pixel, where it stands still.

    A tokenizer loses detail that a given frame has. Let m be the mean squared difference, over a `window` of pixels and
    the colours, of a generated frame from the generated one at `place`, where the given one stands. Then a share
    exp(-m / change^2) of each pixel is the given one: all of it where nothing has changed, nothing where all has.
    """
    moved = (generated - generated[:, :, place, None]).square().mean(1)  # b t h w
    moved = F.avg_pool2d(moved, window, 1, window // 2, count_include_pad=False)
    share = torch.exp(-moved / change**2)[:, None]
    return share * last[:, :, None] + (1 - share) * generated
