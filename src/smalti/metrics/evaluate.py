"""Score anything that turns a video into a video: a tokenizer, a codec, somebody else's model, the identity."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.metrics import pixel
from smalti.metrics.codebook import Usage
from smalti.metrics.distance import FeatureMoments
from smalti.metrics.features import Features
from smalti.metrics.frechet import Moments
from smalti.metrics.perceptual import Perceptual
from smalti.metrics.protocols import Protocol
from smalti.metrics.report import Report, Row, capped_psnr, summarise

Reconstruct = Callable[[Tensor], Tensor | tuple[Tensor, ...]]
"""video `1 3 t h w` in [-1, 1] -> video of that shape, or a tuple that starts (video, ids)."""

_PIXELS_AT_ONCE = 1 << 20  # of float64, some ten copies are alive in SSIM: 250 MB


def evaluate(
    reconstruct: Reconstruct,
    clips: Iterable[tuple[str, Tensor]],
    protocol: Protocol,
    *,
    lpips: Perceptual | None = None,
    features: Features | None = None,
    levels: Sequence[int] | None = None,
    progress: Callable[[Row], None] | None = None,
) -> Report:
    """The report on `clips`, pairs (key, video `1 3 t h w` in [-1, 1]); keys are unique.

    `levels` are those of the ids that `reconstruct` returns; without them codebook use is not reported. `progress`
    sees each row as it is done. Raises InputError for no clips or fewer than the protocol asks for, a key that stands
    twice, a wrong shape or values that are not finite, and ConfigError where `lpips` or `features` are not what the
    protocol names.
    """
    scores = Scores(protocol, lpips=lpips, features=features, levels=levels)
    for key, video in clips:
        if scores.is_full:
            scores.add_original(key, video)
            continue
        with torch.no_grad():
            outcome = reconstruct(video)
        made, ids = (outcome[0], outcome[1]) if isinstance(outcome, tuple) else (outcome, None)
        row = scores.add(key, video, made, ids)
        if progress is not None:
            progress(row)
    return scores.report()


class Scores:
    """Rows, code counts and moments of the clips so far. Parts of a set, scored anywhere, merge to the whole."""

    def __init__(
        self,
        protocol: Protocol,
        *,
        lpips: Perceptual | None = None,
        features: Features | None = None,
        reference: Moments | None = None,
        levels: Sequence[int] | None = None,
    ) -> None:
        """`reference` are moments of all originals that are known already: none are then taken of them.

        Raises ConfigError where `lpips` or `features` are not what the protocol names; without features it names, it
        takes no distance.
        """
        self.protocol = _with_features(_named(protocol, lpips), features)
        self.lpips = lpips
        self.rows: dict[str, Row] = {}
        self.usage = Usage(levels) if levels is not None else None
        self.pixels = 0
        """Pixels that the counted ids stand for."""
        takes = features is not None and protocol.features is not None
        self.moments = FeatureMoments(features, reference) if takes and features is not None else None

    @property
    def is_full(self) -> bool:
        """Whether as many clips are scored as the protocol asks for."""
        return self.protocol.samples is not None and len(self.rows) >= self.protocol.samples

    def add(self, key: str, video: Tensor, made: Tensor, ids: Tensor | None = None) -> Row:
        """Score one clip, both videos `1 3 t h w` in [-1, 1] (`made` is clipped)."""
        if key in self.rows:
            raise InputError(f"{key}: two clips have this key; keys must be unique")
        check_clips(key, video, made)
        made = made.to(video.device)
        row = _score(key, video[0], made[0], self.protocol, self.lpips)
        self.add_original(key, video)
        if self.moments is not None:
            self.moments.add_made(key, levels_of(made, self.protocol.rounding))
        if ids is not None:
            row = row.model_copy(update={"tokens": ids.numel()})
            if self.usage is not None:
                self.usage.update(ids)
                self.pixels += math.prod(video.shape[2:])
        self.rows[key] = row
        return row

    def add_original(self, key: str, video: Tensor) -> None:
        """Take an original alone: distances are to all of them, also those past the protocol's `samples`."""
        check_clips(key, video, video)
        if self.moments is not None:
            self.moments.add_original(key, levels_of(video, _of_originals(self.protocol)))

    def fresh(self) -> "Scores":
        """No clips yet, to be scored in the same way."""
        found = Scores(self.protocol, lpips=self.lpips, levels=self.usage.levels if self.usage is not None else None)
        if self.moments is not None:
            found.moments = FeatureMoments(self.moments.features, self.moments.reference)
        return found

    def merge(self, other: "Scores") -> "Scores":
        """The scores of both; neither is changed. Raises ValueError if they were not taken by the same protocol."""
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
        merged.pixels = self.pixels + other.pixels
        if self.usage is not None and other.usage is not None:
            merged.usage = self.usage.merge(other.usage)
        if self.moments is not None and other.moments is not None:
            merged.moments = self.moments.merge(other.moments)
        return merged

    def report(self) -> Report:
        """The report so far. Raises InputError if there is no clip, or fewer than the protocol asks for."""
        if not self.rows:
            raise InputError("there are no clips to score")
        asked = self.protocol.samples
        if asked is not None and len(self.rows) < asked:
            raise InputError(
                f"protocol {self.protocol.name} asks for {asked:,} clips, {len(self.rows):,} were scored; give it the "
                f"whole list, or take another protocol"
            )
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
        return summarise(self.protocol, self.rows.values(), use, frechet, absent)


