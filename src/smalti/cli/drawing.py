"""What `smalti generate` draws: which sample becomes which file, what it begins with, and the drawing itself."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smalti.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.data import Source
    from smalti.data.loader import OnBad
    from smalti.generation import Condition, Generator, SamplingConfig, TaskConfig, TaskKind
    from smalti.tokenizer import Tokenizer

EVERY = "all"
"""As a class: every class in turn."""


class Wanted(NamedTuple):
    """What is asked for, beside how it is drawn."""

    task: "TaskConfig"
    given: Path | None
    originals: Path | None
    """The folder for the inputs as the model sees them."""
    fit: bool
    label: str | None
    samples: int
    """Of each input and class."""
    paste: bool
    hold: bool
    length: int | None


class Job(NamedTuple):
    """One sample."""

    target: Path
    number: int
    """Keys its noise beside the seed; it follows from its number, input and class, not from how many there are."""
    label: int | None


class Drawing(NamedTuple):
    """All that every sample is drawn with."""

    wanted: Wanted
    generator: "Generator"
    tokenizer: "Tokenizer"
    config: "SamplingConfig"
    seed: int = 0


def inputs_of(wanted: Wanted, generator: "Generator") -> "Source | None":
    """What samples begin with: of prediction the given frames alone, unless the originals are wanted too."""
    from smalti.data import source_of
    from smalti.data.clips import ClipConfig
    from smalti.generation import PredictionTask

    if wanted.given is None:
        return None
    (frames, rows, columns), task = generator.size, wanted.task
    needed = task.frames if isinstance(task, PredictionTask) and wanted.originals is None else frames
    size = (rows, columns) if wanted.fit else None
    config = source_of(wanted.given, size=size, frames=needed, prefer="videos" if frames > 1 else "images")
    if isinstance(config, ClipConfig):
        config = config.replace({"sampling": "first", "fps": generator.origin.fps if wanted.fit else None})
    return config.build()


def plan(wanted: Wanted, generator: "Generator", source: "Source | None", out: Path) -> dict[str, list[Job]]:
    """The samples that begin with each input, by its key; without inputs, of the key "".

    Raises ConfigError for an unknown class, and where two inputs would make one file.
    """
    from smalti.pipeline.decode import target_name

    is_video, numbers, task = generator.size[0] > 1, range(wanted.samples), wanted.task.kind
    classes, origin = generator.model.config.classes, generator.origin
    suffix = ".mp4" if is_video else ".png"
    if source is None and wanted.label == EVERY and EVERY not in origin.classes:
        if classes == 0:
            raise ConfigError(f"class {EVERY}: this model was trained without any; leave it out")
        paths = ((c, n, out / f"{c:04d}" / f"{n:04d}{suffix}") for c in range(classes) for n in numbers)
        return {"": [Job(path, _number(n, label=c), c) for c, n, path in paths]}
    label = None if wanted.label is None else origin.label(wanted.label, classes)
    if source is None:
        return {"": [Job(out / f"{task}-{n:04d}{suffix}", _number(n, label=label), label) for n in numbers]}
    jobs: dict[str, list[Job]] = {}
    taken: dict[Path, str] = {}
    for key in map(source.key, range(len(source))):
        path = out / target_name(key, is_video=is_video)
        if taken.setdefault(path, key) != key:
            raise ConfigError(f"{taken[path]} and {key} would both become {path}; take them in turn")
        paths_of = [path if wanted.samples == 1 else path.with_stem(f"{path.stem}-{n:04d}") for n in numbers]
        jobs[key] = [Job(p, _number(n, key=key, label=label), label) for n, p in enumerate(paths_of)]
    return jobs


def _number(n: int, *, key: str | None = None, label: int | None = None) -> int:
    from smalti.data.shuffle import mix

    if key is None and label is None:
        return n
    about = hashlib.blake2b((key or "").encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return mix(int.from_bytes(about, "little"), -1 if label is None else label, n)


def draw_all(
    drawing: Drawing, jobs: dict[str, list[Job]], source: "Source | None", on_bad: "OnBad", batch: int
) -> Iterator[Job]:
    """Draw and write all samples, `batch` at a time; gives each when it is written. Bad inputs go to `on_bad`."""
    import torch

    pairs = _openings(drawing, jobs, source, on_bad)
    while some := list(islice(pairs, batch)):
        chosen = [job for job, _ in some]
        clips = _draw(drawing, chosen, torch.cat([video for _, video in some]))
        for job, clip in zip(chosen, clips, strict=True):
            _write(job.target, clip, drawing.generator.origin.fps)
            yield job


def _openings(
    drawing: Drawing, jobs: dict[str, list[Job]], source: "Source | None", on_bad: "OnBad"
) -> "Iterator[tuple[Job, Tensor]]":
    """Every sample and the pixels that it begins with, `1 3 t h w`; of prediction, the last given frame is repeated."""
    import torch

    from smalti.data import evaluation
    from smalti.pipeline.decode import target_name
    from smalti.video import to_uint8

    wanted, size, origin = drawing.wanted, drawing.generator.size, drawing.generator.origin
    if source is None:
        yield from ((job, torch.zeros(1, 3, *size)) for job in jobs[""])
        return
    for given in evaluation(source, on_bad=on_bad):
        key, video = given.keys[0], given.video
        frames, *found = video.shape[2:]
        if found != [*size[1:]] or (frames < size[0] and wanted.task.kind != "prediction"):
            raise InputError(
                f"{key}: is {frames} x {found[0]} x {found[1]} (frames, rows, columns), and the model draws "
                f"{size[0]} x {size[1]} x {size[2]}; give --fit to bring its size and rate to the model's"
            )
        if wanted.originals is not None:
            target = wanted.originals / target_name(key, is_video=size[0] > 1)
            _write(target, to_uint8(video)[0], origin.fps)
        whole = video[:, :, [min(i, frames - 1) for i in range(size[0])]]
        yield from ((job, whole) for job in jobs[key])


def _draw(drawing: Drawing, jobs: list[Job], video: "Tensor") -> "Tensor":
    """Samples as `b t h w 3` uint8 frames, which begin with what the task gives of the video."""
    import torch

    from smalti.generation import PredictionTask, complete, hold, paste, task_prompt
    from smalti.video import to_uint8

    wanted, generator, tokenizer, config, seed = drawing
    model, origin = generator
    video = video.to(tokenizer.device)
    with torch.inference_mode():
        if wanted.given is None:
            ids = torch.zeros(len(jobs), *model.config.grid, dtype=torch.int64, device=video.device)
        else:
            ids = tokenizer.encode(wanted.task.fill(video))
        condition = _condition(generator, jobs, wanted.task.kind, ids)
        prompt = task_prompt(wanted.task, ids, origin.strides, reach=tokenizer.encoder.reach, condition=condition)
        if not generator.hints:  # as in its training
            prompt = prompt._replace(hinted=None)
        drawn = complete(model, prompt, config, seed=seed, samples=[job.number for job in jobs])
        clip = tokenizer.decode(drawn)
        if wanted.hold:
            assert isinstance(wanted.task, PredictionTask)
            last = wanted.task.frames - 1
            clip = hold(video[:, :, last], clip, last)
        if wanted.paste:
            clip = paste(wanted.task.given(generator.size), video, clip)
        if wanted.length is not None:
            clip = torch.cat([clip, *_longer(drawing, jobs, drawn)], 2)[:, :, : wanted.length]
        return to_uint8(clip.cpu())


def _longer(drawing: Drawing, jobs: list[Job], first: "Tensor") -> "list[Tensor]":
    """The new frames of the windows after `first`, each of which begins with the end of the one before."""
    from smalti.generation import PredictionTask, extend

    wanted, (model, origin), tokenizer, config, seed = drawing
    assert wanted.length is not None
    stride, task = origin.strides[0], wanted.task
    keep = 1 + ((task.frames if isinstance(task, PredictionTask) else 1) - 1) // stride
    shown = 1 + stride * (keep - 1)

    def renew(window: "Tensor") -> "Tensor":
        return tokenizer.encode(tokenizer.decode(window)[:, :, -shown:])

    condition = _condition(drawing.generator, jobs, "prediction", first)
    numbers = [job.number for job in jobs]
    windows = extend(model, first, condition, config, keep=keep, seed=seed, samples=numbers, renew=renew)
    found: list[Tensor] = []
    total = drawing.generator.size[0]
    while total < wanted.length:
        found.append(tokenizer.decode(next(windows))[:, :, shown:])
        total += found[-1].shape[2]
    return found


def _condition(generator: "Generator", jobs: list[Job], kind: "TaskKind", ids: "Tensor") -> "Condition":
    import torch

    from smalti.generation import Condition, task_tokens

    tasks = task_tokens(kind, generator.model.config.tasks, len(jobs))
    chosen = [job.label for job in jobs if job.label is not None]
    labels = torch.tensor(chosen) if chosen else None  # all have a class, or none
    return Condition(*(None if x is None else x.to(ids.device) for x in (labels, tasks)))


def _write(target: Path, clip: "Tensor", fps: float | None) -> None:
    from smalti.data.video_writer import write_media

    write_media(target, clip[:1] if target.suffix == ".png" else clip, None if target.suffix == ".png" else fps or 8.0)
