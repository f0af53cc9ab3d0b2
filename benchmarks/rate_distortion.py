"""Bits against PSNR, SSIM, LPIPS and VMAF: tokens of the shipped tokenizers beside x264, x265 (also tuned for PSNR),
SVT-AV1, JPEG, WebP, AVIF, and what is trivial: one colour a clip, means of squares.

    python -m benchmarks rate_distortion      # of the photographs and the videos that smalti ships
    python -m benchmarks.beside_codecs smalti/tiny-image-2 --data kodak --size 256 --search 500 --keep kodak
    python -m benchmarks.rate_distortion      # all that is kept: tables, BD-rates, docs/rate-distortion.png

Of smalti there are three kinds of bits: ids of log2(codebook size) each, ids coded by the tokenizer's prior (the
encoder's, and those that a search finds at some prices of a bit), and whole files of `smalti compress`. Of x264, x265
and SVT-AV1 the coded frames count; of JPEG, WebP and AVIF the whole file, of which the container is a good part if
images are small. LPIPS (alex) needs weights, see docs/metrics.md. VMAF of video is measured where the package
vmaf-torch is installed (an implementation of its model 0.6.1 in PyTorch, not libvmaf; made for larger frames).
"""

import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from PIL import Image
from torch import Tensor

from benchmarks import trivial
from benchmarks.measure import RESULTS, write
from smalti.codec.block import block_to_bytes
from smalti.codec.codec import compress_file, read_frames
from smalti.codec.prior import Prior, shipped_prior
from smalti.codec.search import Search
from smalti.data import ImagesConfig, bundled, open_video
from smalti.data.images import decode_image
from smalti.data.video_reader import VideoReader
from smalti.errors import InputError
from smalti.families import load
from smalti.files import read_json
from smalti.metrics import SMALTI, bd_rate, evaluate_pairs, find_lpips, pairs_of
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.frames import HELD_ID, ids_to_frames
from smalti.video import to_uint8, to_video

PROTOCOL = SMALTI.replace({"name": "smalti-alex", "lpips": "alex", "ms_ssim": False})
SCORES = ("psnr", "ssim", "lpips", "vmaf")
PICTURE = Path("docs/rate-distortion.png")
KEPT = RESULTS / "rates"
"""A file for each set of media."""
OURS = "smalti"
"""Coded ids of the first tokenizer; `smalti NAME` are of further ones, besides `smalti ids` and `smalti files`."""
PRICES = (500.0, 1600.0, 4000.0)
"""With the ids of the encoder four rates, which BD-rates need."""
NOTE = "at the bits of each of our points; none where a codec's coarsest setting takes more"
QUALITIES = {"JPEG": (3, 6, 12, 25, 50, 75, 90), "WEBP": (0, 5, 20, 45, 70, 85), "AVIF": (5, 15, 30, 45, 60, 75)}
CRFS = {"libx264": (51, 46, 41, 36, 31, 26, 21), "libx265": (51, 46, 41, 36, 31, 26, 21)}
CRFS["libsvtav1"] = (63, 57, 50, 43, 36, 29, 22)
CRFS |= {"libx264 psnr": CRFS["libx264"], "libx265 psnr": CRFS["libx265"]}
"""`psnr` is the encoder with `tune=psnr`, which leaves out what is done for the eye. SVT-AV1 is so by default."""
TRIVIAL = {"mean colour": trivial.mean_colour, "16x16 means": trivial.block_means}
PRESETS = {"libx264": "slow", "libx265": "slow", "libsvtav1": "4"}
PILLOW = {"JPEG": {"optimize": True}, "WEBP": {"method": 6}, "AVIF": {"speed": 3}}

Round = Callable[[Tensor], tuple[int, Tensor]]
"""Frames `t h w 3`, uint8 -> (bytes, frames)."""


class Point(NamedTuple):
    """One setting of one codec, the means over all clips."""

    media: str
    codec: str
    setting: str
    bits_per_pixel: float
    psnr: float
    ssim: float
    lpips: float
    vmaf: float | None = None
    """Mean over frames and clips; of film alone, None without vmaf-torch."""


def is_ours(codec: str) -> bool:
    """Whether it is one of smalti."""
    return codec.split()[0] == OURS


def by_pillow(form: str, quality: int) -> Round:
    """A picture through Pillow."""

    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        data = io.BytesIO()
        Image.fromarray(frames[0].numpy()).save(data, form, quality=quality, **PILLOW[form])
        return data.tell(), decode_image(io.BytesIO(data.getvalue()), form)[None]

    return there_and_back


