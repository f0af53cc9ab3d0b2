"""Score anything that turns a video into a video: a tokenizer, a codec, somebody else's model, the identity.

`evaluate_pairs` is the loop. Its pairs come from a callable (`pairs_of`), two folders (`pairs_of_folders`), a tokenizer
(`smalti.tokenizer.frames`), or a token set (`smalti.tokens.score`).
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smalti.errors import BadFile, ConfigError, InputError
from smalti.metrics import pixel
from smalti.metrics.codebook import Usage
from smalti.metrics.features import Features, Perceptual
from smalti.metrics.frechet import Moments
from smalti.metrics.protocols import Protocol
from smalti.metrics.report import ClipScores, Report, capped_psnr, report_of_clips
from smalti.metrics.statistics import FeatureMoments

Reconstruct = Callable[[Tensor], Tensor | tuple[Tensor, ...]]
"""video `1 3 t h w` in [-1, 1] -> video of that shape, or a tuple that starts (video, ids)."""

OnScores = Callable[[ClipScores], None]
"""Callback that receives the scores of each clip as it is scored."""

_PIXELS_AT_ONCE = 1 << 20  # of float64, some ten copies are alive in SSIM: 250 MB


class Pair(NamedTuple):
    """A clip and its reconstruction, both `1 3 t h w` in [-1, 1]."""

    key: str
    """Name of the clip, different for each."""
    original: Tensor
    reconstruction: Tensor | None = None
    """None: only the features of the original count, as for clips past the protocol's `samples`."""
    ids: Tensor | None = None
    number: int = 0
    """Place of the clip in its source."""


def pairs_of(
    reconstruct: Reconstruct, clips: Iterable[tuple[str, Tensor]], samples: int | None = None
) -> Iterator[Pair]:
    """Yield pairs from (key, video) and a callable, which is asked for the first `samples` clips only."""
    for number, (key, video) in enumerate(clips):
        if samples is not None and number >= samples:
            yield Pair(key, video, number=number)
            continue
        with torch.no_grad():
            output = reconstruct(video)
        reconstruction, ids = (output[0], output[1]) if isinstance(output, tuple) else (output, None)
        yield Pair(key, video, reconstruction, ids, number)


def pairs_of_folders(
    originals: Path, reconstructions: Path, read: Callable[[Path], Tensor], suffixes: Collection[str] | None = None
) -> Iterator[Pair]:
    """Yield pairs of files with the same path without suffix; `read` returns a video `1 3 t h w` in [-1, 1].

    Files with other `suffixes` are passed over; None takes all. Raises InputError that names files without a partner,
    or two that differ only in their suffix, and where there are none.
    """
    for number, (key, original, reconstruction) in enumerate(matching_files(originals, reconstructions, suffixes)):
        yield Pair(key, read(original), read(reconstruction), number=number)


def matching_files(
    originals: Path, reconstructions: Path, suffixes: Collection[str] | None = None
) -> list[tuple[str, Path, Path]]:
    """List (key, original, reconstruction) in the order of keys, without hidden files; raise as `pairs_of_folders`."""
    left, right = _by_stem(originals, suffixes), _by_stem(reconstructions, suffixes)
    for here, there, folder in ((left, right, reconstructions), (right, left, originals)):
        if alone := sorted(here.keys() - there.keys()):
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise InputError(f"{folder}: no partner for {', '.join(alone[:3])}{more}; both folders need the same names")
    return [(key, left[key], right[key]) for key in sorted(left)]


def evaluate_pairs(
    pairs: Iterable[Pair],
    protocol: Protocol,
    *,
    lpips: Perceptual | None = None,
    features: Features | None = None,
    levels: Sequence[int] | None = None,
    progress: OnScores | None = None,
) -> Report:
    """Score pairs and return the report.

    `levels` are those of the ids; without them codebook use is not reported. Raises InputError for no clips or fewer
    than the protocol asks for, a repeated key, a wrong shape or values that are not finite, and ConfigError if `lpips`
    or `features` are not what the protocol names.
    """
    scores = Scores(protocol, lpips=lpips, features=features, levels=levels)
    for pair in pairs:
        row = scores.add_pair(pair)
        if row is not None and progress is not None:
            progress(row)
    return scores.report()


