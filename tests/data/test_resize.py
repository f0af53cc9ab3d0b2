"""Pixels as the two projects have them: OpenCV's filters to the bit, and each project's own order of steps."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.data import (
    ImagesConfig,
    bundled,
    magicmaster_images,
    magicmaster_videos,
    mindone_images,
    mindone_videos,
    read_clip,
    read_image,
)
from smalti.data.cv2_resize import cv2_resize
from smalti.data.views import ViewConfig
from smalti.errors import BadFile, ConfigError
from smalti.tokens.config import TokenizeOptions
from tests.goldens import rule

FILTERS = ("cv2-bilinear", "cv2-bicubic")
GOLDEN = rule.load("cv2_resize")


def frame(case: int) -> np.ndarray:
    pixels = rule.pixels(f"cv2.{case}", (*GOLDEN.tensors["cases"][case, :2].tolist(), 3))
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if case % 4 == 3 else pixels


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("filter", FILTERS)
def test_resizing_equals_opencv_to_the_bit_at_400_sizes(filter: str) -> None:
    cases = GOLDEN.tensors["cases"][:, 2:].tolist()
    found = [zlib.crc32(cv2_resize(frame(i), size, filter).tobytes()) for i, size in enumerate(map(tuple, cases))]
    assert len(cases) == 400
    assert found == GOLDEN.tensors[f"crc32.{filter}"].tolist()


def test_resizing_equals_whole_images_of_opencv() -> None:
    whole = [name for name in GOLDEN.tensors if name.startswith(FILTERS)]
    assert len(whole) == 16
    for name in whole:
        filter, case = name.split(".")
        expected = GOLDEN.tensors[name].numpy()
        assert np.array_equal(cv2_resize(frame(int(case)), expected.shape[:2], filter), expected)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_is_a_part_of_the_whole(h: int, w: int, rows: int, columns: int, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, columns - 1))
    right = data.draw(st.integers(left + 1, columns))
    pixels = rule.pixels("window", (h, w, 3))
    for filter in FILTERS:
        whole = cv2_resize(pixels, (rows, columns), filter)
        assert np.array_equal(cv2_resize(pixels, (rows, columns), filter, slice(left, right)), whole[:, left:right])


def test_opencvs_filters_alias_and_pillows_do_not() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 255
    shown = {
        filter: ViewConfig(size=32, crop="center", flip=False, crop_order="before", resize=filter).view(
            (256, 256), rng()
        )
        for filter in ("bilinear", *FILTERS)
    }
    means = {filter: view.apply(stripes).mean() for filter, view in shown.items()}
    assert means["bilinear"] == pytest.approx(255 / 8, abs=1)
    assert means["cv2-bilinear"] < 1  # the stripes fall between the pixels that it reads
    assert means["cv2-bicubic"] < 1


SIDES = st.integers(1, 300)


@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 64), st.integers(0, 1000), st.sampled_from(["before", "after"]))
@settings(max_examples=80, deadline=None)
def test_whole_pixels_are_cut_inside_the_image(h: int, w: int, rows: int, columns: int, seed: int, cut: str) -> None:
    for crop in ("random", "center"):
        config = ViewConfig(size=(rows, columns), crop=crop, scale=(0.3, 1.0), crop_order=cut, resize="cv2-bilinear")
        view = config.view((h, w), rng(seed))
        left, top, right, bottom = view.box
        height, width = (h, w) if view.scaled is None else view.scaled
        assert all(side == int(side) for side in view.box)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if cut == "after":
            assert (bottom - top, right - left) == (rows, columns)
        assert view.apply(np.zeros((h, w, 3), np.uint8)).shape == (rows, columns, 3)


def test_opencvs_filters_need_whole_pixels() -> None:
    with pytest.raises(ConfigError, match="set crop_order to before or after"):
        ImagesConfig.parse({"path": "x", "resize": "cv2-bicubic"})


def test_a_thin_image_that_would_be_scaled_to_a_bomb_is_a_bad_file() -> None:
    config = ViewConfig(size=128, crop="center", crop_order="after", resize="cv2-bicubic")
    with pytest.raises(BadFile, match="would be scaled to 1280000 x 128 pixels") as caught:
        config.view((1, 10_000), rng(), "thin.png")
    assert (caught.value.code, caught.value.path) == ("bomb", "thin.png")


# ---- MagicMaster: the middle square of whole pixels, then the filter


def middle_square(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    short = min(height, width)
    top, left = int((height - short) / 2), int((width - short) / 2)
    return pixels[top : top + short, left : left + short]


@pytest.mark.parametrize("size", [32, 128, 256])
def test_magicmasters_images_are_pillows_own_steps(size: int) -> None:
    source = magicmaster_images(bundled.photos("heldout"), size).build()
    for index in range(len(source)):
        square = middle_square(read_image(bundled.photos("heldout") / source.key(index)).numpy())
        expected = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
        assert np.array_equal(source.load(index, rng(index))[0].numpy(), expected)


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_magicmasters_images_are_pillows_own_steps_at_any_size(h: int, w: int, size: int) -> None:
    pixels = rule.pixels("picture", (h, w, 3))
    expected = Image.fromarray(middle_square(pixels)).resize((size, size), Image.Resampling.BILINEAR)
    view = magicmaster_images(bundled.photos("heldout"), size).view((h, w), rng())
    assert np.array_equal(view.apply(pixels), np.asarray(expected))


def test_magicmasters_clips_are_the_middle_square_by_opencvs_filter() -> None:
    video_file = bundled.videos("heldout") / "march.mp4"
    config = magicmaster_videos(bundled.videos("heldout"), 64, train=False)
    source = config.build()
    clip = source.load([source.key(i) for i in range(len(source))].index("march.mp4"), rng())
    whole = read_clip(video_file).numpy()
    start = (41 - 33) // 2
    expected = [cv2_resize(middle_square(whole[start + 2 * i]), (64, 64), "cv2-bilinear") for i in range(17)]
    assert np.array_equal(clip.numpy(), np.stack(expected))


# ---- mindone: the filter until the short side fits, then the middle


def short_side_then_middle(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (rows - size) // 2, (columns - size) // 2
    return cv2_resize(pixels, (rows, columns), "cv2-bicubic")[top : top + size, left : left + size]


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_mindones_images_are_its_own_steps_at_any_size(h: int, w: int, size: int) -> None:
    pixels = rule.pixels("picture", (h, w, 3))
    view = mindone_images(bundled.photos("heldout"), size).view((h, w), rng())
    assert np.array_equal(view.apply(pixels), short_side_then_middle(pixels, size))


def test_mindones_clips_share_one_view_by_its_own_steps() -> None:
    video_file = bundled.videos("heldout") / "march.mp4"
    clip = mindone_videos(video_file, 48, frames=5, stride=4, sampling="center").build().load(0, rng())
    whole = read_clip(video_file).numpy()
    start = (41 - 17) // 2
    expected = [short_side_then_middle(whole[start + 4 * i], 48) for i in range(5)]
    assert np.array_equal(clip.numpy(), np.stack(expected))


def test_mindones_options_crop_and_mirror() -> None:
    config = mindone_images(bundled.photos("heldout"), 32, random_crop=True, flip=True)
    views = [config.view((40, 80), rng(i)) for i in range(200)]
    assert {view.scaled for view in views} == {(32, 64)}
    assert {view.box[0] for view in views} == set(range(33))
    assert {view.flip for view in views} == {True, False}


@pytest.mark.parametrize(("rows", "columns"), [(144, 256), (64, 64), (33, 71), (300, 500)])
@pytest.mark.parametrize("cut", ["before", "after"])
def test_torchs_bicubic_is_that_of_pillow_within_two_levels(rows, columns, cut):
    frame = np.random.default_rng(rows).integers(0, 256, (180, 320, 3), np.uint8)
    frame = np.array(Image.fromarray(frame).resize((400, 225), Image.Resampling.BILINEAR))
    found, wanted = (
        ViewConfig(size=(rows, columns), crop="center", flip=False, crop_order=cut, resize=name)
        .view(frame.shape[:2], torch.Generator())
        .apply(frame)
        .astype(int)
        for name in ("torch-bicubic", "bicubic")
    )
    assert found.shape == (rows, columns, 3)
    most = 1 if cut == "before" and rows < 180 else 2  # where it enlarges, rounding of the weights costs one more
    assert abs(found - wanted).max() <= most


def test_torchs_filter_knows_no_fractions_of_a_pixel():
    with pytest.raises(ConfigError, match="torch-bicubic knows no fractions"):
        ImagesConfig.parse({"path": "x", "resize": "torch-bicubic"})
    for name in ("torch-bicubic", "cv2-bilinear"):
        with pytest.raises(ConfigError, match="set cut to before or after"):
            TokenizeOptions.parse({"resize": name})


def cubic(many, few, a=-0.6):
    """The matrix of Keys' cubic kernel, widened where it shrinks, its rows of sum 1, edges repeated."""
    wide = max(1.0, many / few)
    rows = np.zeros((few, many))
    for row in range(few):
        centre = (row + 0.5) * many / few - 0.5
        for tap in range(math.floor(centre - 2 * wide), math.ceil(centre + 2 * wide) + 1):
            x = abs(tap - centre) / wide
            near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            rows[row, min(max(tap, 0), many - 1)] += near if x < 1 else far if x < 2 else 0.0
    return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(144, 256), (64, 64), (33, 71), (12, 20), (225, 400), (300, 500), (720, 401)])
