"""Prompts: tokens that stay, tokens that hint, class and task of a sample; and the tasks on video that make them.

One rule makes the latent masks of all tasks. A cell of a causal tokenizer is *known* if every pixel that its token
depends on is known: then the token of the known pixels is the token of the whole video, and stays as it is. A cell is
*hinted* if it is not known but some pixel of its own is: its token in the condition (the known pixels, with the rest
filled in plainly) is shown to the model in place of a mask and sampled anew (COMMIT, MAGVIT, arXiv 2212.05199). All
other cells are masked.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from smalti.config import Config
from smalti.devices import send
from smalti.errors import ConfigError
from smalti.generation.blocks import Condition, NetworkConfig, TaskKind
from smalti.video import legal_size


class Prompt(NamedTuple):
    """Known tokens stay bit for bit; hinted ones are shown to the model until their cell is filled.

    `ids` is read where `known` or `hinted` is true, and nowhere else.
    """

    ids: Int[Tensor, "b t h w"]
    known: Bool[Tensor, "b t h w"]
    hinted: Bool[Tensor, "b t h w"] | None = None
    condition: Condition = Condition()

    @property
    def visible(self) -> Bool[Tensor, "b t h w"]:
        """Cells whose `ids` the model gets: known and hinted ones."""
        return self.known if self.hinted is None else self.known | self.hinted

    def to(self, device: torch.device) -> "Prompt":
        """Move it to a device."""
        ids, known, hinted, condition = self
        moved = Condition(*(None if x is None else send(x, device) for x in condition))
        shown = None if hinted is None else send(hinted, device)
        return Prompt(send(ids, device), send(known, device), shown, moved)

    def checked(self, config: NetworkConfig, hints: bool) -> "Prompt":
        """Return it without hints at known cells. Raises ConfigError unless all of it fits together and the model."""
        self.condition.check(config, len(self.ids))
        for name, mask in (("known", self.known), ("hinted", self.hinted)):
            if mask is not None and mask.shape != self.ids.shape:
                raise ConfigError(
                    f"prompt: {name} is {_by(mask)} and ids are {_by(self.ids)}; both are samples x t x h x w"
                )
        if self.hinted is None or not bool((self.hinted & ~self.known).any()):
            return self._replace(hinted=None)
        if not hints:
            raise ConfigError("prompt: hinted cells need a model of hints: true; this one was trained without")
        return self._replace(hinted=self.hinted & ~self.known)


def empty_prompt(
    count: int,
    grid: tuple[int, int, int],
    *,
    labels: Int[Tensor, "b"] | None = None,
    tasks: Int[Tensor, "b"] | None = None,
    device: torch.device | None = None,
) -> Prompt:
    """Make a prompt of `count` samples without any token: whole images or videos, of a class or of none."""
    ids = torch.zeros(count, *grid, dtype=torch.int64, device=device)
    return Prompt(ids, torch.zeros_like(ids, dtype=torch.bool), None, Condition(labels, tasks))


def prefix_prompt(prefix: Int[Tensor, "b t h w"], grid: tuple[int, int, int], condition: Condition) -> Prompt:
    """Make a prompt whose first latent frames are known. Raises ConfigError for a prefix that does not fit the grid."""
    frames, *side = prefix.shape[1:]
    if tuple(side) != tuple(grid[1:]) or not 1 <= frames < grid[0]:
        raise ConfigError(
            f"prefix: {_by(prefix[0])} latent tokens (t x h x w) cannot begin a grid of "
            f"{grid[0]} x {grid[1]} x {grid[2]}; it needs the same height and width and fewer frames"
        )
    prompt = empty_prompt(len(prefix), grid, device=prefix.device)
    prompt.ids[:, :frames], prompt.known[:, :frames] = prefix, True
    return prompt._replace(condition=condition)


def _by(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))


Grid = tuple[int, int, int]


class GenerationTask(Config):
    """Whole images or videos, of a class or of none: nothing is known."""

    kind: Literal["generation"] = "generation"

    def known_pixels(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """Return a mask without any pixel."""
        return torch.zeros(size, dtype=torch.bool)

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Return grey frames."""
        return torch.zeros_like(video)