def by_ffmpeg(codec: str, crf: int, *, parameter_sets: bool = True) -> Round:
    """A video through an encoder of FFmpeg; the bytes are those of its packets and of its `parameter_sets`.

    Not of the text that x264 and x265 write about themselves: for a second of film it is a good part of the file.
    """

    encoder, _, tune = codec.partition(" ")

    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        data, size = io.BytesIO(), 0
        with av.open(data, "w", format="matroska") as container:
            stream = container.add_stream(encoder, rate=24)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            quiet = {
                "libx265": {"x265-params": "log-level=none:pools=1:info=0"},
                "libsvtav1": {"svtav1-params": "lp=1"},
            }
            stream.options = {"crf": str(crf), "preset": PRESETS[encoder], **quiet.get(encoder, {"threads": "1"})}
            stream.options = stream.options | ({"tune": tune} if tune else {})
            stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1  # as the conversion of RGB is
            text = BitStreamFilterContext("filter_units=remove_types=6", stream) if encoder == "libx264" else None
            images = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames.numpy()]
            for picture in (*(p.reformat(format="yuv420p") for p in images), None):
                for packet in stream.encode(picture):
                    bare = text.filter(av.Packet(bytes(packet))) if text else [packet]
                    size += sum(part.size for part in bare)
                    container.mux(packet)
            size += len(stream.codec_context.extradata or b"") if parameter_sets else 0
        with VideoReader(data.getvalue()) as reader:
            return size, torch.stack(list(reader.frames()))

    return there_and_back


def by_smalti(tokenizer: Tokenizer, is_video: bool) -> Round:
    """Frames through `compress` and `decompress`, by way of a file without loss."""

    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            coded = Path(folder) / "coded.smt"
            if is_video:
                done = compress_file(tokenizer, lossless(frames, Path(folder) / "clip.mkv"), coded)
            else:
                source = Path(folder) / "picture.png"
                Image.fromarray(frames[0].numpy()).save(source)
                done = compress_file(tokenizer, source, coded)
            return done.bytes, torch.stack(list(read_frames(tokenizer, coded)))

    return there_and_back


def by_ids(tokenizer: Tokenizer) -> Round:
    """Frames through their ids, each of log2(codebook size) bits."""

    @torch.no_grad()
    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        ids = tokenizer.encode(to_video(frames))
        made = to_uint8(tokenizer.decode(ids, size=frames.shape[:3]))
        return round(ids.numel() * math.log2(tokenizer.codebook_size) / 8), made[0]

    return there_and_back


def by_coded_ids(tokenizer: Tokenizer, prior: Prior, price: float | None) -> Round:
    """Frames through ids coded by a prior, the encoder's or those of a search; nothing else is counted."""

    @torch.no_grad()  # a search needs gradients, which inference mode rules out
    def there_and_back(frames: Tensor) -> tuple[int, Tensor]:
        if price is None:
            ids = tokenizer.encode(to_video(frames))
        else:
            ids = torch.cat([found.ids for found in Search(tokenizer, prior, price).video(frames)], 1)
        holds = bool((ids == HELD_ID).any())
        data, _, _ = block_to_bytes(ids[0].numpy(), tokenizer.levels, "prior", prior, holds=holds)
        made = ids_to_frames(tokenizer, [(len(frames), ids)], (frames.shape[1], frames.shape[2]))
        return len(data), torch.stack(list(made))

    return there_and_back


