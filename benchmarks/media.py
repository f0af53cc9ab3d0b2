"""Lay out film and photographs as mindone's users have their data: `python -m benchmarks.media datasets --help`.

    datasets/ImageNet/{train,validation}/FOLDER/NAME.JPEG       photographs, and a frame of every two seconds of film
    datasets/ucf101/UCF-101/FILM/v_FILM_g01_c01.avi             the shots of the film, 320x240, MPEG-4 in AVI
    datasets/ucf101/{classInd,trainlist01,testlist01}.txt       in UCF-101's own format

What is held out is fixed. A photograph is, if the first byte of the sha256 of its path is below 51 (one in five). Film
is cut into 25 stretches of equal length, numbered in the order of their sha256; a shot is of the stretch that it starts
in, its group, and groups 1 to 7 are the test set, as in UCF-101. What lies within two seconds of a shot to train on is
left out of the test set, so that no shot that a cut was wrongly found in is in both.
"""

import argparse
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from smalti.data import open_video, read_image
from smalti.data.files import IMAGE_SUFFIXES, list_files

ROWS, COLUMNS = 240, 320
GROUPS, TEST_GROUPS = 25, 7
SHORTEST, LONGEST = 25, 240
"""Frames of a shot: shorter ones are left out, longer ones become several clips of one group."""
APART = 2.0
"""Seconds that a test clip keeps from what is trained on; also from one picture of a clip to the next."""
CUT = 18.0
"""Mean difference of neighbouring thumbnails (0..255) from which a new shot begins: a cut, or the fastest motion."""
FLAT = 6.0
"""Deviation of a thumbnail below which a frame is a black or a title screen, and ends a shot."""
SHORT_SIDE = 256


class Part(NamedTuple):
    """Neighbouring frames of one shot of a film."""

    shot: int
    """The first frame of the shot in the film."""
    first: int
    """The first frame of this part."""
    frames: list[np.ndarray]
    """`uint8 240 320 3`."""


class Clip(NamedTuple):
    """A part that has been written."""

    name: str
    first: int
    end: int
    tests: bool
    pictures: list[np.ndarray]


def held_out(name: str) -> bool:
    """Whether a photograph is one of the one in five that are not trained on."""
    return hashlib.sha256(name.encode()).digest()[0] < 51


def class_of(path: Path) -> str:
    """The class of a film: its name, as UCF-101 writes names."""
    return "".join(word.capitalize() for word in path.stem.replace("-", "_").split("_"))


def groups(film: str) -> list[int]:
    """The group, from 1, of each of the 25 stretches of a film."""
    order = sorted(range(GROUPS), key=lambda stretch: hashlib.sha256(f"{film}/{stretch}".encode()).digest())
    return [order.index(stretch) + 1 for stretch in range(GROUPS)]


def scaled(pixels: np.ndarray, short_side: int) -> Image.Image:
    """The picture with its short side scaled down to `short_side`."""
    picture = Image.fromarray(pixels)
    share = min(1.0, short_side / min(picture.size))
    return picture.resize((round(picture.width * share), round(picture.height * share)), Image.Resampling.BICUBIC)


def middle(pixels: np.ndarray) -> np.ndarray:
    """The largest box of 4:3 in the middle, as 320 x 240."""
    height, width = pixels.shape[:2]
    box_width, box_height = min(width, height * COLUMNS / ROWS), min(height, width * ROWS / COLUMNS)
    left, top = (width - box_width) / 2, (height - box_height) / 2
    box = (left, top, left + box_width, top + box_height)
    return np.asarray(Image.fromarray(pixels).resize((COLUMNS, ROWS), Image.Resampling.BICUBIC, box=box))


def parts(frames: Iterator[np.ndarray]) -> Iterator[Part]:
    """The shots of a film, between cuts and flat frames: parts of at most `LONGEST` frames, none below `SHORTEST`."""
    part, last = Part(0, 0, []), None
    for number, frame in enumerate(frames):
        small = np.asarray(Image.fromarray(frame).resize((32, 24), Image.Resampling.BOX), np.float32)
        flat = small.mean(2).std() < FLAT
        cut = last is not None and np.abs(small - last).mean() > CUT
        last = small
        if flat or cut or len(part.frames) == LONGEST:
            if len(part.frames) >= SHORTEST:
                yield part
            part = Part(number if flat or cut else part.shot, number, [])
        if not flat:
            part.frames.append(frame)
    if len(part.frames) >= SHORTEST:
        yield part


