"""Colours of video: the numbers of the standards within a level, FFmpeg's accurate conversion, and no drift."""

from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from smalti.data import open_video, read_clip, read_image, write_video
from smalti.data.bundled import photos

MATRICES = {"bt601": (6, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722), "bt2020": (9, 0.2627, 0.0593)}
"""(number of the matrix in ITU-T H.273, its Kr, its Kb)."""
FULL = 2
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3))


def to_planes(rgb: np.ndarray, matrix: str, full: bool, bits: int) -> list[np.ndarray]:
    """Y, Cb and Cr by ITU-R BT.601, BT.709 and BT.2020, rounded to whole levels."""
    _, kr, kb = MATRICES[matrix]
    r, g, b = (rgb[..., i] / 255 for i in range(3))
    luma = kr * r + (1 - kr - kb) * g + kb * b
    chroma = (b - luma) / (2 - 2 * kb), (r - luma) / (2 - 2 * kr)
    scale, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        return [np.rint(p) for p in (luma * top, *(c * top + 2 ** (bits - 1) for c in chroma))]
    return [np.rint(p * scale) for p in (16 + 219 * luma, *(128 + 224 * c for c in chroma))]


def to_rgb(planes: list[np.ndarray], matrix: str, full: bool, bits: int) -> np.ndarray:
    """The inverse of `to_planes`, in real numbers."""
    _, kr, kb = MATRICES[matrix]
    scale, top = 2 ** (bits - 8), 2**bits - 1
    if full:
        luma, cb, cr = planes[0] / top, *((p - 2 ** (bits - 1)) / top for p in planes[1:])
    else:
        luma, cb, cr = (planes[0] / scale - 16) / 219, *((p / scale - 128) / 224 for p in planes[1:])
    r, b = luma + (2 - 2 * kr) * cr, luma + (2 - 2 * kb) * cb
    return (255 * np.stack([r, (luma - kr * r - kb * b) / (1 - kr - kb), b], -1)).clip(0, 255)


def lossless(path: Path, planes: list[np.ndarray], format: str, matrix: str, full: bool, encoder: str = "ffv1") -> Path:
    """Write one frame of these planes as they are."""
    height, width = planes[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25)
        stream.options = {"qp": "0"} if encoder == "libx264" else {}
        stream.height, stream.width, stream.pix_fmt = height, width, format
        stream.codec_context.colorspace = MATRICES[matrix][0]
        stream.codec_context.color_range = FULL if full else 1
        frame = av.VideoFrame(width, height, format)
        for plane, levels in zip(frame.planes, planes, strict=True):
            kind = np.dtype(np.uint16 if "10" in format else np.uint8)
            rows = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
            rows[:, : plane.width] = levels[:: levels.shape[0] // plane.height, :: levels.shape[1] // plane.width]
            plane.update(rows.tobytes())
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        frame.colorspace, frame.color_range = MATRICES[matrix][0], FULL if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_of_the_standard_within_a_level(matrix: str, full: bool, tmp_path: Path) -> None:
    rgb = COLOURS.repeat(16, 0).repeat(16, 1)
    for bits, sampling in product((8, 10), ("420", "422", "444")):
        format = f"yuv{sampling}p{'' if bits == 8 else '10le'}"
        planes = to_planes(rgb, matrix, full, bits)
        with open_video(lossless(tmp_path / f"{format}.mkv", planes, format, matrix, full)) as reader:
            (frame,) = (frame.numpy()[8::16, 8::16].astype(float) for frame in reader.frames())
        error = frame - to_rgb(planes, matrix, full, bits)[8::16, 8::16]
        # swscale takes 10 bits in the full range as 4 times 8 bits, so that white is 1020 of 1023
        assert np.abs(error).max() <= (1.25 if full and bits == 10 else 1.0), (format, np.abs(error).max())
        assert np.abs(error.mean()) < 0.5, (format, error.mean())


@pytest.mark.parametrize(
    ("encoder", "format"),
    [("ffv1", "yuv420p"), ("ffv1", "yuv422p"), ("ffv1", "yuv444p"), ("ffv1", "yuv420p10le"), ("libx264", "yuv420p")],
)
@pytest.mark.parametrize("matrix", MATRICES)
def test_pixels_are_those_of_ffmpegs_accurate_scale_filter(
    encoder: str, format: str, matrix: str, tmp_path: Path
) -> None:
    photo = read_image(photos("heldout") / "astronaut.jpg").numpy()[:128, :128].astype(float)
    bits, full = 10 if "10" in format else 8, matrix == "bt709"
    path = tmp_path / "a.mkv"
    # H.264 has its chroma at the left pixels unless it says otherwise; a frame's own word is lost in PyAV's graphs
    place = ":in_h_chr_pos=0:in_v_chr_pos=128" if encoder == "libx264" else ""
    lossless(path, to_planes(photo, matrix, full, bits), format, matrix, full, encoder)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        (frame,) = container.decode(stream)
        graph = Graph()
        nodes = [
            graph.add_buffer(template=stream),
            graph.add("scale", f"flags=bicubic+accurate_rnd+full_chroma_int{place}"),
            graph.add("format", "pix_fmts=rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        graph.push(frame)
        expected = graph.pull().to_ndarray().astype(int)
    found = read_clip(path)[0].numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


def test_written_film_does_not_drift_over_generations(tmp_path: Path) -> None:
    original = read_image(photos("heldout") / "astronaut.jpg").numpy()[:160, :160]
    image = original
    for generation in range(1, 6):
        write_video(tmp_path / "a.mp4", [image], 10, crf=0)
        image = read_clip(tmp_path / "a.mp4")[0].numpy()
        error = image.astype(float) - original
        psnr = 10 * np.log10(255**2 / (error**2).mean())
        assert np.abs(error.mean((0, 1))).max() < 0.15, (generation, error.mean((0, 1)))
        assert psnr > 49.5 - 0.5 * generation, (generation, psnr)


def test_grey_and_colours_of_the_whole_cube_come_back_within_two_levels(tmp_path: Path) -> None:
    cube = np.array(list(product(range(0, 256, 51), repeat=3)), np.uint8).reshape(12, 18, 3)
    frame = cube.repeat(16, 0).repeat(16, 1)
    write_video(tmp_path / "a.mp4", [frame], 10, crf=0)
    found = read_clip(tmp_path / "a.mp4")[0].numpy()
    error = found[8::16, 8::16].astype(int) - cube
    assert np.abs(error).max() <= 2
    assert np.abs(error.mean()) < 0.2
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
    write_video(tmp_path / "g.mp4", [grey], 10, crf=0)
    assert np.abs(read_clip(tmp_path / "g.mp4")[0].numpy().astype(int) - grey).max() <= 1
