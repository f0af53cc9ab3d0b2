"""Every way an image can be broken: named with a code, or read right; never grey, never black, never a crash."""

import io
import os
import struct
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from smalti.data import ImagesConfig, evaluation, read_image
from smalti.data.bundled import photos
from smalti.errors import BadFile, InputError

FORMATS = [
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    *(["AVIF"] if "avif" in features.get_supported() else []),
]


def scene(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    with Image.open(photos("heldout") / "astronaut.jpg") as photo:
        return photo.resize(size).convert(mode)


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def put(folder: Path, data: bytes, name: str = "a.jpg") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def code_of(path: Path, **options: int) -> str:
    with pytest.raises(BadFile) as caught:
        read_image(path, **options)
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 300
    return caught.value.code


def png(width: int, height: int, data: bytes, bits: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
def test_whole_files_of_every_format_are_read_whatever_their_name(format: str, tmp_path: Path) -> None:
    pixels = read_image(put(tmp_path, encoded(scene(), format), "a.jpg")).numpy()
    assert pixels.shape == (32, 48, 3)
    tolerance = {"GIF": 40, "JPEG": 12, "WEBP": 16, "AVIF": 16}.get(format, 0)
    assert np.abs(pixels.astype(int) - np.asarray(scene()).astype(int)).mean() <= tolerance


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_cut_file_is_named_and_never_filled(format: str, part: float, tmp_path: Path) -> None:
    data = encoded(scene(size=(96, 96)), format)
    assert code_of(put(tmp_path, data[: int(len(data) * part)])) in ("truncated", "corrupt", "format")


def test_a_file_cut_at_any_byte_is_whole_or_named(tmp_path: Path) -> None:
    data = encoded(scene(size=(96, 96)), "JPEG")
    whole = read_image(put(tmp_path, data))
    for length in range(0, len(data), 64):
        with suppress(BadFile):
            assert torch.equal(read_image(put(tmp_path, data[:length])), whole)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_flipped_bits_give_pixels_or_a_bad_file_and_nothing_else(format: str, tmp_path: Path) -> None:
    data = encoded(scene(), format)
    written = read_image(put(tmp_path, data)).float()
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for _ in range(60):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            pixels = read_image(put(tmp_path, bytes(broken)), max_pixels=1_000_000).float()
        except BadFile:
            outcomes["refused"] += 1
        else:
            close = pixels.shape == written.shape and (pixels - written).abs().mean() < 32
            outcomes["near what was written" if close else "other pixels"] += 1
    assert outcomes["refused"] > 0, outcomes
    assert outcomes["near what was written"] > 0 or format == "PNG", outcomes  # PNG has checksums everywhere


def test_empty_text_folders_and_absent_files_have_their_own_codes(tmp_path: Path) -> None:
    assert code_of(put(tmp_path, b"")) == "empty"
    assert code_of(put(tmp_path, b"not a picture at all" * 20)) == "format"
    assert code_of(tmp_path) == "not-a-file"
    assert code_of(tmp_path / "absent.png") == "missing"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    assert code_of(put(tmp_path, pointer)) == "lfs-pointer"


def test_formats_off_the_list_are_not_parsed(tmp_path: Path) -> None:
    assert code_of(put(tmp_path, encoded(scene(), "EPS"), "a.png")) == "format"
    assert code_of(put(tmp_path, encoded(scene(), "TGA"), "a.png")) == "format"


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    started = time.monotonic()
    assert code_of(tmp_path / "x.jpg") == "not-a-file"
    assert time.monotonic() - started < 5


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_permission_denied_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, encoded(scene(), "PNG"))
    path.chmod(0)
    assert code_of(path) == "permission"


@pytest.mark.parametrize("side", [9_400, 30_000])
def test_a_bomb_is_refused_by_its_declared_size(side: int, tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9)
    data = b"".join(squeeze.compress(bytes(side + 1)) for _ in range(64)) + squeeze.flush()  # the header is a lie, too
    started = time.monotonic()
    assert code_of(put(tmp_path, png(side, side, data))) == "bomb"
    assert time.monotonic() - started < 2
    assert code_of(put(tmp_path, encoded(scene(), "PNG")), max_pixels=48 * 32 - 1) == "bomb"


def test_huge_text_and_bad_checksums_are_bad_files(tmp_path: Path) -> None:
    text = b"k\0\0" + zlib.compress(bytes(50_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    rows = zlib.compress(b"\0\x10\x20" * 2)
    assert code_of(put(tmp_path, png(2, 2, rows, extra=chunk))) == "corrupt"
    data = bytearray(encoded(scene(), "PNG"))
    data[data.index(b"IHDR") + 6] ^= 1
    assert code_of(put(tmp_path, bytes(data))) in ("corrupt", "format", "truncated")


def test_cmyk_follows_the_stated_rule_within_3_levels(tmp_path: Path) -> None:
    inks = np.zeros((16, 64, 4), np.uint8)
    inks[:, :16] = (0, 200, 100, 30)
    inks[:, 16:32] = (200, 0, 50, 60)
    inks[:, 32:48] = (20, 20, 20, 200)
    path = put(tmp_path, encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    pixels = read_image(path).numpy().astype(float)[8, 8::16]
    inked = inks[8, 8::16].astype(float)
    expected = (255 - inked[:, :3]) * (255 - inked[:, 3:]) / 255
    assert np.abs(pixels - expected).max() <= 3


def test_adobe_ycck_is_read(tmp_path: Path) -> None:
    inks = np.full((16, 16, 4), 128, np.uint8)
    data = bytearray(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    at = data.index(b"Adobe")
    data[at + 11] = 2  # the colour transform: YCCK. All planes hold 127: c = m = y = k = 127 in either transform
    pixels = read_image(put(tmp_path, bytes(data))).numpy()
    assert np.abs(pixels.astype(int) - 64).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_by_257_not_clipped(format: str, tmp_path: Path) -> None:
    ramp = (np.arange(256 * 256, dtype=np.int64).reshape(256, 256)).astype(np.uint16)
    if format == "PPM":
        data = b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes()
    else:
        data = encoded(Image.fromarray(ramp), format)
    pixels = read_image(put(tmp_path, data)).numpy()
    expected = np.rint(ramp / 257).astype(np.uint8)
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_rgb_is_scaled_within_one_level(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 30).astype(np.uint16).reshape(5, 2, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    pixels = read_image(put(tmp_path, png(2, 5, zlib.compress(rows), bits=16, colour=2))).numpy()
    assert np.abs(pixels - values / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_samples_without_a_known_white_are_refused(dtype: type, tmp_path: Path) -> None:
    picture = Image.fromarray(np.ones((4, 4), dtype))
    assert code_of(put(tmp_path, encoded(picture, "TIFF"))) == "sample-format"


def test_hidden_colours_do_not_show_through(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[2:, :, 3] = 255
    for format in ("PNG", "WEBP"):
        pixels = read_image(put(tmp_path, encoded(Image.fromarray(rgba), format, lossless=True))).numpy()
        assert (pixels[:2] == 255).all()
        assert (pixels[2:] == (255, 0, 0)).all()
    half = Image.fromarray(np.full((2, 2, 2), (0, 128), np.uint8), "LA")
    assert np.abs(read_image(put(tmp_path, encoded(half, "PNG"))).numpy().astype(int) - 127).max() <= 1


def test_palettes_one_bit_and_transparent_colours_are_read(tmp_path: Path) -> None:
    palette = scene("RGB").quantize(8)
    opaque = read_image(put(tmp_path, encoded(palette, "PNG"))).numpy()
    assert np.array_equal(opaque, np.asarray(palette.convert("RGB")))
    clear = read_image(put(tmp_path, encoded(palette, "PNG", transparency=0))).numpy()
    hidden = np.asarray(palette) == 0
    assert hidden.any()
    assert (clear[hidden] == 255).all()
    assert np.array_equal(clear[~hidden], opaque[~hidden])
    bits = read_image(put(tmp_path, encoded(scene("1"), "PNG"))).numpy()
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(format: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {} if format == "GIF" else {"lossless": True}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (read_image(put(tmp_path, data)).numpy() == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 99])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_and_nonsense_ignored(orientation: int, format: str, tmp_path: Path) -> None:
    corner = np.zeros((16, 32, 3), np.uint8)
    corner[:8, :8] = 255  # white in the upper left corner of the stored image
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    pixels = read_image(put(tmp_path, encoded(Image.fromarray(corner), format, exif=exif, **options))).numpy()
    corners = {1: "ul", 2: "ur", 3: "lr", 4: "ll", 5: "ul", 6: "ur", 7: "lr", 8: "ll"}
    at = corners.get(orientation, "ul")
    assert pixels.shape == ((32, 16, 3) if 5 <= orientation <= 8 else (16, 32, 3))
    row, column = (4 if at[0] == "u" else -4), (4 if at[1] == "l" else -4)
    assert pixels[row, column].min() > 200
    assert sum(pixels[r, c].min() > 200 for r in (4, -4) for c in (4, -4)) == 1


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(20))
    assert read_image(put(tmp_path, data)).shape == (32, 48, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 5)])
def test_tiny_and_thin_images_are_scaled_up(size: tuple[int, int], tmp_path: Path) -> None:
    path = put(tmp_path, encoded(scene(size=size), "PNG"), "a.png")
    for crop in ("random", "center"):
        source = ImagesConfig(path=path, size=32, crop=crop).build()
        assert source.load(0, torch.Generator().manual_seed(0)).shape == (1, 32, 32, 3)


def test_names_that_are_no_text_work_end_to_end(tmp_path: Path) -> None:
    data = encoded(scene(), "PNG")
    names = [
        b"bad\xff\xfe.png",
        b"new\nline.png",
        b'quo"te,comma.png',
        "émoji🙂.png".encode(),
        b"-dash.png",
        b"\\x.png",
    ]
    names.append(b"n" * 251 + b".png")
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    source = ImagesConfig(path=tmp_path, size=16).build()
    keys = [key for batch in evaluation(source) for key in batch.keys]
    assert len(set(keys)) == len(names)
    assert all(key.isprintable() and key.encode() for key in keys)


def test_every_listed_file_is_good_or_named(tmp_path: Path) -> None:
    good = encoded(scene(), "PNG")
    put(tmp_path, good, "good.png")
    put(tmp_path, good[:200], "cut.png")
    put(tmp_path, b"", "empty.png")
    put(tmp_path, b"text", "text.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    source = ImagesConfig(path=tmp_path, size=16).build()
    bad: list[BadFile] = []
    ok = [batch.keys[0] for batch in evaluation(source, on_bad=bad.append)]
    assert ok == ["good.png"]
    assert len(ok) + len(bad) == len(source) == 6
    assert {Path(b.path).name: b.code for b in bad} == {
        "broken.jpg": "missing",
        "cut.png": "truncated",
        "empty.png": "empty",
        "pipe.jpg": "not-a-file",
        "text.jpg": "format",
    }
    for b in bad:
        Path(b.path).unlink()
    (tmp_path / "good.png").write_bytes(b"")
    with pytest.raises(InputError, match="all 1 files are bad"):
        list(evaluation(ImagesConfig(path=tmp_path, size=16).build()))
