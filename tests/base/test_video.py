"""The border: uint8 round trip, legal sizes, the padding rule."""

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.data import read_image
from smalti.errors import BadFile, BadTensor
from smalti.video import Size, crop_to, legal_size, pad_to, to_uint8, to_video

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
STRIDES = st.tuples(st.integers(1, 5), st.integers(1, 16), st.integers(1, 16))


def frames(size: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*size, 3), generator=rng, dtype=torch.uint8)


def test_every_grey_level_survives_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3).contiguous()
    assert torch.equal(to_uint8(to_video(levels)), levels[None])


def test_black_is_minus_one_and_white_is_one_exactly() -> None:
    pixels = torch.tensor([[[0, 0, 0], [255, 255, 255]]], dtype=torch.uint8)
    assert to_video(pixels)[0, 0, 0].tolist() == [[-1.0, 1.0]]


@given(SIZES, st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_frames_survive_the_round_trip_and_a_picture_is_a_video_of_one_frame(size, seed) -> None:
    pixels = frames(size, seed)
    video = to_video(pixels)
    assert video.shape == (1, 3, *size)
    assert torch.equal(to_uint8(video)[0], pixels)
    assert torch.equal(to_video(pixels[0]), video[:, :, :1])
    assert torch.equal(to_video(pixels.numpy()), video)
    assert torch.equal(to_video(np.ascontiguousarray(pixels.numpy()[0])), video[:, :, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_are_clamped_then_rounded(dtype: torch.dtype) -> None:
    video = torch.tensor([-7.0, -1.0, -0.999, 0.0, 0.25, 1.0, float("inf")], dtype=dtype)
    expected = np.rint((np.clip(video.double().numpy(), -1, 1) + 1) * 127.5).astype(np.uint8)
    found = to_uint8(video.view(1, 1, 1, 1, 7).expand(1, 3, 1, 1, 7))[0, 0, 0, :, 0]
    assert np.array_equal(found.numpy(), expected)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 3, 1, 2, 2), float("nan")))


@given(SIZES, STRIDES)
@settings(max_examples=50, deadline=None)
def test_the_legal_size_is_the_smallest_that_holds_the_size(size, strides) -> None:
    legal = legal_size(size, strides)
    assert (legal.t - 1) % strides[0] == legal.h % strides[1] == legal.w % strides[2] == 0
    assert all(0 <= new - old < stride for new, old, stride in zip(legal, size, strides, strict=True))
    assert legal_size(legal, strides) == legal


def test_an_image_needs_no_padding_in_time() -> None:
    assert legal_size((1, 17, 16), (4, 8, 8)) == Size(1, 24, 16)


@pytest.mark.parametrize(("size", "strides"), [((0, 8, 8), (4, 8, 8)), ((1, 8, 8), (4, 0, 8)), ((1, -8, 8), (1, 1, 1))])
def test_sizes_below_one_are_refused(size, strides) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        legal_size(size, strides)


@given(SIZES, st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)))
@settings(max_examples=30, deadline=None)
def test_cropping_undoes_padding_by_any_amount(size, extra) -> None:
    video = to_video(frames(size))
    target = tuple(n + m for n, m in zip(size, extra, strict=True))
    padded = pad_to(video, target)
    assert padded.shape[2:] == target
    assert torch.equal(crop_to(padded, size), video)
    t, h, w = (np.minimum(np.arange(new), old - 1) for new, old in zip(target, size, strict=True))
    expected = video.numpy()[:, :, t][:, :, :, h][..., w]
    assert np.array_equal(padded.numpy(), expected)


def test_padding_and_cropping_refuse_the_wrong_direction() -> None:
    video = to_video(frames((2, 4, 4)))
    with pytest.raises(ValueError, match="padded"):
        pad_to(video, (2, 4, 3))
    with pytest.raises(ValueError, match="cropped"):
        crop_to(video, (2, 4, 5))
    with pytest.raises(ValueError, match="cropped"):
        crop_to(video, (0, 4, 4))


def photo(mode, size=(6, 4)):
    """An image of Pillow in any mode, with colours and, where the mode has it, alpha."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8), "RGBA").convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_an_image_of_pillow_is_the_image_that_is_read_from_its_file(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image = photo(mode)
    image.save(path)
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        with pytest.raises(BadFile, match=r"bare YCbCr samples, which Pillow .* install 13"):
            read_image(path)
    else:
        assert torch.equal(to_video(image), to_video(read_image(path)))


def test_an_image_of_pillow_is_upright(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo("RGB").save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            assert torch.equal(to_video(image), to_video(read_image(tmp_path / "a.png")))


def test_a_list_is_a_batch():
    images = [photo("RGB"), np.asarray(photo("L").convert("RGB")), torch.zeros(4, 6, 3, dtype=torch.uint8)]
    video = to_video(images)
    assert video.shape == (3, 3, 1, 4, 6)
    for row, image in zip(video, images, strict=True):
        assert torch.equal(row[None], to_video(image))
    clips = [torch.zeros(2, 4, 6, 3, dtype=torch.uint8)] * 2
    assert to_video(clips).shape == (2, 3, 2, 4, 6)


BYTES = np.zeros((4, 6, 3), np.uint8)
REFUSED = {
    "floats": (torch.zeros(4, 6, 3), "x * 2 - 1"),
    "floats of numpy": (BYTES / 255, "x * 2 - 1"),
    "channels first": (torch.zeros(3, 4, 6, dtype=torch.uint8), "pixels.movedim(-3, -1)"),
    "channels first, of numpy": (np.moveaxis(BYTES, -1, 0), "np.moveaxis(pixels, -3, -1)"),
    "grey": (BYTES[..., 0], "h w 3, t h w 3 or b t h w 3"),
    "RGBA": (np.zeros((4, 6, 4), np.uint8), "h w 3, t h w 3 or b t h w 3"),
    "16 bits": (BYTES.astype(np.uint16), "uint16 of shape"),
    "empty": (BYTES[:0], "empty"),
    "no images": ([], "found none"),
    "several sizes": ([BYTES, BYTES[:2]], "found (t, h, w) = (1, 4, 6) and (1, 2, 6)"),
    "a path": ("photo.jpg", "found str"),
    "nothing": (None, "found NoneType"),
    "an empty image of Pillow": (Image.new("RGB", (0, 5)), "empty"),
    "an empty row of Pillow": (Image.new("L", (5, 0)), "empty"),
    "floats of Pillow": (Image.new("F", (2, 2)), "samples of kind F"),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", REFUSED)
def test_what_are_no_pixels_is_refused_in_one_line(case):
    wrong, said = REFUSED[case]
    with pytest.raises(BadTensor) as error:
        to_video(wrong)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