@pytest.mark.parametrize("noise", [False, True])
def test_swscales_filter_is_a_cubic_that_widens_where_it_shrinks(size, noise):
    """Noise is of half the range: between its two passes swscale cuts what overshoots. It steps through a frame by
    1/65536 of a pixel, which noise that is enlarged shows."""
    frame = np.random.default_rng(size[0]).integers(70 if noise else 0, 180 if noise else 256, (225, 400, 3), np.uint8)
    if not noise:
        frame = np.array(Image.fromarray(frame[:60, :100]).resize((400, 225), Image.Resampling.BILINEAR))
    view = ViewConfig(size=size, crop="center", flip=False, crop_order="after", resize="swscale-bicubic")
    whole = view.view(frame.shape[:2], torch.Generator())
    found = whole._replace(box=(0, 0, *whole.scaled[::-1]), size=whole.scaled).apply(frame)
    rows, columns = (cubic(many, few) for many, few in zip(frame.shape[:2], whole.scaled, strict=True))
    channels = np.moveaxis(frame.astype(float), 2, 0)
    wanted = np.stack([rows @ channel @ columns.T for channel in channels], 2).clip(0, 255)
    assert abs(found - wanted).max() <= (5 if noise and size[0] > 225 else 1.5)
    assert abs((found - wanted).mean()) < (0.05 if size[0] > 20 else 0.5)


def test_swscales_filter_scales_whole_frames():
    for order in ("together", "before"):
        with pytest.raises(ConfigError, match=r"scales whole frames, .* set crop_order to after"):
            ImagesConfig.parse({"path": "x", "resize": "swscale-bicubic", "crop_order": order})
    with pytest.raises(ConfigError, match="set cut to after"):
        TokenizeOptions.parse({"resize": "swscale-bicubic"})