def apart(clips: Sequence[Clip], frames: float) -> list[Clip]:
    """The clips without those of the test set that come nearer than `frames` to a clip to train on."""
    trained = [clip for clip in clips if not clip.tests]
    return [
        clip
        for clip in clips
        if not clip.tests or all(t.first - clip.end >= frames or clip.first - t.end >= frames for t in trained)
    ]


def write_avi(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """MPEG-4 in AVI as UCF-101 has it, of 4 Mbit/s; whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with av.open(f"file:{part}", "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=round(fps))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = COLUMNS, ROWS, "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    part.replace(path)


def lay_film(path: Path, until: float | None, number: int, out: Path) -> dict[str, list[str]]:
    """Write the shots of a film, class `number`, and pictures of it; gives the rows of both lists."""
    film = class_of(path)
    group_of, counts, clips = groups(film), [0] * (GROUPS + 1), list[Clip]()
    with open_video(path) as reader:
        fps = reader.fps
        count = len(reader) if until is None else min(len(reader), round(until * fps))
        for part in parts(middle(frame.numpy()) for frame in reader.frames(stop=count)):
            group = group_of[part.shot * GROUPS // count]
            counts[group] += 1
            name = f"{film}/v_{film}_g{group:02d}_c{counts[group]:02d}"
            write_avi(out / "ucf101" / "UCF-101" / f"{name}.avi", part.frames, fps)
            end, pictures = part.first + len(part.frames), part.frames[:: round(APART * fps)]
            clips.append(Clip(name, part.first, end, group <= TEST_GROUPS, [picture.copy() for picture in pictures]))
    clips = apart(clips, APART * fps)
    for clip in clips:
        for i, picture in enumerate(clip.pictures):
            save(Image.fromarray(picture), out, clip.tests, f"{clip.name}_{i * round(APART * fps):03d}")
    return {
        "train": [f"{clip.name}.avi {number}" for clip in clips if not clip.tests],
        "test": [f"{clip.name}.avi" for clip in clips if clip.tests],
    }


def save(picture: Image.Image, out: Path, held: bool, name: str) -> None:
    """Write a picture where ImageNet has its own."""
    path = out / "ImageNet" / ("validation" if held else "train") / f"{name}.JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=95)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, write the folders, say what is in them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.media")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--film", type=Path, action="append", required=True, help="a video file; repeatable")
    parser.add_argument("--until", type=float, help="seconds of each film to take, to leave out the credits")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of pictures")
    asked = parser.parse_args(arguments)
    if (asked.out / "ucf101").exists() or (asked.out / "ImageNet").exists():
        parser.error(f"{asked.out}: holds a layout already; give another folder")
    for name in list_files(asked.photos, IMAGE_SUFFIXES).files:
        save(
            scaled(read_image(asked.photos / name).numpy(), SHORT_SIDE),
            asked.out,
            held_out(name),
            Path(name).with_suffix("").as_posix(),
        )
    rows = [lay_film(path, asked.until, number, asked.out) for number, path in enumerate(asked.film, start=1)]
    lists = {f"{part}list01": [row for film in rows for row in film[part]] for part in ("train", "test")}
    lists["classInd"] = [f"{number} {class_of(path)}" for number, path in enumerate(asked.film, start=1)]
    for name, lines in lists.items():
        (asked.out / "ucf101" / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for part in ("train", "validation"):
        print(f"ImageNet/{part}: {sum(1 for _ in (asked.out / 'ImageNet' / part).rglob('*.JPEG'))} pictures")
    for part in ("train", "test"):
        print(f"ucf101/{part}list01.txt: {len(lists[f'{part}list01'])} clips")


if __name__ == "__main__":
    main()
