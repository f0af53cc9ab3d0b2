"""Sample images and video from a token model into files: `smalti.generate`, the function behind the command."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.config import load_yaml
from smalti.data import Source, evaluation, source_of
from smalti.data.clips import ClipConfig
from smalti.data.loader import OnBad
from smalti.data.source import mix
from smalti.data.video_writer import write_media
from smalti.devices import pick_device
from smalti.errors import BadFile, ConfigError, InputError
from smalti.families.checkpoint import as_tokenizer
from smalti.generation import (
    Condition,
    GenerationTask,
    Generator,
    InterpolationTask,
    MaskedConfig,
    PaintingTask,
    PredictionTask,
    SamplingConfig,
    TaskConfig,
    TaskKind,
    complete,
    extend,
    find_generator,
    keep_static,
    paste_known,
    task_prompt,
    task_tokens,
)
from smalti.pipeline.decode import target_name
from smalti.pipeline.outputs import check_targets
from smalti.text import Progress
from smalti.tokenizer import Tokenizer
from smalti.training.generator_config import GeneratorTraining
from smalti.video import limit_pixels, to_uint8

EVERY_CLASS = "all"
"""`label` for every class in turn."""
_FPS = 8.0
"""Frames a second of video whose token set says none."""


class GeneratedFile(NamedTuple):
    """A sample that was written."""

    path: Path
    label: int | None
    """Class of the sample; None without classes."""


class Generation(NamedTuple):
    """Samples of a call of `generate`, and what they follow from."""

    generator: str
    """Fingerprint of the generator."""
    task: TaskConfig
    sampling: SamplingConfig
    seed: int
    listed: int
    """Inputs that samples begin with."""
    done: list[GeneratedFile]
    bad: list[BadFile]
    """Inputs that could not be used."""

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "generator": self.generator,
            "task": self.task.plain(),
            "sampling": self.sampling.plain(),
            "seed": self.seed,
            "done": [{"path": file.path, "class": file.label} for file in self.done],
            "bad": [fault.plain() for fault in self.bad],
        }


def generate(
    run: str | Path,
    out: str | Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    task: TaskKind = "generation",
    input: str | Path | None = None,
    frames: int = 1,
    region: Literal["central", "vertical", "horizontal", "moving"] = "central",
    fit: bool = False,
    originals: str | Path | None = None,
    label: str | int | None = None,
    count: int = 1,
    steps: int = 12,
    schedule: Literal["cosine", "arccos", "linear", "square", "exponential", "log"] = "cosine",
    noise: float = 4.5,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 0.0,
    set: Sequence[str] = (),
    seed: int = 0,
    length: int | None = None,
    paste: bool = False,
    hold: bool = False,
    batch: int = 8,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
    on_file: Callable[[Path], None] | None = None,
) -> Generation:
    """Sample images (PNG) or video (MP4) from a token model into the folder `out`, around what a task starts from.

    A sample follows from the seed, its number, its class and the key of its input, not from the batch or the device.

    Args:
        run: generator folder, or the run folder of one.
        out: folder of the samples.
        tokenizer: tokenizer of the run's token set, or its name as `smalti.load` takes it; None takes the run's own.
        task: what is known and what is generated.
        input: image, video, folder or list that every task but `generation` starts from.
        frames: number of known frames (prediction).
        region: box of in- and outpainting.
        fit: resize the input to the model's size and frame rate.
        originals: folder for the inputs as the model sees them.
        label: name or number of a class, or `all` for each in turn.
        count: samples of each input or class.
        steps: sampling steps of a masked model.
        schedule: schedule of the masked share.
        noise: noise on the confidence that orders the steps.
        temperature: temperature of the logits; 0 takes the most likely value.
        top_k: number of most likely values to sample from.
        top_p: total probability of the most likely values to sample from.
        guidance: scale of classifier-free guidance; 0 turns it off.
        set: further sampling fields, as `order=halton`.
        seed: seed of all randomness.
        length: frames of a video that is longer than the model's window.
        paste: copy the known pixels into the result.
        hold: keep the last known pixels where nothing moves (prediction).
        batch: samples generated together.
        overwrite: replace existing files.
        device: device to work on; None takes the best there is.
        progress: called with the number of samples that are written.
        on_file: called with the path of each sample when it is written.

    Inputs that cannot be read are left out and in `bad` of the result. Raises ConfigError for options that the model
    cannot follow and for files that may not be replaced, InputError where there is no generator or an input of
    another size, IntegrityError for another tokenizer than the one that made the model's token set.
    """
    check_arguments(generate, locals())
    check_out_folder("out", out)
    check_out_folder("originals", originals)
    check_least(
        {"frames": (frames, 1), "count": (count, 1), "steps": (steps, 1), "seed": (seed, 0), "batch": (batch, 1)}
    )
    check_least({"noise": (noise, 0), "temperature": (temperature, 0), "guidance": (guidance, 0)})
    check_least({"top_k": (top_k, 1), "length": (length, 2)})
    fields: dict[str, object] = {"steps": steps, "schedule": schedule, "noise": noise, "guidance": {"scale": guidance}}
    fields |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = SamplingConfig.parse(fields, where="generate").override(set)
    request = _Request(
        task=_task_config(task, frames, region),
        input=None if input is None else Path(input),
        originals=None if originals is None else Path(originals),
        fit=fit,
        label=None if label is None else str(label),
        samples=count,
        paste=paste,
        hold=hold,
        length=length,
    )
    folder = find_generator(run)
    generator = Generator.load(folder, pick_device(device))
    _check(request, generator, sampling)  # before the tokenizer is read
    opened = as_tokenizer(tokenizer or own_tokenizer(Path(run), folder), device)
    generator.origin.check(opened.fingerprint, folder)
    source = _open_source(request, generator)
    jobs = _plan(request, generator, source, Path(out))
    planned = [job for of_input in jobs.values() for job in of_input]
    check_targets([job.target for job in planned], overwrite=overwrite)
    result = Generation(
        generator.fingerprint, request.task, sampling, seed, 0 if source is None else len(source), [], []
    )
    sampler = _Sampler(request, generator, opened, sampling, seed)
    for job in sampler.write_all(jobs, source, result.bad.append, batch):
        result.done.append(GeneratedFile(job.target, job.label))
        if on_file is not None:
            on_file(job.target)
        if progress is not None:
            progress(len(result.done), len(planned))
    return result


def start_ids(
    tokenizer: Tokenizer, task: TaskConfig, video: Float[Tensor, "b 3 frames height width"]
) -> Int[Tensor, "b t h w"]:
    """Return the ids of what a task knows of a video, and of how it fills the rest."""
    return tokenizer.encode(task.fill(video))


def sample_ids(
    generator: Generator,
    tokenizer: Tokenizer,
    task: TaskConfig,
    start: Int[Tensor, "b t h w"] | None,
    condition: Condition,
    sampling: SamplingConfig,
    *,
    seed: int,
    samples: Sequence[int],
) -> Int[Tensor, "b t h w"]:
    """Sample ids around what a task knows of a video of the model's size, whose ids are the `start` of each sample as
    `start_ids` finds them; without any, around nothing.

    `samples` are the numbers of the samples, which key their noise beside the seed.
    """
    model, ids = generator.model, start
    if ids is None:
        ids = torch.zeros(len(samples), *model.config.grid, dtype=torch.int64, device=tokenizer.device)
    prompt = task_prompt(task, ids, generator.origin.strides, reach=tokenizer.encoder.reach, condition=condition)
    if not generator.hints:  # as in its training
        prompt = prompt._replace(hinted=None)
    return complete(model, prompt, sampling, seed=seed, samples=samples)


class _Request(NamedTuple):
    """Options of the samples, beside how they are sampled."""

    task: TaskConfig
    input: Path | None
    originals: Path | None
    fit: bool
    label: str | None
    samples: int
    """Samples of each input or class."""
    paste: bool
    hold: bool
    length: int | None


class _Job(NamedTuple):
    """One sample to make."""

    target: Path
    number: int
    """Keys its noise beside the seed; it follows from its number, input and class, not from how many there are."""
    label: int | None


def _task_config(kind: TaskKind, frames: int, region: str) -> TaskConfig:
    if kind == "generation":
        return GenerationTask()
    if kind == "prediction":
        return PredictionTask(frames=frames)
    if kind == "interpolation":
        return InterpolationTask()
    return PaintingTask.parse({"kind": kind, "region": region}, where="generate")


def own_tokenizer(run: Path, folder: Path) -> str:
    """Return the tokenizer that the config of the run names. Raises ConfigError where it names none."""
    for place in (run, *folder.parents[:2]):
        if (place / "config.yaml").is_file():
            name = load_yaml(GeneratorTraining, place / "config.yaml").tokenizer
            if name is not None:
                return str(name)
    raise ConfigError(f"{run}: does not say where its tokenizer is; give `tokenizer`")


def _check(request: _Request, generator: Generator, sampling: SamplingConfig) -> None:
    """Raise ConfigError for what the generator cannot do, in the words of the command."""
    model, kind = generator.model.config, request.task.kind
    if isinstance(model, MaskedConfig):
        if sampling.steps > model.entries:
            what = "tokens" if model.unit == "token" else "sub-tokens"
            raise ConfigError(
                f"`steps` {sampling.steps}: there are {model.entries} {what}, and a step fills at least one; give fewer"
            )
    elif kind not in ("generation", "prediction"):
        raise ConfigError(f"`task` {kind}: an autoregressive model continues a beginning; use a masked model")
    task_tokens(kind, model.tasks, 1)
    if kind != "generation" and request.input is None:
        raise ConfigError(f"`task` {kind}: give `input`, the image or video that it starts from")
    if kind == "generation" and (request.input is not None or request.paste or request.originals is not None):
        raise ConfigError("`task` generation: takes no `input`, `paste` or `originals`; name another `task`")
    if request.hold and (kind != "prediction" or request.length is not None):
        raise ConfigError("`hold`: goes with `task` prediction, without `length`")
    request.task.known_pixels(generator.size)  # raises where nothing is left to generate
    if sampling.guidance.scale > 0 and (request.label is None or model.classes == 0):
        lacks = "this model was trained without classes" if model.classes == 0 else "give `label`"
        raise ConfigError(f"`guidance` {sampling.guidance.scale:g}: there is no class to guide towards; {lacks}")
    if request.length is None:
        return
    if kind not in ("generation", "prediction") or generator.size[0] == 1:
        raise ConfigError(f"`length` {request.length}: goes with generation and prediction of video")
    task_tokens("prediction", model.tasks, 1)  # the windows after the first


def _open_source(request: _Request, generator: Generator) -> Source | None:
    """Open what samples start from: for prediction the known frames alone, unless the originals are written too."""
    if request.input is None:
        return None
    (frames, height, width), task = generator.size, request.task
    needed = task.frames if isinstance(task, PredictionTask) and request.originals is None else frames
    size = (height, width) if request.fit else None
    config = source_of(request.input, size=size, frames=needed, prefer="videos" if frames > 1 else "images")
    if isinstance(config, ClipConfig):
        config = config.replace({"sampling": "first", "fps": generator.origin.fps if request.fit else None})
    return config.build()


def _plan(request: _Request, generator: Generator, source: Source | None, out: Path) -> dict[str, list[_Job]]:
    """Plan the samples that start from each input, by its key; without inputs, by the key "".

    Raises ConfigError for an unknown class, and where two inputs would become one file.
    """
    is_video, numbers, task = generator.size[0] > 1, range(request.samples), request.task.kind
    classes, origin = generator.model.config.classes, generator.origin
    suffix = ".mp4" if is_video else ".png"
    if source is None and request.label == EVERY_CLASS and EVERY_CLASS not in origin.classes:
        if classes == 0:
            raise ConfigError(f"class {EVERY_CLASS}: this model was trained without any; leave it out")
        paths = ((c, n, out / f"{c:04d}" / f"{n:04d}{suffix}") for c in range(classes) for n in numbers)
        return {"": [_Job(path, _number(n, label=c), c) for c, n, path in paths]}
    label = None if request.label is None else origin.label(request.label, classes)
    if source is None:
        return {"": [_Job(out / f"{task}-{n:04d}{suffix}", _number(n, label=label), label) for n in numbers]}
    jobs: dict[str, list[_Job]] = {}
    key_of: dict[Path, str] = {}
    for key in map(source.key, range(len(source))):
        path = out / target_name(key, is_video=is_video)
        if key_of.setdefault(path, key) != key:
            raise ConfigError(f"{key_of[path]} and {key} would both become {path}; take them in turn")
        targets = [path if request.samples == 1 else path.with_stem(f"{path.stem}-{n:04d}") for n in numbers]
        jobs[key] = [_Job(target, _number(n, key=key, label=label), label) for n, target in enumerate(targets)]
    return jobs


def _number(n: int, *, key: str | None = None, label: int | None = None) -> int:
    if key is None and label is None:
        return n
    digest = hashlib.blake2b((key or "").encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return mix(int.from_bytes(digest, "little"), -1 if label is None else label, n)


@dataclass(frozen=True)
class _Sampler:
    """All that every sample is made with."""

    request: _Request
    generator: Generator
    tokenizer: Tokenizer
    sampling: SamplingConfig
    seed: int

    def write_all(
        self, jobs: dict[str, list[_Job]], source: Source | None, on_bad: OnBad, batch: int
    ) -> Iterator[_Job]:
        """Sample and write all, `batch` at a time; yield each when it is written. Bad inputs go to `on_bad`."""
        starts = self._starts(jobs, source, on_bad)
        while pending := list(islice(starts, batch)):
            together, videos, ids = zip(*pending, strict=True)
            clips = self._sample(together, torch.cat(videos), None if source is None else torch.cat(ids))
            for job, clip in zip(together, clips, strict=True):
                self._write(job.target, clip)
                yield job

    def _starts(
        self, jobs: dict[str, list[_Job]], source: Source | None, on_bad: OnBad
    ) -> Iterator[tuple[_Job, Tensor, Tensor]]:
        """Yield every sample, its input, `1 3 t h w`, and the ids of that, which is encoded once for all its samples;
        for prediction, the last known frame is repeated."""
        size, originals = self.generator.size, self.request.originals
        if source is None:
            yield from ((job, torch.zeros(1, 3, *size), torch.empty(0)) for job in jobs[""])
            return
        for clip in evaluation(source, on_bad=on_bad):
            key, video = clip.keys[0], clip.video
            frames, height, width = video.shape[2:]
            if (height, width) != size[1:] or (frames < size[0] and self.request.task.kind != "prediction"):
                raise InputError(
                    f"{key}: is {frames} x {height} x {width} (frames, height, width), and the model generates "
                    f"{size[0]} x {size[1]} x {size[2]}; give `fit` to bring its size and rate to the model's"
                )
            if originals is not None:
                self._write(originals / target_name(key, is_video=size[0] > 1), to_uint8(video)[0])
            whole = video[:, :, [min(i, frames - 1) for i in range(size[0])]]
            with torch.inference_mode():
                ids = start_ids(self.tokenizer, self.request.task, whole.to(self.tokenizer.device))
            yield from ((job, whole, ids) for job in jobs[key])

    @torch.inference_mode()
    def _sample(self, jobs: Sequence[_Job], video: Tensor, start: Tensor | None) -> Tensor:
        """Return samples as `b t h w 3` uint8 frames, around what the task knows of the video."""
        request, task = self.request, self.request.task
        video = video.to(self.tokenizer.device)
        ids = sample_ids(
            self.generator,
            self.tokenizer,
            task,
            start,
            self._condition(jobs, task.kind, video.device),
            self.sampling,
            seed=self.seed,
            samples=[job.number for job in jobs],
        )
        clip = self.tokenizer.decode(ids)
        if request.hold:
            assert isinstance(task, PredictionTask)
            last = task.frames - 1
            clip = keep_static(video[:, :, last], clip, last)
        if request.paste:
            clip = paste_known(task.known_pixels(self.generator.size), video, clip)
        if request.length is not None:
            clip = torch.cat([clip, *self._windows(jobs, ids, request.length)], 2)[:, :, : request.length]
        return to_uint8(clip.cpu())

    def _windows(self, jobs: Sequence[_Job], first: Tensor, length: int) -> Iterator[Tensor]:
        """Yield the new frames of the windows after `first`, each of which begins with the end of the one before."""
        stride, task, tokenizer = self.generator.origin.strides[0], self.request.task, self.tokenizer
        keep = 1 + ((task.frames if isinstance(task, PredictionTask) else 1) - 1) // stride
        known = 1 + stride * (keep - 1)
        windows = extend(
            self.generator.model,
            first,
            self._condition(jobs, "prediction", first.device),
            self.sampling,
            keep=keep,
            seed=self.seed,
            samples=[job.number for job in jobs],
            reencode=lambda window: tokenizer.encode(limit_pixels(tokenizer.decode(window)[:, :, -known:])),
        )
        total = self.generator.size[0]
        while total < length:
            frames = tokenizer.decode(next(windows))[:, :, known:]
            total += frames.shape[2]
            yield frames

    def _condition(self, jobs: Sequence[_Job], kind: TaskKind, device: torch.device) -> Condition:
        tasks = task_tokens(kind, self.generator.model.config.tasks, len(jobs))
        classes = [job.label for job in jobs if job.label is not None]
        labels = torch.tensor(classes) if classes else None  # all have a class, or none
        return Condition(*(None if x is None else x.to(device) for x in (labels, tasks)))

    def _write(self, target: Path, clip: Tensor) -> None:
        is_image = target.suffix == ".png"
        write_media(target, clip[:1] if is_image else clip, None if is_image else self.generator.origin.fps or _FPS)