class Scores:
    """The scores of clips so far. Parts of a set, scored in several processes, merge to the whole."""

    def __init__(
        self,
        protocol: Protocol,
        *,
        lpips: Perceptual | None = None,
        features: Features | None = None,
        reference: Moments | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        """Begin without clips; with `reference`, the moments of all originals, their features are not computed.

        Raises ConfigError if `lpips` or `features` are not what the protocol names. If the protocol names features and
        there are none, the report has no distance.
        """
        self.protocol = _with_features(_with_lpips(protocol, lpips), features)
        self.lpips = lpips
        self.rows: dict[str, ClipScores] = {}
        self.bad: dict[int, BadFile] = {}
        """Files that could not be read, by their place in the source."""
        self.usage = Usage(levels) if levels is not None else None
        self.pixels = 0
        """Number of pixels that the counted ids stand for."""
        has_distance = features is not None and protocol.features is not None
        self.moments = FeatureMoments(features, reference) if has_distance and features is not None else None

    def add_pair(self, pair: Pair) -> ClipScores | None:
        """Score a pair; past the number of clips that the protocol asks for, add the original alone and return None."""
        if pair.reconstruction is None or self.is_full:
            self.add_original(pair.key, pair.original)
            return None
        return self.add(pair.key, pair.original, pair.reconstruction, pair.ids)

    @property
    def is_full(self) -> bool:
        """Whether as many clips are scored as the protocol asks for."""
        return self.protocol.samples is not None and len(self.rows) >= self.protocol.samples

    def add(self, key: str, original: Tensor, reconstruction: Tensor, ids: Tensor | None = None) -> ClipScores:
        """Score one clip, both videos `1 3 t h w` in [-1, 1] (the reconstruction is clipped)."""
        if key in self.rows:
            raise InputError(f"{key}: two clips have this key; keys must be unique")
        check_clips(key, original, reconstruction)
        reconstruction = reconstruction.to(original.device)
        row = _score(key, original[0], reconstruction[0], self.protocol, self.lpips)
        self.add_original(key, original)
        if self.moments is not None:
            pixels = pixel.to_uint8_pixels(reconstruction, self.protocol.rounding)
            self.moments.add_reconstruction(key, pixels)
        if ids is not None:
            row = row.model_copy(update={"tokens": ids.numel()})
            if self.usage is not None:
                self.usage.update(ids)
                self.pixels += math.prod(original.shape[2:])
        self.rows[key] = row
        return row

    def add_original(self, key: str, video: Tensor) -> None:
        """Add an original alone: distances are to all of them, also those past the protocol's `samples`."""
        check_clips(key, video, video)
        if self.moments is not None:
            self.moments.add_original(key, pixel.to_uint8_pixels(video, _rounding_of_originals(self.protocol)))

    def fresh(self) -> "Scores":
        """Return scores without clips under the same protocol and networks."""
        fresh = Scores(self.protocol, lpips=self.lpips, levels=self.usage.levels if self.usage is not None else None)
        if self.moments is not None:
            fresh.moments = FeatureMoments(self.moments.features, self.moments.reference)
        return fresh

    def merge(self, other: "Scores") -> "Scores":
        """Return the scores of both; neither is changed. Raises ValueError if they are not of the same protocol."""
        if other.protocol != self.protocol:
            raise ValueError("scores of different protocols, LPIPS weights or features cannot be merged")
        if (other.usage is None) != (self.usage is None):
            raise ValueError("scores with and without code counts cannot be merged")
        if (other.moments is None) != (self.moments is None):
            raise ValueError("scores with and without features cannot be merged")
        if twice := sorted(self.rows.keys() & other.rows.keys()):
            raise InputError(f"{twice[0]}: two clips have this key; keys must be unique")
        merged = self.fresh()
        merged.rows = {**self.rows, **other.rows}
        merged.bad = {**self.bad, **other.bad}
        merged.pixels = self.pixels + other.pixels
        if self.usage is not None and other.usage is not None:
            merged.usage = self.usage.merge(other.usage)
        if self.moments is not None and other.moments is not None:
            merged.moments = self.moments.merge(other.moments)
        return merged

    def tensors(self) -> dict[str, Tensor]:
        """Return all scores as tensors, to be sent to another process; networks and the reference are not included."""
        bad = [[number, fault.path, fault.code, fault.message] for number, fault in self.bad.items()]
        plain = {"rows": [row.plain() for row in self.rows.values()], "bad": bad, "pixels": self.pixels}
        tensors = {"plain": _tensor_of_json(plain)}
        if self.usage is not None:
            tensors |= _prefixed("usage", self.usage.tensors())
        if self.moments is not None:
            tensors |= _prefixed("originals", self.moments.originals.tensors())
            tensors |= _prefixed("reconstructions", self.moments.reconstructions.tensors())
        return tensors

    def received(self, tensors: Mapping[str, Tensor]) -> "Scores":
        """Return the scores that `tensors` were made from, of the same protocol and networks as these."""
        scores, plain = self.fresh(), json.loads(tensors["plain"].numpy().tobytes())
        scores.rows = {row.key: row for row in map(ClipScores.parse, plain["rows"])}
        scores.bad = {number: BadFile(*fault) for number, *fault in plain["bad"]}
        scores.pixels = plain["pixels"]
        if scores.usage is not None:
            scores.usage = Usage.of_tensors(scores.usage.levels, _without_prefix("usage", tensors))
        if scores.moments is not None:
            scores.moments.originals = Moments.of_tensors(_without_prefix("originals", tensors))
            scores.moments.reconstructions = Moments.of_tensors(_without_prefix("reconstructions", tensors))
        return scores

    def report(self) -> Report:
        """Return the report so far; bad files are counted in it, and the first is named.

        Raises InputError if there is no clip, or fewer than the protocol asks for.
        """
        bad = [fault for _, fault in sorted(self.bad.items())]
        self._check_count(bad)
        absent: dict[str, str] = {}
        use = None
        if self.usage is not None and self.usage.tokens:
            use = self.usage.summary(self.pixels)
        else:
            has_ids = any(row.tokens is not None for row in self.rows.values())
            reason = "the levels of the ids were not given" if has_ids else "the reconstruction came without ids"
            absent["codebook"] = reason
        frechet = None
        if self.protocol.features is None:
            absent["frechet"] = f"not in protocol {self.protocol.name}"
        elif self.moments is None:
            absent["frechet"] = f"no weights of {self.protocol.features} were given"
        elif self.moments.fewest < 2:
            absent["frechet"] = "a distance needs 2 samples or more"
        else:
            frechet = self.moments.distance()
        if bad:
            total = len(self.rows) + len(bad)
            absent["clips"] = f"{len(bad)} of {total} left out, which cannot be read; the first: {bad[0]}"
        return report_of_clips(self.protocol, self.rows.values(), use, frechet, absent)

    def _check_count(self, bad: Sequence[BadFile]) -> None:
        samples, count = self.protocol.samples, len(self.rows)
        if bad and not count:
            raise InputError(f"all {len(bad)} files are bad, the last: {bad[-1]}")
        if not count:
            raise InputError("there are no clips to score")
        if samples is None or count >= samples:
            return
        needs = f"protocol {self.protocol.name} asks for {samples:,} clips, {count:,}"
        if bad:
            raise InputError(f"{needs} can be read; the first that cannot: {bad[0]}")
        raise InputError(f"{needs} were scored; give it the whole list, or take another protocol")


def _with_lpips(protocol: Protocol, lpips: Perceptual | None) -> Protocol:
    """Return the protocol with the digest of the weights that are used."""
    if lpips is None or protocol.lpips is None:
        return protocol
    if lpips.net != protocol.lpips:
        raise ConfigError(f"protocol {protocol.name} scores LPIPS with {protocol.lpips}, not with {lpips.net}")
    if protocol.lpips_digest not in (None, lpips.digest):
        raise ConfigError(
            f"protocol {protocol.name} names other LPIPS weights (sha256 {protocol.lpips_digest}, not {lpips.digest})"
        )
    return protocol.model_copy(update={"lpips_digest": lpips.digest})


def _with_features(protocol: Protocol, features: Features | None) -> Protocol:
    if features is None or protocol.features is None:
        return protocol
    features.check(protocol.name, protocol.features, protocol.features_digest)
    return protocol.model_copy(update={"features_digest": features.digest})


def _rounding_of_originals(protocol: Protocol) -> pixel.Rounding:
    return protocol.original_rounding or protocol.rounding


def check_clips(key: str, original: Tensor, reconstruction: Tensor) -> None:
    """Raise InputError unless both are clips of one shape with finite values, the original in [-1, 1]."""
    if original.ndim != 5 or original.shape[0] != 1 or original.shape[1] != 3 or original.numel() == 0:
        raise InputError(f"{key}: a clip has the shape 1 3 t h w, got {tuple(original.shape)}")
    if reconstruction.shape != original.shape:
        raise InputError(
            f"{key}: the reconstruction has shape {tuple(reconstruction.shape)}, the original {tuple(original.shape)}"
        )
    for name, values in (("original", original), ("reconstruction", reconstruction)):
        if not values.is_floating_point() or not values.isfinite().all():
            raise InputError(f"{key}: the {name} holds values that are not finite floating-point numbers")
    # A clip in 0..1 looks like a dark one in [-1, 1]; one in 0..255 is recognised.
    if original.abs().max() > 1.01:
        raise InputError(f"{key}: the original goes to {float(original.abs().max()):g}; pixels must be in [-1, 1]")


def _score(
    key: str, original: Tensor, reconstruction: Tensor, protocol: Protocol, lpips: Perceptual | None
) -> ClipScores:
    """Score a clip by groups of frames; no figure depends on how many are in a group."""
    _, frames, height, width = original.shape
    absent = _absences(height, width, protocol, lpips)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("mse", "ssim", "ms_ssim", "lpips") if name not in absent}
    group = max(1, _PIXELS_AT_ONCE // (3 * height * width))
    for first in range(0, frames, group):
        a = _pixels(original[:, first : first + group], protocol, _rounding_of_originals(protocol))
        b = _pixels(reconstruction[:, first : first + group], protocol, protocol.rounding)
        columns["mse"].append(pixel.mse(a, b))
        if "ssim" in columns and protocol.ssim is not None:
            columns["ssim"].append(pixel.ssim(a, b, protocol.data_range, protocol.ssim))
        if "ms_ssim" in columns:
            columns["ms_ssim"].append(pixel.ms_ssim(a, b, protocol.data_range))
        if "lpips" in columns and lpips is not None:
            if protocol.lpips_rounding is not None:
                a = _pixels(original[:, first : first + group], protocol, protocol.lpips_rounding)
                b = _pixels(reconstruction[:, first : first + group], protocol, protocol.lpips_rounding)
            columns["lpips"].append(lpips.frames(a * (2 / protocol.peak) - 1, b * (2 / protocol.peak) - 1))
    values = {name: torch.cat(parts).cpu() for name, parts in columns.items()}
    means = {name: math.fsum(x.flatten().tolist()) / x.numel() for name, x in values.items()}
    identical = int((values["mse"].sum(1) == 0).sum())
    psnr = _psnr(values["mse"], protocol)
    size = {"frames": frames, "height": height, "width": width}
    return ClipScores.parse(
        {"key": key, **size, "psnr": psnr, "identical_frames": identical, "absent": absent, **means}
    )


def _psnr(errors: Tensor, protocol: Protocol) -> float:
    """Compute the clip's PSNR from its errors per frame and channel."""
    if protocol.psnr_over == "channel":
        units = errors.flatten()
    else:
        units = errors.mean(1) if protocol.psnr_over == "frame" else errors.mean().reshape(1)
    return math.fsum(capped_psnr(error, protocol) for error in units.tolist()) / len(units)


def _absences(height: int, width: int, protocol: Protocol, lpips: Perceptual | None) -> dict[str, str]:
    """Return which scores cannot be computed, and why."""
    side, absent = min(height, width), {}
    needs = {"ms_ssim": pixel.SMALLEST_MS_SSIM}
    if protocol.ssim is None:
        absent["ssim"] = f"not in protocol {protocol.name}"
    else:
        needs["ssim"] = pixel.smallest_side(protocol.ssim)
    if protocol.lpips is None:
        absent["lpips"] = f"not in protocol {protocol.name}"
    elif lpips is None:
        absent["lpips"] = f"no LPIPS ({protocol.lpips}) weights were given"
    else:
        needs["lpips"] = lpips.smallest
    if not protocol.ms_ssim:
        absent["ms_ssim"] = f"not in protocol {protocol.name}"
    for name, least in needs.items():
        if side < least:
            absent.setdefault(name, f"needs {least} x {least} pixels, frames are {height} x {width}")
    return absent


def _pixels(video: Tensor, protocol: Protocol, rounding: pixel.Rounding) -> Tensor:
    """Map `3 t h w` in [-1, 1] to frames `t 3 h w` in 0..peak, float64."""
    video = video.cpu() if video.device.type == "mps" else video  # MPS has no float64
    return pixel.to_pixels(video.transpose(0, 1), rounding) * (protocol.peak / 255)


def _by_stem(folder: Path, suffixes: Collection[str] | None) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if suffixes is not None and path.suffix.lower() not in suffixes:
            continue
        key = relative.with_suffix("").as_posix()
        if key in files:
            raise InputError(f"{folder}: {files[key].name} and {path.name} have the same name but for the suffix")
        files[key] = path
    if not files:
        wanted = "" if suffixes is None else f" that end in {' '.join(suffixes)}"
        raise InputError(f"{folder}: has no files{wanted}")
    return files


def _tensor_of_json(data: Any) -> Tensor:
    """Return plain data as JSON in a tensor of bytes; numbers come back bit for bit."""
    return torch.from_numpy(np.frombuffer(json.dumps(data, allow_nan=False).encode(), np.uint8).copy())


def _prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _without_prefix(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
