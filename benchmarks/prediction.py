"""Frame prediction on film against copying the last frame: `python -m benchmarks.prediction --help`.

shots FILM OUT     the shots of a film at 8 frames a second, 128x72, those of every fifth half minute held out
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch

from smalti.data.videos import write_video

ROWS, COLUMNS, FPS = 72, 128, 8
CUT = 20.0
"""Mean difference of two neighbouring thumbnails (0..255) from which a new shot begins."""
FLAT = 6.0
"""Deviation of a frame below which it is a black or a title screen, and ends a shot."""
SHORTEST = 17
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
    """Write the shots into `out/train` and `out/heldout`."""
    for start, shot in shots(film, until):
        held = int(start // STRETCH) % EVERY == EVERY - 1
        target = out / ("heldout" if held else "train") / f"{round(1000 * start):07d}.mp4"
        write_video(target, map(torch.from_numpy, shot), FPS, crf=8)
    for part in ("train", "heldout"):
        print(f"{out / part}: {len(list((out / part).glob('*.mp4')))} shots")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction")
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut = verbs.add_parser("shots")
    cut.add_argument("film", type=Path)
    cut.add_argument("out", type=Path)
    cut.add_argument("--until", type=float, default=1e9, help="seconds to take, to leave out the credits")
    asked = parser.parse_args(arguments)
    lay_out(asked.film, asked.out, asked.until)


if __name__ == "__main__":
    main()