def lossless(frames: Tensor, path: Path) -> Path:
    """A video that decodes to exactly these frames."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264rgb", rate=24)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "rgb24", {"qp": "0", "threads": "1"}
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def vmaf_of(frames: Tensor, made: Tensor) -> float | None:
    """VMAF of decoded frames, the mean over them, on 8-bit luma of BT.601; None where vmaf-torch is not installed."""
    try:
        from vmaf_torch import VMAF
    except ImportError:
        return None
    weights = torch.tensor([65.481, 128.553, 24.966]) / 255
    luma = [(16 + x.float() @ weights).round()[:, None] for x in (frames, made)]
    with torch.inference_mode():
        return float(VMAF(temporal_pooling=True, clip_score=True)(*luma))


def point(media: str, codec: str, setting: str, there_and_back: Round, clips: Mapping[str, Tensor]) -> Point:
    """The mean scores of all clips, and the bits of all over the pixels of all."""
    spent, vmaf = 0, []

    def reconstruct(video: Tensor) -> Tensor:
        nonlocal spent
        frames = ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).contiguous()
        size, made = there_and_back(frames)
        spent += size
        vmaf.append(vmaf_of(frames, made) if len(frames) > 1 else None)
        return to_video(made)

    pairs = pairs_of(reconstruct, ((key, to_video(frames)) for key, frames in clips.items()))
    report = evaluate_pairs(pairs, PROTOCOL, lpips=find_lpips("alex"))
    pixels = sum(math.prod(f.shape[:3]) for f in clips.values())
    scores = (float(getattr(report, name)) for name in SCORES if name != "vmaf")
    seen = [score for score in vmaf if score is not None]
    mean = sum(seen) / len(seen) if seen else None
    found = Point(media, codec, setting, 8 * spent / pixels, *scores, mean)
    print(*(f"{value:.4g}" if isinstance(value, float) else value for value in found), flush=True)
    return found


def clips() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(photographs, film), uint8 `t h w 3` by name."""
    config = ImagesConfig(path=bundled.photos("heldout"), size=256, crop="center", flip=False)
    source = config.build()
    photographs = {source.key(i): source.load(i, torch.Generator()) for i in range(len(source))}
    film = {}
    for path in sorted(bundled.videos("heldout").glob("*.mp4")):
        with open_video(path) as reader:
            film[path.stem] = torch.stack(list(reader.frames()))
    return photographs, film


def of_trivial(media: str, clips: Mapping[str, Tensor]) -> Iterator[Point]:
    """One colour a clip, and the means of 16 x 16 squares."""
    for name, there_and_back in TRIVIAL.items():
        yield point(media, name, "three bytes a colour", there_and_back, clips)


def of_still_codecs(media: str, clips: Mapping[str, Tensor]) -> Iterator[Point]:
    """JPEG, WebP and AVIF at all their settings."""
    for form, qualities in QUALITIES.items():
        for quality in qualities:
            yield point(media, form, f"quality {quality}", by_pillow(form, quality), clips)


def of_video_codecs(media: str, clips: Mapping[str, Tensor]) -> Iterator[Point]:
    """x264, x265 and SVT-AV1 at all their settings."""
    os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 tells its settings otherwise
    for encoder, crfs in CRFS.items():
        for crf in crfs:
            yield point(media, encoder, f"crf {crf}", by_ffmpeg(encoder, crf), clips)


def points(
    media: str, tokenizers: Sequence[str], clips: Mapping[str, Tensor], prices: Sequence[float] = ()
) -> list[Point]:
    """All points: those of the tokenizers, by ids of the encoder and of the first also by those of searches at these
    prices of a bit, and those of every codec at its settings."""
    still = all(len(frames) == 1 for frames in clips.values())
    found = []
    for number, name in enumerate(tokenizers):
        tokenizer = load(name)
        found.append(point(media, f"{OURS} ids", name, by_ids(tokenizer), clips))
        if (prior := shipped_prior(tokenizer.fingerprint)) is not None:
            for price in (None, *(() if number else prices)):
                setting = name if price is None else f"{name}, searched at {price:g}"
                codec = f"{OURS} {name}" if number else OURS
                found.append(point(media, codec, setting, by_coded_ids(tokenizer, prior, price), clips))
        found.append(point(media, f"{OURS} files", name, by_smalti(tokenizer, not still), clips))
    found += of_trivial(media, clips)
    if still:
        found += of_still_codecs(media, clips)
    return [*found, *of_video_codecs(media, clips)]


def keep(name: str, found: Sequence[Point]) -> None:
    """Write `results/rates/NAME.json`."""
    KEPT.mkdir(exist_ok=True)
    note = "all settings; bits per pixel over all clips, scores are means over clips"
    write(f"rates/{name}", [one._asdict() for one in found], note=note)


def kept() -> list[Point]:
    """All points that are kept, medium after medium."""
    return [Point(**row) for path in sorted(KEPT.glob("*.json")) for row in read_json(path)["rows"]]


def bd_rates(found: Sequence[Point]) -> list[dict[str, object]]:
    """The Bjøntegaard delta rate of every codec over the coded ids of the first tokenizer, by PSNR: -0.5 takes half of
    our bits for the same PSNR.

    Over the qualities that both reach; None where there are none in common. Points that another of the same codec beats
    in bits and quality are left out: the encoder's ids, where a search finds better ones for fewer bits.
    """
    rows = []
    for media in dict.fromkeys(p.media for p in found):
        curves: dict[str, list[tuple[float, float]]] = {}
        for p in (p for p in found if p.media == media and p.codec not in TRIVIAL):
            if p.codec == OURS or not is_ours(p.codec):
                curves.setdefault(p.codec, []).append((p.bits_per_pixel, p.psnr))
        ours = curves.pop(OURS, [])
        for codec, curve in curves.items():
            try:
                rate = bd_rate(unbeaten(ours), unbeaten(curve))
            except InputError:
                rate = None
            rows.append({"media": media, "codec": codec, "bd_rate": rate})
    return rows


