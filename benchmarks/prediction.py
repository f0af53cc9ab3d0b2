"""Frame prediction on film against copying the given frame: `python -m benchmarks.prediction --help`.

clips VIDEO OUT           the shots of a video, cut for a tokenizer and for a token model, some of them held out
score TRUE MADE           samples of held-out clips, against copies of their first frames, with noise and with drift too
baselines VIDEOS          the same trivial predictions of clips of any videos, without a model
bound TRUE                the true clips after the tokenizer: a perfect prediction of the tokens
sheet PNG CLIP ...        clips as rows of a picture
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from smalti.data import VideosConfig, read_clip
from smalti.data.videos import write_video
from smalti.families import load
from smalti.generation import keep_static
from smalti.losses.perceptual import LPIPS, LPIPSConfig
from smalti.metrics import SMALTI_GENERATION_VIDEO, find_features, score_generated
from smalti.metrics.contact_sheet import contact_sheet
from smalti.video import to_uint8, to_video

ROWS, COLUMNS, FPS = 72, 128, 8
"""What is read of the film."""
PHASES, FRAMES = 4, 5
"""A clip is 5 frames at 2 frames a second, and begins at any of the 8."""
CROPS = {"left": 0, "middle": 28, "right": 56}
"""Left edges of the squares of 72 x 72 that a clip to train on shows; held-out clips show the middle."""
CUT = 20.0
"""Mean difference of two neighbouring thumbnails (0..255) from which a new shot begins."""
FLAT = 6.0
"""Deviation of a thumbnail below which a frame is a black or a title screen, and ends a shot."""
_TIMES = [f"{i * PHASES / FPS:g} s" for i in range(FRAMES)]
SHORTEST = (FRAMES - 1) * PHASES + 1
NOISE, DRIFT = 4.0, 1.0
"""Deviation of the noise in levels, and pixels that a drifting frame moves in a step; tuned on nothing."""
STRETCH, EVERY = 30.0, 5
"""Seconds of a stretch of film, and which of them are held out: a shot is of the stretch that it starts in."""


def frames(film: Path, until: float) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, `uint8 h w 3`) at `FPS`."""
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "AUTO"
        due = 0.0
        for frame in container.decode(video=0):
            if frame.time >= until:
                return
            if frame.time + 1e-3 >= due:
                due += 1 / FPS
                small = frame.reformat(COLUMNS, ROWS, "rgb24", interpolation="AREA")
                yield frame.time, small.to_ndarray()


def shots(film: Path, until: float) -> Iterator[tuple[float, list[np.ndarray]]]:
    """(start in seconds, frames) of every shot between cuts and flat frames that is long enough."""
    shot: list[np.ndarray] = []
    start, last = 0.0, None
    for seconds, frame in frames(film, until):
        thumb = frame.reshape(18, 4, 32, 4, 3).mean((1, 3))
        flat = thumb.mean(2).std() < FLAT
        if flat or (last is not None and np.abs(thumb - last).mean() > CUT):
            if len(shot) >= SHORTEST:
                yield start, shot
            shot = []
        last = thumb
        if not flat:
            start = seconds if not shot else start
            shot.append(frame)
    if len(shot) >= SHORTEST:
        yield start, shot


