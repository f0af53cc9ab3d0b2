"""The work of `smalti eval`: what is read, how it is scored, what is written. Heavy; imported when it is needed."""

import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from smalti.cli.terminal import bar
from smalti.cli.tokenizers import open_tokenizer
from smalti.data import ImagesConfig, Source, VideosConfig, read_image
from smalti.data.images import SUFFIXES as PICTURES
from smalti.data.lists import list_files
from smalti.data.videos import SUFFIXES as VIDEOS
from smalti.errors import BadFile, ConfigError, EnvironmentFault
from smalti.files import write_bytes
from smalti.losses.perceptual import LPIPSConfig
from smalti.metrics import Perceptual, Protocol, Report, Row, by_name, compare_folders, contact_sheet
from smalti.metrics.evaluate import pairs
from smalti.metrics.sheet import difference
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.score import score
from smalti.video import to_uint8, to_video

_SHOWN = 8
"""Clips on a contact sheet, each by its middle frame."""


class Question(NamedTuple):
    """How to measure, as the user asked."""

    protocol: str
    limit: int | None
    size: int
    frames: int
    root: Path | None
    lpips: Path | None
    device: str | None


class Answer(NamedTuple):
    """What was measured, and what could not be read."""

    report: Report
    bad: list[BadFile]
    shown: list[tuple[Tensor, Tensor]]
    """(original, reconstruction) of the first clips, uint8 `h w 3`."""

    def write(self, folder: Path) -> None:
        """Write report.json and sheet.png, each whole or not at all."""
        write_bytes(folder / "report.json", self.report.to_json().encode())
        rows = [[a.numpy(), b.numpy(), difference(a.numpy(), b.numpy())] for a, b in self.shown]
        sheet = io.BytesIO()
        contact_sheet(rows, ["original", "reconstruction", "difference x4"]).save(sheet, "PNG")
        write_bytes(folder / "sheet.png", sheet.getvalue())


def measure_tokenizer(target: str, data: Path, question: Question) -> Answer:
    """Score a tokenizer on the clips of `data`, cut to the middle at the size that was asked for."""
    protocol = by_name(question.protocol)
    model = open_tokenizer(target, question.device)
    network = perceptual(protocol, question.lpips, next(model.parameters()).device)
    source = source_of(data, model, question)
    if question.size:
        protocol = protocol.model_copy(update={"resize": "lanczos", "crop": "center", "size": question.size})
    count = len(source) if question.limit is None else min(len(source), question.limit)
    bad: list[BadFile] = []
    shown: list[tuple[Tensor, Tensor]] = []

    def watch(video: Tensor, made: Tensor) -> None:
        if len(shown) < _SHOWN:
            middle = video.shape[2] // 2
            shown.append((to_uint8(video.cpu())[0, middle], to_uint8(made.cpu())[0, middle]))

    done = 0
    with bar("measuring", count) as advance:

        def progress(row: Row) -> None:
            nonlocal done
            done += 1
            advance(done + len(bad), note=f"PSNR {row.psnr:.2f}")

        report = score(
            model, source, protocol, limit=question.limit, lpips=network, on_bad=bad.append,
            progress=progress, watch=watch,
        )  # fmt: skip
    return Answer(report, bad, shown)


def measure_folders(originals: Path, made: Path, question: Question) -> Answer:
    """Compare the pictures of two folders, paired by name, at their own size."""
    protocol = by_name(question.protocol)
    network = perceptual(protocol, question.lpips, torch.device("cpu"))
    matched = list(pairs(originals, made))

    def read(path: Path) -> Tensor:
        return to_video(read_image(path))

    done = 0
    with bar("comparing", len(matched)) as advance:

        def progress(row: Row) -> None:
            nonlocal done
            done += 1
            advance(done, note=f"PSNR {row.psnr:.2f}")

        report = compare_folders(originals, made, read, protocol, lpips=network, progress=progress)
    return Answer(report, [], [(read_image(a), read_image(b)) for _, a, b in matched[:_SHOWN]])


def source_of(data: Path, model: Tokenizer, question: Question) -> Source:
    """The pictures or the video of `data`, each cut to its middle; where both are there, what the tokenizer is for.

    A video of fewer than `frames` frames is a bad file. Raises InputError where there is nothing.
    """
    listing = list_files(data, (*PICTURES, *VIDEOS), root=question.root)
    kinds = Counter(Path(file).suffix.lower() in PICTURES for file in listing.files)
    side = question.size or None
    pictures = bool(kinds[True]) and (model.config.time == 1 or not kinds[False])
    if pictures:
        return ImagesConfig(path=data, root=question.root, size=side, crop="center", flip=False).build()
    return VideosConfig(
        path=data,
        root=question.root,
        size=side,
        crop="center",
        flip=False,
        frames=question.frames,
        sampling="center",
        short="skip",
    ).build()


def perceptual(protocol: Protocol, weights: Path | None, device: torch.device) -> Perceptual | None:
    """The LPIPS network that the protocol names: from `weights`, or where it is found; None where it is not.

    The report then says why it has no LPIPS. Weights that the user names must work.
    """
    if protocol.lpips is None:
        if weights is not None:
            raise ConfigError(f"--lpips {weights}: protocol {protocol.name} has no LPIPS; leave it out")
        return None
    try:
        network = LPIPSConfig(net=protocol.lpips, weights=weights).build().to(device)
    except EnvironmentFault:
        if weights is not None:
            raise
        return None
    return Perceptual(network, network.net, network.digest)
