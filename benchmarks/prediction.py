"""Frame prediction on film against copying the last frame: `python -m benchmarks.prediction --help`.

shots FILM OUT     the shots of a film at 8 frames a second, 128x72, those of every fifth half minute held out
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from smalti.cli.generators import open_generator
from smalti.cli.tokenizers import open_tokenizer
from smalti.data import evaluation, source_of
from smalti.data.videos import write_video
from smalti.generate import (
    Condition,
    GenerationTask,
    MaskedTransformer,
    PredictionTask,
    SamplingConfig,
    sample,
    task_prompt,
    task_tokens,
)
from smalti.losses.perceptual import LPIPSConfig
from smalti.metrics.sheet import contact_sheet
from smalti.tokenizer import Tokenizer
from smalti.video import to_uint8

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


@torch.inference_mode()
def score(run: str, folder: Path, tokenizer: str, lpips: Path | None, sheet: Path | None) -> None:
    """Print the figures; with `sheet`, draw the first clips and some that are drawn whole."""
    generator, model_of = open_generator(run, "cpu")[0], open_tokenizer(tokenizer)
    generator.origin.check(model_of.fingerprint, run)
    model, distance = generator.model, LPIPSConfig(net="alex", weights=lpips).build()
    assert isinstance(model, MaskedTransformer)
    task, config = PredictionTask(frames=1), SamplingConfig(steps=12)
    source = source_of(folder, size=generator.size[1:], frames=generator.size[0]).build()
    clips = [batch.video for batch in evaluation(source)]
    sums: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for number, clip in enumerate(clips):
        drawn = _sampled(model, model_of, task, clip, config, number)
        copied = clip[:, :, :1].expand_as(clip)
        made = {"predicted": drawn, "copied": copied, "round trip": model_of.decode(model_of.encode(clip))}
        for name, video in made.items():
            ours, theirs = (v[0, :, 1:].transpose(0, 1) for v in (video.clamp(-1, 1), clip))
            error = (ours - theirs).square().mean()
            sums.setdefault(name, []).append((distance(ours, theirs).mean().item(), -10 * (error / 4).log10().item()))
        rows += [_frames(clip), _frames(drawn)] if number < 3 else []
    for name, found in sums.items():
        means = np.mean(found, 0)
        print(f"{name:<10}  LPIPS {means[0]:.4f}  PSNR {means[1]:.2f}  over {len(found)} clips")
    wins = sum(p[0] < c[0] for p, c in zip(sums["predicted"], sums["copied"], strict=True))
    print(f"the prediction is nearer than the copy by LPIPS in {wins} of {len(clips)}")
    if sheet is not None:
        blank = torch.zeros_like(clips[0])
        rows += [_frames(_sampled(model, model_of, GenerationTask(), blank, config, number)) for number in range(2)]
        contact_sheet(rows, [f"frame {i}" for i in range(0, 17, 4)]).save(sheet)


def _sampled(
    model: MaskedTransformer,
    tokenizer: Tokenizer,
    task: PredictionTask | GenerationTask,
    clip: Tensor,
    config: SamplingConfig,
    number: int,
) -> Tensor:
    condition = Condition(tasks=task_tokens(task.kind, model.config.tasks, 1))
    prompt = task_prompt(task, tokenizer.encode(task.fill(clip)), tokenizer.strides, condition=condition)
    return tokenizer.decode(sample(model, prompt, config, samples=[number]))


def _frames(clip: Tensor) -> list[np.ndarray]:
    return [to_uint8(clip)[0, frame].numpy() for frame in range(0, 17, 4)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction")
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut = verbs.add_parser("shots")
    cut.add_argument("film", type=Path)
    cut.add_argument("out", type=Path)
    cut.add_argument("--until", type=float, default=1e9, help="seconds to take, to leave out the credits")
    scores = verbs.add_parser("score")
    scores.add_argument("run")
    scores.add_argument("folder", type=Path, help="held-out shots")
    scores.add_argument("--tokenizer", required=True)
    scores.add_argument("--lpips", type=Path, help="weights of LPIPS, net alex; found by themselves if none")
    scores.add_argument("--sheet", type=Path, help="a PNG to write")
    asked = parser.parse_args(arguments)
    if asked.verb == "shots":
        lay_out(asked.film, asked.out, asked.until)
    else:
        torch.set_num_threads(1)
        score(asked.run, asked.folder, asked.tokenizer, asked.lpips, asked.sheet)


if __name__ == "__main__":
    main()