def lay_out(film: Path, out: Path, until: float) -> None:
    """Write the shots into `out/train` and `out/heldout`, and clips of them into `train-clips` and `heldout-clips`."""
    for start, shot in shots(film, until):
        held = int(start // STRETCH) % EVERY == EVERY - 1
        name, part = f"{round(1000 * start):07d}", "heldout" if held else "train"
        _write(out / part / f"{name}.mp4", shot, FPS)
        for phase in range(PHASES):
            chosen = shot[phase::PHASES]
            if held:
                for at in range(0, len(chosen) - FRAMES + 1, 2):
                    clip = [_square(frame, CROPS["middle"]) for frame in chosen[at : at + FRAMES]]
                    _write(out / "heldout-clips" / f"{name}-{phase}-{at:03d}.mp4", clip, FPS / PHASES)
            elif len(chosen) >= FRAMES:
                for crop, left in CROPS.items():
                    clip = [_square(frame, left) for frame in chosen]
                    _write(out / "train-clips" / f"{name}-{phase}-{crop}.mp4", clip, FPS / PHASES)
                    mirrored = [frame[:, ::-1] for frame in clip]
                    _write(out / "train-clips" / f"{name}-{phase}-{crop}-mirrored.mp4", mirrored, FPS / PHASES)
    for folder in sorted(out.iterdir()):
        print(f"{folder}: {len(list(folder.glob('*.mp4')))} files")


def _square(frame: np.ndarray, left: int) -> np.ndarray:
    return frame[:, left : left + ROWS]


def _write(target: Path, clip: Sequence[np.ndarray], fps: float) -> None:
    write_video(target, (torch.from_numpy(np.ascontiguousarray(frame)) for frame in clip), fps, crf=8)


def trivial(key: str, clip: Tensor) -> dict[str, Tensor]:
    """Predictions of a clip `1 3 t h w` that know its first frame alone, by name; noise and direction follow its key.

    `copied` repeats the frame; `copy + noise` adds fresh Gaussian noise to every later one; `copy + drift` moves it by
    `DRIFT` pixels a step in one of eight directions, edges repeated. A distance of clips that is half about motion is 0
    in that half for none but the last two, so a copy alone is a baseline that anything beats.
    """
    rng = torch.Generator().manual_seed(int(hashlib.sha256(key.encode()).hexdigest()[:15], 16))
    copied = clip[:, :, :1].expand_as(clip).clone()
    noised = copied + torch.randn(copied.shape, generator=rng) * (NOISE / 127.5)
    noised[:, :, 0] = clip[:, :, 0]
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    down, right = steps[int(torch.randint(len(steps), (1,), generator=rng))]
    rows, columns = (torch.arange(n) for n in clip.shape[3:])
    drifted = copied.clone()
    for t in range(1, clip.shape[2]):
        at = [
            (axis - round(t * DRIFT) * step).clamp(0, len(axis) - 1) for axis, step in ((rows, down), (columns, right))
        ]
        drifted[:, :, t] = clip[:, :, 0][:, :, at[0]][:, :, :, at[1]]
    made = {"copied": copied, "copy + noise": noised, "copy + drift": drifted}
    return {name: (to_uint8(video).permute(0, 4, 1, 2, 3).float() / 127.5 - 1) for name, video in made.items()}


def print_distances(true: dict[str, Tensor], sets: dict[str, dict[str, Tensor]]) -> None:
    """Print the distance of each set of predictions to the true clips."""
    protocol = SMALTI_GENERATION_VIDEO.replace({"frames": FRAMES})
    features = find_features("efficientnet-lite0-video")
    named = {name: list(clips.items()) for name, clips in sets.items()}
    for one in score_generated(named, true.items(), protocol, features).sets:
        print(f"{one.name:<13} frechet_efficientnet_video {one.frechet.distance:.4f}")


@torch.inference_mode()
def baselines(videos: Path, lpips: Path | None, stride: int) -> None:
    """Print the scores of trivial predictions of clips of 5 frames, every `stride`-th, squares of 64 pixels."""
    distance = LPIPSConfig(net="alex", weights=lpips).build()
    clips: dict[str, Tensor] = {}
    for path in sorted(videos.rglob("*.mp4")):
        whole = VideosConfig(path=path, size=64, frames=None, crop="center", flip=False, sampling="center").build()
        video = to_video(whole.load(0, torch.Generator()))
        for start in range(0, video.shape[2] - stride * (FRAMES - 1), stride):
            clips[f"{path.stem}-{start:03d}"] = video[:, :, start : start + stride * (FRAMES - 1) + 1 : stride]
    sets = made_by_key(clips)
    print(f"{len(clips)} clips of {FRAMES} frames; LPIPS (alex) of frames 1 to {FRAMES - 1}")
    for name, found in sets.items():
        print(f"{name:<13} {np.mean([_after(distance, found[key], clip) for key, clip in clips.items()]):.4f}")
    print_distances(clips, sets)


def made_by_key(clips: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Trivial predictions of all clips, by name and key."""
    found = {key: trivial(key, clip) for key, clip in clips.items()}
    return {name: {key: made[name] for key, made in found.items()} for name in next(iter(found.values()))}


class Scores(NamedTuple):
    """LPIPS of one clip, over the frames after the first."""

    copied: float
    samples: list[float]


@torch.inference_mode()
def score(true: Path, made: Path, lpips: Path | None, sheet: Path | None) -> None:
    """Print the figures; with `sheet`, draw some clips above their best, their first and their copied frames."""
    distance = LPIPSConfig(net="alex", weights=lpips).build()
    clips = _clips(true)
    samples = {key: [to_video(read_clip(p)) for p in sorted(made.glob(f"{key}-????.mp4"))] for key in clips}
    sets = made_by_key(clips)
    copies = sets["copied"]
    found = {
        key: Scores(_after(distance, copies[key], clip), [_after(distance, video, clip) for video in samples[key]])
        for key, clip in clips.items()
    }
    count = len(next(iter(samples.values())))
    copied = np.array([s.copied for s in found.values()])
    drawn = np.array([s.samples for s in found.values()])
    print(f"{len(found)} clips, {count} samples of each; LPIPS (alex) of frames 1 to {FRAMES - 1}")
    for name, made_of in sets.items():
        print(f"{name:<15} {np.mean([_after(distance, made_of[key], clip) for key, clip in clips.items()]):.4f}")
    for several in sorted({1, 4, count}):
        best = drawn[:, :several].min(1)
        wins = int((best < copied).sum())
        print(f"best of {several:<3}     {best.mean():.4f}  nearer than the copy in {wins} of {len(found)} clips")
    print(f"mean of samples {drawn.mean():.4f}")
    sets |= {f"sample {n}": {key: samples[key][n] for key in clips} for n in range(min(count, 3))}
    print_distances(clips, sets)
    if sheet is not None:
        shown = sorted(found, key=lambda key: hashlib.sha256(key.encode()).digest())[:6]
        rows = []
        for key in shown:
            best = samples[key][int(np.argmin(found[key].samples))]
            rows += [_frames(clips[key]), _frames(best), _frames(samples[key][0])]
        contact_sheet(rows, _TIMES).save(sheet)


@torch.inference_mode()
def bound(true: Path, name: str, lpips: Path | None) -> None:
    """Print how far the true clips are from themselves after the tokenizer, as they are and held."""
    distance, tokenizer = LPIPSConfig(net="alex", weights=lpips).build(), load(name)
    rows = []
    for clip in _clips(true).values():
        again = tokenizer.decode(tokenizer.encode(clip)).clamp(-1, 1)
        copy, held = clip[:, :, :1].expand_as(clip), keep_static(clip[:, :, 0], again, 0)
        rows.append([_after(distance, video, clip) for video in (copy, again, held)])
    for what, value in zip(("copied", "after the tokenizer", "and held"), np.mean(rows, 0), strict=True):
        print(f"{what:<20} {value:.4f}")


def _clips(folder: Path) -> dict[str, Tensor]:
    return {path.stem: to_video(read_clip(path)) for path in sorted(folder.glob("*.mp4"))}


def _after(distance: LPIPS, video: Tensor, clip: Tensor) -> float:
    """The mean LPIPS of the frames after the first."""
    ours, theirs = (v[0, :, 1:].transpose(0, 1) for v in (video, clip))
    return float(distance(ours, theirs).mean())


def _frames(clip: Tensor) -> list[np.ndarray]:
    return list(to_uint8(clip)[0].numpy())


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction")
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut = verbs.add_parser("clips")
    cut.add_argument("film", type=Path)
    cut.add_argument("out", type=Path)
    cut.add_argument("--until", type=float, default=1e9, help="seconds to take, to leave out the credits")
    scores = verbs.add_parser("score")
    scores.add_argument("true", type=Path, help="held-out clips, as the model sees them")
    scores.add_argument("made", type=Path, help="NAME-0000.mp4, NAME-0001.mp4, ... for each of them")
    scores.add_argument("--lpips", type=Path, help="weights of LPIPS, net alex; found by themselves if none")
    scores.add_argument("--sheet", type=Path, help="a PNG to write")
    plain = verbs.add_parser("baselines")
    plain.add_argument("videos", type=Path, help="a folder of .mp4")
    plain.add_argument("--stride", type=int, default=4, help="frames of the video from one frame of a clip to the next")
    plain.add_argument("--lpips", type=Path, help="as of score")
    bounds = verbs.add_parser("bound")
    bounds.add_argument("true", type=Path)
    bounds.add_argument("--tokenizer", required=True)
    bounds.add_argument("--lpips", type=Path, help="as of score")
    rows = verbs.add_parser("sheet")
    rows.add_argument("png", type=Path)
    rows.add_argument("clips", type=Path, nargs="+")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if asked.verb == "clips":
        lay_out(asked.film, asked.out, asked.until)
    elif asked.verb == "baselines":
        baselines(asked.videos, asked.lpips, asked.stride)
    elif asked.verb == "bound":
        bound(asked.true, asked.tokenizer, asked.lpips)
    elif asked.verb == "sheet":
        table = [_frames(to_video(read_clip(path))) for path in asked.clips]
        contact_sheet(table, _TIMES).save(asked.png)
    else:
        score(asked.true, asked.made, asked.lpips, asked.sheet)


if __name__ == "__main__":
    main()
