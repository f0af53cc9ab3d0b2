"""The work of `smalti eval`: what is read, how it is scored, what is written. Heavy; imported when it is needed."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import typer
from torch import Tensor

from smalti.cli.console import bar
from smalti.cli.listing import Clips, Question, clips_of
from smalti.cli.opening import open_tokenizer
from smalti.data import read_image
from smalti.errors import BadFile, ConfigError, MachineError, SmaltiError
from smalti.files import write_bytes
from smalti.losses.perceptual import LPIPSConfig
from smalti.metrics import (
    Features,
    Moments,
    Perceptual,
    Protocol,
    Report,
    Row,
    Scores,
    by_name,
    compare_folders,
    contact_sheet,
    find_features,
)
from smalti.metrics.contact_sheet import difference
from smalti.metrics.folders import pairs
from smalti.metrics.serialize import scores_of, tensors_of, text_of, text_tensor
from smalti.metrics.statistics import StatisticsKey, load_statistics, save_statistics
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.score import Left, report_of, score_part
from smalti.training.distributed import World, join_world
from smalti.video import to_uint8, to_video

_SHOWN = 8
"""Clips on a contact sheet, each by its middle frame."""
_PATIENCE = timedelta(days=2)
"""How long a rank waits for the slowest; torchrun ends all where one dies."""


class Answer(NamedTuple):
    """What was measured, and what could not be read."""

    report: Report
    bad: list[BadFile]
    shown: list[tuple[Tensor, Tensor]]
    """(original, reconstruction) of the first clips, uint8 `h w 3`."""

    @property
    def good(self) -> int:
        """Clips that were scored."""
        return self.report.clips

    def write(self, folder: Path) -> None:
        """Write report.json and sheet.png, each whole or not at all."""
        write_bytes(folder / "report.json", self.report.to_json().encode())
        rows = [[a.numpy(), b.numpy(), difference(a.numpy(), b.numpy())] for a, b in self.shown]
        sheet = io.BytesIO()
        contact_sheet(rows, ["original", "reconstruction", "difference x4"]).save(sheet, "PNG")
        write_bytes(folder / "sheet.png", sheet.getvalue())


class Ready(NamedTuple):
    """All that measuring needs: what can fail for want of files has not."""

    model: Tokenizer
    clips: Clips
    scores: Scores
    key: StatisticsKey | None
    """Under which the statistics of the originals are kept."""


class Part(NamedTuple):
    """What one rank found."""

    scores: Scores
    left: list[Left]
    shown: dict[int, tuple[Tensor, Tensor]]
    """By the number of the clip."""

    def to_bytes(self) -> bytes:
        """All of it but networks and reference."""
        left = [(index, fault.path, fault.code, fault.message) for index, fault in self.left]
        pictures = {f"shown.{i}.{n}": value for i, pair in self.shown.items() for n, value in enumerate(pair)}
        return safetensors.torch.save({**tensors_of(self.scores), **pictures, "left": text_tensor(left)})

    def merge(self, data: bytes) -> "Part":
        """This part and another one together."""
        tensors = safetensors.torch.load(data)
        left = [Left(index, BadFile(*fault)) for index, *fault in text_of(tensors["left"])]
        numbers = {int(name.split(".")[1]) for name in tensors if name.startswith("shown.")}
        shown = {i: (tensors[f"shown.{i}.0"], tensors[f"shown.{i}.1"]) for i in numbers}
        scores = self.scores.merge(scores_of(tensors, like=self.scores))
        return Part(scores, [*self.left, *left], {**self.shown, **shown})


def measure(target: str, data: Path | None, against: Path | None, question: Question) -> Answer | None:
    """Score a tokenizer on `data`, or compare two folders; None on a rank that the leading one speaks for."""
    if data is not None and against is None:
        return measure_tokenizer(target, data, question)
    if against is not None and data is None:
        return measure_folders(Path(target), against, question)
    raise ConfigError(
        "eval: give --data FOLDER to measure a tokenizer, --against FOLDER to compare two folders, or --real FOLDER to "
        "compare generated media with real ones"
    )


def measure_tokenizer(target: str, data: Path, question: Question) -> Answer | None:
    """Score a tokenizer on the clips of `data`; under torchrun each rank takes its share of them.

    The leading rank gives the answer of one process; the others give None.
    """
    with join_world(question.device, timeout=_PATIENCE) as world:
        with _agreed(world):
            ready = _prepare(target, data, question, world.device)
        part = _measure(ready, world)
        sent = world.gather(b"" if world.is_main else part.to_bytes())
        if not world.is_main:
            return None
        for other in sent[1:]:
            part = part.merge(other)
        report = report_of(part.scores, part.left)
        moments = part.scores.moments
        if ready.key is not None and moments is not None and moments.reference is None and not part.left:
            assert question.statistics is not None
            save_statistics(question.statistics, ready.key, moments.originals)
        bad = [fault for _, fault in sorted(part.left, key=lambda one: one.number)]
        return Answer(report, bad, [part.shown[i] for i in sorted(part.shown)[:_SHOWN]])


def measure_folders(originals: Path, made: Path, question: Question) -> Answer | None:
    """Compare the pictures of two folders, paired by name, at their own size; under torchrun one rank does it all."""
    if os.environ.get("RANK", "0") != "0":
        return None
    protocol = by_name(question.protocol)
    if protocol.media == "videos":
        raise ConfigError(f"--protocol {protocol.name} is for video; --against compares pictures")
    if question.statistics is not None:
        raise ConfigError("--statistics goes with --data; --against looks at every original anyhow")
    protocol = protocol.replace({"convention": None, "resize": "none", "crop": "none", "size": None})
    device = torch.device("cpu")
    lpips, features = perceptual(protocol, question.lpips, device), features_of(protocol, question.features, device)
    matched = list(pairs(originals, made))

    def read(path: Path) -> Tensor:
        return to_video(read_image(path))

    done = 0
    with bar("comparing", len(matched)) as advance:

        def progress(row: Row) -> None:
            nonlocal done
            done += 1
            advance(done, note=f"PSNR {row.psnr:.2f}")

        report = compare_folders(
            originals, made, read, protocol, lpips=lpips, features=features, progress=progress
        )  # fmt: skip
    return Answer(report, [], [(read_image(a), read_image(b)) for _, a, b in matched[:_SHOWN]])


def _prepare(target: str, data: Path, question: Question, device: torch.device) -> Ready:
    protocol = by_name(question.protocol)
    model = open_tokenizer(target, str(device))
    clips = clips_of(data, protocol, question, is_image_model=model.config.time_kernel == 1)
    lpips = perceptual(protocol, question.lpips, device)
    features = features_of(protocol, question.features, device)
    key = _key(clips, features, question)
    reference: Moments | None = None
    if key is not None and question.statistics is not None:
        reference = load_statistics(question.statistics, key)
    scores = Scores(clips.protocol, lpips=lpips, features=features, reference=reference, levels=model.levels)
    return Ready(model, clips, scores, key)


def _measure(ready: Ready, world: World) -> Part:
    """The share of this rank."""
    shown: dict[int, tuple[Tensor, Tensor]] = {}
    done = 0

    def watch(index: int, video: Tensor, made: Tensor) -> None:
        if len(shown) < _SHOWN:
            middle = video.shape[2] // 2
            shown[index] = to_uint8(video.cpu())[0, middle], to_uint8(made.cpu())[0, middle]

    with bar("measuring", len(ready.clips.source)) if world.is_main else nullcontext(_silent) as advance:

        def progress(row: Row) -> None:
            nonlocal done
            done += world.size
            advance(min(done, len(ready.clips.source)), note=f"PSNR {row.psnr:.2f}")

        left = score_part(
            ready.model, ready.clips.source, ready.scores, part=(world.rank, world.size), progress=progress, watch=watch
        )
    return Part(ready.scores, left, shown)


def _key(clips: Clips, features: Features | None, question: Question) -> StatisticsKey | None:
    if question.statistics is None:
        return None
    if features is None:
        raise ConfigError(f"--statistics: protocol {question.protocol} takes no features, so there is nothing to keep")
    return StatisticsKey(
        features=features.network.name,
        features_digest=features.digest,
        rounding=clips.protocol.original_rounding or clips.protocol.rounding,
        data=clips.data,
        listed=clips.digest(),
        count=len(clips.source),
    )


@contextmanager
def _agreed(world: World) -> Iterator[None]:
    """Faults of any rank end all of them, told once."""
    fault: SmaltiError | None = None
    try:
        yield
    except SmaltiError as error:
        if world.size == 1:
            raise
        fault = error
    codes = [int(code) for code in world.gather(b"0" if fault is None else str(fault.exit_code).encode())]
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if fault is not None and world.rank == first:
        raise fault
    if first is not None:
        raise typer.Exit(codes[first])


def _silent(done: int, total: int | None = None, note: str = "") -> None:
    """No bar: the leading rank has one."""


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
    except MachineError:
        if weights is not None:
            raise
        return None

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return network(a.to(device), b.to(device)).cpu()

    return Perceptual(distance, network.net, network.digest)


def features_of(protocol: Protocol, weights: Path | None, device: torch.device) -> Features | None:
    """The feature network that the protocol names: from `weights`, or where it is found; it must be there.

    None where the protocol names none.
    """
    if protocol.features is None:
        if weights is not None:
            raise ConfigError(f"--features {weights}: protocol {protocol.name} takes no features; leave it out")
        return None
    return find_features(protocol.features, weights).to(device)