class PredictionTask(Config):
    """Video after its first frames. 1 + s n of them are known latent frames; a remainder hints at the next one."""

    kind: Literal["prediction"] = "prediction"
    frames: int = Field(1, ge=1)
    """Number of known frames at the beginning; the papers have 1 (BAIR) and 5 (Kinetics-600)."""

    def known_pixels(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """Return a mask of the first frames. Raises ConfigError if none is left to predict."""
        if self.frames >= size[0]:
            raise ConfigError(f"task.frames: {self.frames} frames of {size[0]} are known, so none is left to predict")
        return (torch.arange(size[0]) < self.frames)[:, None, None].repeat(1, *size[1:])

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Repeat the last known frame."""
        return video[:, :, torch.arange(video.shape[2], device=video.device).clamp(max=self.frames - 1)]


class InterpolationTask(Config):
    """Video between its first and its last frame."""

    kind: Literal["interpolation"] = "interpolation"

    def known_pixels(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """Return a mask of the first and the last frame. Raises ConfigError if there is none between them."""
        if size[0] < 3:
            raise ConfigError(f"task interpolation: {size[0]} frames have none between the first and the last")
        known = torch.zeros(size, dtype=torch.bool)
        known[0] = known[-1] = True
        return known

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Blend from the first frame to the last in equal steps."""
        along = torch.linspace(0, 1, video.shape[2], dtype=video.dtype, device=video.device).view(-1, 1, 1)
        return video[:, :, :1] * (1 - along) + video[:, :, -1:] * along


class PaintingTask(Config):
    """The surroundings of a box of half the side (outpainting), or its inside (inpainting); the rest is known.

    central: the middle in both directions; vertical: the middle columns; horizontal: the middle rows; moving: columns
    whose left edge goes from 0 to the middle over the clip (out: of all rows; in: of the middle rows).
    """

    kind: Literal["outpainting", "inpainting"]
    """Whether the surroundings of the box are generated (`outpainting`) or its inside (`inpainting`)."""
    region: Literal["central", "vertical", "horizontal", "moving"] = "central"
    """Position of the box: the middle in both directions, the middle columns, the middle rows, or columns that move to
    the right over the clip."""

    def box(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """Return True inside the box, which leaves a quarter of a side, rounded down, on each side of it."""
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

    def known_pixels(self, size: Grid) -> Bool[Tensor, "t h w"]:
        """Return a mask of the box, or of all but the box."""
        box = self.box(size)
        return box if self.kind == "outpainting" else ~box

    def fill(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Fill with the nearest pixel of the box in outpainting with a fixed box, with grey otherwise."""
        known = self.known_pixels((video.shape[2], video.shape[3], video.shape[4]))
        if self.kind == "outpainting" and self.region != "moving":
            rows, columns = (known.any(axes).nonzero()[:, 0] for axes in ((0, 2), (0, 1)))
            i = torch.arange(video.shape[3], device=video.device).clamp(int(rows[0]), int(rows[-1]))
            j = torch.arange(video.shape[4], device=video.device).clamp(int(columns[0]), int(columns[-1]))
            return video[:, :, :, i[:, None], j]
        return torch.where(send(known, video.device), video, 0.0)


TaskConfig = Annotated[GenerationTask | PredictionTask | InterpolationTask | PaintingTask, Field(discriminator="kind")]


class LatentCells(NamedTuple):
    """Latent cells of a task."""

    known: Bool[Tensor, "t h w"]
    hinted: Bool[Tensor, "t h w"]


def latent_cells(known_pixels: Bool[Tensor, "t h w"], strides: Grid, reach: int | None = None) -> LatentCells:
    """Find the latent cells of known pixels, by the rule at the top of this file.

    A token depends on the frames up to the end of its own, and on pixels up to `reach` away from its own (a tokenizer's
    `encoder.reach`); None is the whole frame. Beyond the edges of the frame there is nothing to know. Raises
    ConfigError for a size that is not legal for the strides.
    """
    size = (known_pixels.shape[0], known_pixels.shape[1], known_pixels.shape[2])
    if tuple(legal_size(size, strides)) != size:
        frames, height, width = strides
        raise ConfigError(
            f"size: {size[0]} x {size[1]} x {size[2]} has no whole latent grid; it takes 1 + {frames} n frames, "
            f"heights in multiples of {height} and widths in multiples of {width}"
        )
    hinted = _max_per_cell(known_pixels.float(), strides) > 0
    unknown = (~known_pixels).float()
    if reach is None:
        missing = unknown.amax((1, 2), keepdim=True).expand(-1, size[1] // strides[1], size[2] // strides[2])
    else:
        sides = (strides[1] + 2 * reach, strides[2] + 2 * reach)
        missing = F.max_pool2d(unknown[:, None], sides, strides[1:], padding=reach)[:, 0]
    past = missing.cummax(0).values
    known = past[:: strides[0]] == 0
    return LatentCells(known, hinted & ~known)


def _max_per_cell(x: Float[Tensor, "t h w"], strides: Grid) -> Float[Tensor, "t2 h2 w2"]:
    """Return the largest value over each cell's own pixels: the first frame alone, then every `strides[0]` frames."""
    stretched = torch.cat([x[:1].expand(strides[0] - 1, -1, -1), x])
    return F.max_pool3d(stretched[None], strides, strides)[0]


def task_cells(task: TaskConfig, grid: Grid, strides: Grid, *, reach: int | None = None) -> LatentCells:
    """Find the latent cells of a task on a grid of tokens (`latent_cells`)."""
    size = (1 + (grid[0] - 1) * strides[0], grid[1] * strides[1], grid[2] * strides[2])
    return latent_cells(task.known_pixels(size), strides, reach)


def task_prompt(
    task: TaskConfig,
    ids: Int[Tensor, "b t h w"],
    strides: Grid,
    *,
    reach: int | None = None,
    condition: Condition | None = None,
) -> Prompt:
    """Make the prompt of a task from the ids of its condition, `task.fill(video)` encoded (for generation: any ids)."""
    cells = task_cells(task, (ids.shape[1], ids.shape[2], ids.shape[3]), strides, reach=reach)
    known, hinted = (mask.to(ids.device).expand_as(ids) for mask in cells)
    return Prompt(ids, known, hinted, condition or Condition())


def task_tokens(kind: TaskKind, tasks: tuple[TaskKind, ...], count: int) -> Int[Tensor, "b"] | None:
    """Return the `tasks` of a condition: `count` times the index of a task among those of a model; None if it has no
    such tokens. Raises ConfigError for a task that the model has not learned.
    """
    if not tasks:
        return None
    if kind not in tasks:
        raise ConfigError(f"task: this model has not learned {kind} (it has: {', '.join(tasks)})")
    return torch.full((count,), tasks.index(kind))


def paste_known(
    known_pixels: Bool[Tensor, "t h w"], video: Float[Tensor, "b 3 t h w"], generated: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b 3 t h w"]:
    """Return the generated video with the known pixels of the true one copied into it."""
    return torch.where(known_pixels.to(video.device), video, generated)


def keep_static(
    last: Float[Tensor, "b 3 h w"],
    generated: Float[Tensor, "b 3 t h w"],
    index: int,
    *,
    change: float = 0.8,
    window: int = 7,
) -> Float[Tensor, "b 3 t h w"]:
    """Return the generated video where it moves, and the last known frame, pixel for pixel, where it stands still.

    A tokenizer loses detail that a known frame has. Let m be the mean squared difference, over a `window` of pixels and
    the colours, of a generated frame from the generated one at `index`, which is that of the known frame. Then a share
    exp(-m / change^2) of each pixel is the known one: all of it where nothing has changed, nothing where all has.
    """
    moved = (generated - generated[:, :, index, None]).square().mean(1)  # b t h w
    moved = F.avg_pool2d(moved, window, 1, window // 2, count_include_pad=False)
    share = torch.exp(-moved / change**2)[:, None]
    return share * last[:, :, None] + (1 - share) * generated
