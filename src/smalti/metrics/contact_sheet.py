"""Contact sheets: images side by side, to be looked at."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 4
_LINE = 14
"""Height of a title in pixels."""


def contact_sheet(rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str]) -> Image.Image:
    """Lay out rows of images, each uint8 `h w 3`, under one title per column; images keep their size.

    Raises ValueError for no rows, for a row with another number of images than titles, or for a wrong array.
    """
    if not rows or not titles:
        raise ValueError("a contact sheet needs at least one row and one title")
    for i, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {i} has {len(row)} images for {len(titles)} titles")
        for image in row:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"row {i}: an image is uint8 h w 3, got {image.dtype} {image.shape}")
    widths = [max(row[j].shape[1] for row in rows) for j in range(len(titles))]
    heights = [max(image.shape[0] for image in row) for row in rows]
    across = sum(widths) + _MARGIN * (len(widths) + 1)
    down = sum(heights) + _MARGIN * (len(heights) + 1) + _LINE
    sheet = Image.new("RGB", (across, down), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    x = _MARGIN
    for j, (title, width) in enumerate(zip(titles, widths, strict=True)):
        canvas.text((x, 1), _fitted(canvas, title, font, width), fill="black", font=font)
        y = _MARGIN + _LINE
        for row, height in zip(rows, heights, strict=True):
            sheet.paste(Image.fromarray(row[j]), (x, y))
            y += height + _MARGIN
        x += width + _MARGIN
    return sheet


def difference(
    a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"], gain: float = 4.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Compute 128 + gain · (b - a), clipped: grey where equal, brighter where b is brighter."""
    shift = gain * (b.astype(np.float32) - a.astype(np.float32))
    return np.clip(np.rint(128 + shift), 0, 255).astype(np.uint8)


def _fitted(
    canvas: ImageDraw.ImageDraw, title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """Shorten a title that is too long, from its folders on, then in the middle: names of one family begin alike."""

    def fits(text: str) -> bool:
        return canvas.textlength(text, font=font) <= width

    while "/" in title and not fits(title):
        title = title.partition("/")[2]
    whole = title
    for length in range(len(whole) - 1, -1, -1):
        if fits(title):
            break
        title = f"{whole[: length - length // 2]}..{whole[len(whole) - length // 2 :]}" if length else ""
    return title