def _named(protocol: Protocol, lpips: Perceptual | None) -> Protocol:
    """The protocol with the digest of the weights that are used."""
    if lpips is None or protocol.lpips is None:
        return protocol
    if lpips.net != protocol.lpips:
        raise ConfigError(f"protocol {protocol.name} scores LPIPS with {protocol.lpips}, the one given is {lpips.net}")
    if protocol.lpips_digest not in (None, lpips.digest):
        raise ConfigError(
            f"protocol {protocol.name} names other LPIPS weights ({protocol.lpips_digest}) than are given"
        )
    return protocol.model_copy(update={"lpips_digest": lpips.digest})


def _with_features(protocol: Protocol, features: Features | None) -> Protocol:
    if features is None or protocol.features is None:
        return protocol
    features.check(protocol.name, protocol.features, protocol.features_digest)
    return protocol.model_copy(update={"features_digest": features.digest})


def _of_originals(protocol: Protocol) -> pixel.Rounding:
    return protocol.original_rounding or protocol.rounding


def check_clips(key: str, video: Tensor, made: Tensor) -> None:
    """Raises InputError unless both are clips of one shape with finite values, the original in [-1, 1]."""
    if video.ndim != 5 or video.shape[0] != 1 or video.shape[1] != 3 or video.numel() == 0:
        raise InputError(f"{key}: a clip has the shape 1 3 t h w, got {tuple(video.shape)}")
    if made.shape != video.shape:
        raise InputError(f"{key}: the reconstruction has shape {tuple(made.shape)}, the original {tuple(video.shape)}")
    for name, values in (("original", video), ("reconstruction", made)):
        if not values.is_floating_point() or not values.isfinite().all():
            raise InputError(f"{key}: the {name} holds values that are not finite floating-point numbers")
    # A clip in 0..1 cannot be told from a dim one; one in 0..255 can.
    if video.abs().max() > 1.01:
        raise InputError(f"{key}: the original goes to {float(video.abs().max()):g}; pixels must be in [-1, 1]")


def _score(key: str, video: Tensor, made: Tensor, protocol: Protocol, lpips: Perceptual | None) -> Row:
    """One row, by groups of frames; no figure depends on how many are in a group."""
    _, frames, height, width = video.shape
    absent = _absences(height, width, protocol, lpips)
    columns: dict[str, list[Tensor]] = {name: [] for name in ("mse", "ssim", "ms_ssim", "lpips") if name not in absent}
    group = max(1, _PIXELS_AT_ONCE // (3 * height * width))
    for first in range(0, frames, group):
        a = _pixels(video[:, first : first + group], protocol, _of_originals(protocol))
        b = _pixels(made[:, first : first + group], protocol, protocol.rounding)
        columns["mse"].append(pixel.mse(a, b))
        if "ssim" in columns and protocol.ssim is not None:
            columns["ssim"].append(pixel.ssim(a, b, protocol.data_range, protocol.ssim))
        if "ms_ssim" in columns:
            columns["ms_ssim"].append(pixel.ms_ssim(a, b, protocol.data_range))
        if "lpips" in columns and lpips is not None:
            columns["lpips"].append(lpips.frames(a * (2 / protocol.peak) - 1, b * (2 / protocol.peak) - 1))
    found = {name: torch.cat(parts).cpu() for name, parts in columns.items()}
    means = {name: math.fsum(values.flatten().tolist()) / values.numel() for name, values in found.items()}
    identical = int((found["mse"].sum(1) == 0).sum())
    psnr = _psnr(found["mse"], protocol)
    size = {"frames": frames, "height": height, "width": width}
    return Row.parse({"key": key, **size, "psnr": psnr, "identical_frames": identical, "absent": absent, **means})


def _psnr(errors: Tensor, protocol: Protocol) -> float:
    """The clip's PSNR from its errors per frame and channel."""
    if protocol.psnr_over == "channel":
        units = errors.flatten()
    else:
        units = errors.mean(1) if protocol.psnr_over == "frame" else errors.mean().reshape(1)
    return math.fsum(capped_psnr(error, protocol) for error in units.tolist()) / len(units)


def _absences(height: int, width: int, protocol: Protocol, lpips: Perceptual | None) -> dict[str, str]:
    """Which scores cannot be taken, and why."""
    side, absent = min(height, width), {}
    needs = {"ms_ssim": pixel.SMALLEST_MS_SSIM}
    if protocol.ssim is None:
        absent["ssim"] = f"not in protocol {protocol.name}"
    else:
        needs["ssim"] = pixel.smallest(protocol.ssim)
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
    """`3 t h w` in [-1, 1] to frames `t 3 h w` in 0..peak, float64."""
    # MPS has no float64.
    video = video.cpu() if video.device.type == "mps" else video
    return pixel.to_pixels(video.transpose(0, 1), rounding) * (protocol.peak / 255)


def levels_of(video: Tensor, rounding: pixel.Rounding) -> Tensor:
    """`1 3 t h w` in [-1, 1] as uint8, the pixels that every score sees."""
    video = video.cpu() if video.device.type == "mps" else video
    return pixel.to_pixels(video, rounding).to(torch.uint8)
