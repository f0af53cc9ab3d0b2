"""The border between files and networks: uint8 images outside, float `video` in [-1, 1] inside, and the padding rule.

A `video` is float `b 3 t h w` in [-1, 1]; an image is a video with t = 1. uint8 appears only here, in `data` and where
results are written.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from smalti.arguments import check_arguments, check_least
from smalti.devices import is_in_graph
from smalti.errors import BadTensor, ConfigError

if TYPE_CHECKING:
    from PIL import Image

LARGEST_PIXEL = 1.5
"""Values of a video are in [-1, 1]; a decoder or a filter may exceed that a little, another scale by more than this."""
_ORIENTATION = 0x0112  # the EXIF tag
_BAND = 1 << 20
"""Pixels of an image that are converted to RGB at a time."""


class Size(NamedTuple):
    """Frames, height and width of a video; also strides, the frames and pixels of one latent cell on each axis."""

    t: int
    h: int
    w: int


def size_of(video: Tensor) -> Size:
    """Return frames, height and width of a video `b 3 t h w`."""
    return Size(*video.shape[2:])


def to_video(pixels: object) -> Float[Tensor, "b 3 t h w"]:
    """Convert 8-bit pixels to a float32 video `b 3 t h w`: u / 127.5 - 1, so 0 is -1 and 255 is 1 exactly.

    One rule: pixels are uint8 and RGB with the channels last. `h w 3` is an image and `t h w 3` are the frames of a
    clip (both give b = 1), `b t h w 3` is a batch of clips, as a tensor or a numpy array. An image of Pillow, of any
    mode, becomes RGB as `smalti reconstruct` reads it: upright, transparent pixels on white. A list is a batch, a row
    for each item, all of one size and length: a list of images gives t = 1; frames of a clip are stacked before.
    `batch` takes several sizes.

    Raises BadTensor for anything else: floats (which are a video already, or become one by `x * 2 - 1` from [0, 1]),
    grey or RGBA arrays, channels first, sizes that differ, nothing.
    """
    if isinstance(pixels, list | tuple):
        videos = [to_video(item) for item in pixels]
        shapes = [tuple(video.shape[2:]) for video in videos]
        if not videos or len(set(shapes)) > 1:
            sizes = f"(t, h, w) = {shapes[0]} and {next(s for s in shapes if s != shapes[0])}" if videos else "none"
            hint = "; smalti.batch takes several sizes" if videos else ""
            raise BadTensor(f"pixels: a list is images or clips of one size and length (found {sizes}){hint}")
        return torch.cat(videos)
    if not isinstance(pixels, Tensor | np.ndarray):
        pixels = _from_pillow(pixels)
    if str(pixels.dtype).removeprefix("torch.") != "uint8" or not 3 <= pixels.ndim <= 5 or pixels.shape[-1] != 3:
        hint = ""
        if "float" in str(pixels.dtype):
            hint = "; floats in [0, 1] become a video by x * 2 - 1"
        elif 3 in pixels.shape[-3:-2]:
            move = "pixels.movedim(" if isinstance(pixels, Tensor) else "np.moveaxis(pixels, "
            hint = f"; with the channels first: {move}-3, -1)"
        raise BadTensor(f"pixels must be uint8 h w 3, t h w 3 or b t h w 3, RGB (found {describe(pixels)}){hint}")
    if 0 in pixels.shape:
        raise BadTensor(f"pixels are empty (found {describe(pixels)})")
    frames = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    while frames.ndim < 5:
        frames = frames[None]
    # In place: the float video of an image of 64 million pixels takes 768 MB, and exists once. By a number that is on a
    # CUDA device it is divided as on a CPU; by one that is not, it is multiplied by the rounded inverse.
    scale = torch.full((), 127.5, device=frames.device)
    return frames.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format).div_(scale).sub_(1)


class SameSize(NamedTuple):
    """Images or clips of one size and length as a batch."""

    video: Float[Tensor, "b 3 t h w"]
    places: list[int]
    """Places of the rows in the list that they came from."""


def batch(images: Sequence[object], *, most: int | None = None) -> list[SameSize]:
    """Sort images and clips of any sizes, as `to_video` takes them, into batches of one size and at most `most` rows.

    No pixel is added or lost, so each has the ids that it has alone; `places` says which it is:

        for video, places in smalti.batch(images):
            for place, ids in zip(places, tokenizer.encode(video)):
                ...

    Batches come in the order of their first rows. Raises BadTensor as `to_video` does, naming the place; ConfigError
    where `images` is no list, or empty, and for `most` below 1.
    """
    check_arguments(batch, locals())
    check_least({"most": (most, 1)})
    sizes: dict[tuple[int, ...], list[int]] = {}
    videos = []
    for place, image in enumerate(images):
        try:
            videos.append(to_video(image))
        except BadTensor as error:
            raise BadTensor(f"images: {place}: {error}") from None
        if len(videos[-1]) != 1:
            raise BadTensor(f"images: {place}: is a batch already (found {describe(image)}); give its rows")
        sizes.setdefault(tuple(videos[-1].shape), []).append(place)
    groups = [
        places[i : i + (most or len(places))]
        for places in sizes.values()
        for i in range(0, len(places), most or len(places))
    ]
    return [SameSize(torch.cat([videos[p] for p in places]), places) for places in sorted(groups)]


def _from_pillow(image: object) -> np.ndarray:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise BadTensor(
            f"pixels must be a uint8 tensor or numpy array, an image of Pillow or a list (found {describe(image)})"
        )
    return rgb_pixels(image)


def rgb_pixels(image: "Image.Image") -> np.ndarray:
    """Return the pixels of an image of Pillow, uint8 `h w 3`, as `to_rgb` has them, and turned as its EXIF orientation
    says (2 to 8).

    They are converted in bands, so that no more than the image and its result is held: at 64 million pixels, and
    whole, the conversion of 16-bit samples took 1.6 GB. Raises BadTensor as `to_rgb` does.
    """
    width, height = image.size
    if not width or not height:
        raise BadTensor(f"pixels are empty (found an image of {width} x {height})")
    pixels = np.empty((height, width, 3), np.uint8)
    rows, columns = max(1, _BAND // width), min(width, _BAND)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            box = (left, top, min(left + columns, width), min(top + rows, height))
            band = image if box == (0, 0, width, height) else image.crop(box)
            band.format = image.format
            pixels[box[1] : box[3], box[0] : box[2]] = np.asarray(to_rgb(band))
    return _upright(image, pixels)


def _upright(image: "Image.Image", pixels: np.ndarray) -> np.ndarray:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not touch the pixels
        return pixels
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:  # the other four are turned over a diagonal before
        pixels = pixels.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Return an image of Pillow as 8-bit RGB: transparent pixels laid on white, 16-bit samples v as round(v / 257).

    Raises BadTensor for samples whose white is not known (32 bits, floats)."""
    from PIL import Image

    mode, transparency = image.mode, image.info.get("transparency")
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        samples = np.asarray(image).astype(np.int64)
        levels = ((samples + 128) // 257).clip(0, 255).astype(np.uint8)  # round(v / 257) in integers
        if isinstance(transparency, int):
            levels[samples == transparency] = 255
        return Image.fromarray(levels).convert("RGB")
    alpha_in_palette = mode == "P" and image.palette is not None and image.palette.mode == "RGBA"
    if mode in ("RGB", "L", "1", "P") and transparency is None and not alpha_in_palette:
        return image.convert("RGB")
    if mode in ("RGB", "L", "1", "P", "PA", "LA", "La", "RGBA", "RGBa"):
        layer = image.convert("RGBA") if mode not in ("La",) else image.convert("LA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if mode in ("CMYK", "YCbCr", "RGBX"):
        return image.convert("RGB")
    raise BadTensor(f"samples of kind {mode} have no known white; convert it to 8 or 16 bits")


def check_video(video: Tensor, device: torch.device | None = None, name: str = "video", *, finite: bool = True) -> None:
    """Raise BadTensor unless `video` can be one: floats, `b 3 t h w` or `b 3 h w`, not empty, on `device`, and in eager
    mode within [-1.5, 1.5] and, if `finite`, without NaN. The line says what is wanted and how to get it."""
    wanted = f"{name} must be a float tensor b 3 t h w, or b 3 h w for images, in [-1, 1]"
    if not isinstance(video, Tensor) or not video.is_floating_point():
        raise BadTensor(f"{wanted} (found {describe(video)}); smalti.video.to_video makes one of 8-bit pixels")
    if video.ndim not in (4, 5) or video.shape[1] != 3:
        raise BadTensor(f"{wanted} (found {describe(video)}){_shape_hint(video, name)}")
    if device is not None and video.device != device:
        raise BadTensor(f"{name} is on {video.device}, the tokenizer on {device}: {name}.to(tokenizer.device)")
    if is_in_graph() or video.is_meta:
        return
    if not video.numel():
        raise BadTensor(f"{name} is empty (found {describe(video)})")
    low, high = torch.stack(video.detach().aminmax()).tolist()  # one wait for a GPU
    if not (low >= -LARGEST_PIXEL and high <= LARGEST_PIXEL):
        if not (math.isfinite(low) and math.isfinite(high)):
            if not finite:
                return
            count = int((~video.isfinite()).sum())
            raise BadTensor(f"{name} has {count:,} values that are not finite (NaN or infinite), which are no pixels")
        hint = f"; of 0 to 255: {name} / 127.5 - 1" if low >= 0 and high <= 255 else ""
        raise BadTensor(f"{name} has values from {low:g} to {high:g}, wanted are pixels in [-1, 1]{hint}")


def ids_grid(ids: Tensor, shape: Sequence[int] | None, device: torch.device) -> Tensor:
    """Return ids as `b t h w` or `b h w`. Raises BadTensor for others, those in a row without their
    grid among them, and for ids on another device than the tokenizer's."""
    if not isinstance(ids, Tensor):
        hint = "; of numpy: torch.from_numpy(ids)" if type(ids).__module__ == "numpy" else ""
        raise BadTensor(f"ids must be an integer tensor b t h w, or b h w for images (found {describe(ids)}){hint}")
    if ids.device != device:
        raise BadTensor(f"ids are on {ids.device}, the tokenizer on {device}: ids.to(tokenizer.device)")
    if shape is not None:
        grid = whole_numbers("shape", shape)
        if ids.ndim != 2 or len(grid) not in (2, 3) or min(grid) < 1 or math.prod(grid) != ids.shape[1]:
            raise BadTensor(
                f"shape: {grid} is not the grid (t, h, w) or (h, w) of ids in rows, b n (found {describe(ids)})"
            )
        return ids.view(len(ids), *grid)
    if ids.ndim not in (3, 4):
        hint = "; ids in a row need their grid: decode(ids, shape=(t, h, w)) or (h, w)" if ids.ndim == 2 else ""
        hint = "; in a row and without a batch: decode(ids[None], shape=(t, h, w))" if ids.ndim == 1 else hint
        raise BadTensor(f"ids must be b t h w, or b h w for images (found {describe(ids)}){hint}")
    return ids


def limit_pixels(video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
    """Return a decoded video cut off at [-1.5, 1.5], to be encoded again: an untrained decoder exceeds that."""
    return video.clamp(-LARGEST_PIXEL, LARGEST_PIXEL)


def _shape_hint(video: Tensor, name: str) -> str:
    """Return how a tensor of another shape becomes a video, where that can be told."""
    if video.ndim in (4, 5) and video.shape[-1] == 3:
        return f"; with the channels last: {name}.movedim(-1, 1)"
    if video.ndim in (4, 5) and video.shape[1] == 1:
        return f"; of grey: {name}.expand(-1, 3, {', '.join(['-1'] * (video.ndim - 2))})"
    if video.ndim in (4, 5) and video.shape[1] == 4:
        return f"; without the alpha channel: {name}[:, :3]"
    if video.ndim in (3, 4) and video.shape[0] == 3:
        return f"; without a batch: {name}[None]"
    return ""


def describe(x: object) -> str:
    """Return type and shape of a tensor or an array for a message, the type of anything else."""
    if isinstance(x, Tensor | np.ndarray):
        kind = "" if isinstance(x, Tensor) else "numpy "
        return f"{kind}{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    return type(x).__name__


def to_uint8(video: Float[Tensor, "b 3 t h w"]) -> UInt8[Tensor, "b t h w 3"]:
    """Convert a video to uint8 RGB frames: clamped to [-1, 1], then ROUNDED to the nearest of 256 levels (not cut off).

    `to_uint8(to_video(u))` is u exactly. Cutting off instead of rounding, as some projects do, costs half a level of
    bias. A half level goes to the even neighbour. Raises BadTensor on NaN, which has no grey level.
    """
    levels = video.detach().float().clamp(-1, 1).add_(1).mul_(127.5)
    if torch.isnan(levels).any():
        raise BadTensor("video has NaN values, which are no pixels: look for the step that produced them")
    return levels.round_().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def legal_size(size: tuple[int, int, int], strides: tuple[int, int, int], first: int = 1) -> Size:
    """Return the smallest legal (t, h, w) that holds `size`: t' = first + s_t n frames, h' = s_h n and w' = s_w n.

    The first frame stands alone (an image is a video of one frame), then whole groups of s_t frames follow; with
    `first` = s_t, the first group is whole too. Legal sizes map to themselves. Raises ValueError unless every number is
    at least 1.
    """
    if not torch.compiler.is_compiling() and min(*size, *strides) < 1:
        raise ValueError(f"size {tuple(size)} and strides {tuple(strides)} must be at least 1 on every axis")
    leads = (first if first < strides[0] or strides[0] == 1 else 0, 0, 0)
    # Of numbers from 0 on alone: ONNX divides towards zero.
    t, h, w = ((n - lead + s - 1) // s * s + lead for n, s, lead in zip(size, strides, leads, strict=True))
    return Size(t, h, w)


def latent_frames(frames: int, stride: int, first: int = 1) -> int:
    """Return how many latents hold so many frames (1 or more), of which the first latent holds `first` and each other
    one `stride`: for 1 + s*n frames, 1 + n."""
    return 1 - min(0, first - frames) // stride


def pad_to(video: Float[Tensor, "b 3 t h w"], size: tuple[int, int, int]) -> Float[Tensor, "b 3 t2 h2 w2"]:
    """Pad a video: repeat the last column at the right, the last row at the bottom, the last frame at the end.

    Law: `pad_to(v, size)[..., i, j, k] = v[..., min(i, t-1), min(j, h-1), min(k, w-1)]`, by any amount. Repeating
    keeps pixels causal (nothing before the end changes) and makes no edge that costs tokens. `crop_to` undoes it.
    Raises BadTensor where `size` is smaller than the video or the video is empty.
    """
    have, in_graph = tuple(video.shape[2:]), torch.compiler.is_compiling()
    if not in_graph and (min(have) < 1 or any(new < old for new, old in zip(size, have, strict=True))):
        raise BadTensor(f"a video of (t, h, w) = {have} cannot be padded to {tuple(size)}")
    for axis, (new, old) in enumerate(zip(size, have, strict=True), start=2):
        if in_graph or new > old:  # one graph for all sizes has no branch on a size
            index = torch.arange(new, device=video.device).clamp(max=old - 1)
            video = video.index_select(axis, index)
    return video


def crop_to(video: Float[Tensor, "b 3 t h w"], size: tuple[int, int, int]) -> Float[Tensor, "b 3 t2 h2 w2"]:
    """Return the first t frames, h rows and w columns of pixels, as a view: `crop_to(pad_to(v, any), v's size)` is v.

    Raises BadTensor where `size` is not within the video.
    """
    have = tuple(video.shape[2:])
    fits = torch.compiler.is_compiling() or all(1 <= new <= old for new, old in zip(size, have, strict=True))
    if not fits:
        raise BadTensor(f"a video of (t, h, w) = {have} cannot be cropped to {tuple(size)}")
    t, h, w = size
    return video[:, :, :t, :h, :w]


def to_int64(name: str, numbers: Tensor, first: int, end: int | None, whose: str) -> Tensor:
    """Return integers of any type as int64. Raises BadTensor for another type, and for one outside [first, end), the
    range of `whose`; where there is an `end`, and no graph is made."""
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise BadTensor(f"{name} must be integers (found {str(numbers.dtype).removeprefix('torch.')})")
    whole = numbers.long()
    if end is not None and not is_in_graph() and whole.numel():
        low, high = (int(number) for number in whole.aminmax())
        if low < first or high >= end:
            worst = low if low < first else high
            worst += 2**64 if worst < 0 and numbers.dtype == torch.uint64 else 0
            raise BadTensor(f"{name}: {worst} is outside [{first}, {end}), the range of {whose}")
    return whole


def whole_numbers(name: str, numbers: object) -> tuple[int, ...]:
    """Return the numbers of a size or grid. Raises ConfigError, naming the argument, for what are none."""
    if isinstance(numbers, Sequence) and numbers and all(isinstance(number, int | torch.SymInt) for number in numbers):
        return tuple(numbers)
    raise ConfigError(f"{name}: must be two or three whole numbers, as (17, 256, 256) (found {numbers!r})")


def crop(video: Float[Tensor, "b 3 *t h w"], size: tuple[int, ...]) -> Float[Tensor, "b 3 *t2 h2 w2"]:
    """Crop to (frames, height, width), of images to (height, width). Raises BadTensor for what is not within them."""
    have = tuple(video.shape[2:])
    if len(size) != len(have) or any(not 1 <= wanted <= most for wanted, most in zip(size, have, strict=True)):
        axes = "(frames, height, width)" if len(have) == 3 else "(height, width)"
        raise BadTensor(f"size: {size} is not within {axes} = {have}, which these ids give")
    if len(size) == 3:
        return crop_to(video, (size[0], size[1], size[2]))
    return video[..., : size[0], : size[1]]