def unbeaten(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of bits and quality that no other has or exceeds at as many bits or fewer."""
    kept: list[tuple[float, float]] = []
    for bits, quality in sorted(curve, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((bits, quality))
    return kept


def at_equal_bits(found: Sequence[Point]) -> list[dict[str, object]]:
    """A row for each of our points, and after it, `beside` it, what every other codec has at as many bits: on the line
    between its neighbours in the logarithm of the bits; None where its coarsest setting takes more."""
    rows: list[dict[str, object]] = []
    for ours in (p for p in found if is_ours(p.codec)):
        mine = {**ours._asdict(), "beside": ours.codec, "least_bits_per_pixel": None}
        rows.append(mine)
        for codec in dict.fromkeys(p.codec for p in found if p.media == ours.media and not is_ours(p.codec)):
            curve = [p for p in found if (p.media, p.codec) == (ours.media, codec)]
            curve.sort(key=lambda p: p.bits_per_pixel)
            rates = np.log2([p.bits_per_pixel for p in curve])
            here = math.log2(ours.bits_per_pixel)
            row = mine | {"codec": codec, "least_bits_per_pixel": curve[0].bits_per_pixel}
            if codec in TRIVIAL:  # one point, given as it is
                row |= {"bits_per_pixel": curve[0].bits_per_pixel, **{n: getattr(curve[0], n) for n in SCORES}}
            else:
                inside = rates[0] <= here <= rates[-1]
                for name in SCORES:
                    values = [getattr(p, name) for p in curve]
                    row[name] = float(np.interp(here, rates, values)) if inside and None not in values else None
            rows.append(row)
    return rows


def draw(found: Sequence[Point], path: Path) -> None:
    """Curves of all codecs: a row for each kind of media, a column for each score."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(p.media for p in found))
    figure = Figure(figsize=(14, 2.6 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(SCORES), squeeze=False)
    titles = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS (alex), lower is better", "vmaf": "VMAF"}
    for i, media in enumerate(kinds):
        for j, name in enumerate(SCORES):
            ax = axes[i, j]
            mine = [p for p in found if p.media == media and getattr(p, name) is not None]
            for codec in dict.fromkeys(p.codec for p in mine):
                curve = sorted((p.bits_per_pixel, getattr(p, name)) for p in mine if p.codec == codec)
                if codec == "mean colour":  # at nearly no bits: the axis would hold little else
                    ax.axhline(curve[0][1], ls="--", lw=0.8, color="grey", label=codec)
                    continue
                style = {"marker": "."}
                if is_ours(codec):
                    line = "none" if codec in (f"{OURS} ids", f"{OURS} files") else "-"
                    style = {"color": "black", "marker": "x" if codec == f"{OURS} files" else "D", "linestyle": line}
                ax.plot(*zip(*curve, strict=True), label=codec.removeprefix("lib"), **style)
            ax.set_xscale("log")
            ax.set_title(f"{media}: {titles[name]}", fontsize=10)
            ax.grid(alpha=0.3)
            ax.set_visible(bool(mine))
        axes[i, 0].legend(fontsize=6)
    for ax in axes[-1]:
        ax.set_xlabel("bits per pixel")
    figure.savefig(path, dpi=70)


def page() -> list[dict[str, object]]:
    """The table at equal bits of all that is kept; BD-rates go to results/rate_distortion_bd_rates.json, the curves to
    docs."""
    found = kept()
    write("rate_distortion_bd_rates", bd_rates(found), note="bits of each codec over ours at equal PSNR, less 1")
    draw(found, PICTURE)
    rows = at_equal_bits(found)
    write("rate_distortion", rows, note=NOTE)
    return rows


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """Measure the media of the package, and make the page of all that is kept."""
    find_lpips("alex")  # without weights it ends here
    photographs, videos = clips()
    keep("photographs", points("photographs", ["smalti/tiny-image-2"], photographs, PRICES))
    keep("videos", points("videos", ["smalti/tiny-video-2"], videos))
    return NOTE, page()


if __name__ == "__main__":
    page()
