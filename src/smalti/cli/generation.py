"""`smalti generate`, and what `smalti info` says of a generator."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from smalti.cli.terminal import bar, one_line, print_json
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption, last_lines, open_tokenizer
from smalti.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.generate import Condition, Generator, SamplingConfig, TaskConfig
    from smalti.tokenizer import Tokenizer

_BATCH = 8
"""Samples that are drawn together; what is drawn does not depend on it, but for rounding."""
_CRF = 12
"""As in `smalti decode`."""
TaskName = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]


def generate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A generator folder, or the run folder of one.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " The run's own if none.")] = None,
    task: Annotated[TaskName, typer.Option(help="What is given and what is drawn.")] = "generation",
    given: Annotated[Path | None, typer.Option("--input", help="The picture or video that a task begins with.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Of prediction: frames that are given.")] = 1,
    region: Annotated[
        Literal["central", "vertical", "horizontal", "moving"], typer.Option(help="Of in- and outpainting: the box.")
    ] = "central",
    fit: Annotated[bool, typer.Option("--fit", help="Bring the input to the model's size and rate.")] = False,
    label: Annotated[str | None, typer.Option("--class", metavar="NAME|N", help="The class that is drawn.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Passes of a masked model.")] = 12,
    schedule: Annotated[
        Literal["cosine", "arccos", "linear", "square", "exponential"], typer.Option(help="Of the masked share.")
    ] = "cosine",
    noise: Annotated[float, typer.Option(min=0.0, help="Of the confidence that orders the filling.")] = 4.5,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the logits; 0 takes the most likely.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the K likeliest alone.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this probability.")] = None,
    guidance: Annotated[float, typer.Option(min=0.0, help="Towards the class; 0 is none.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    length: Annotated[int | None, typer.Option(min=2, help="Frames of a longer video, window after window.")] = None,
    paste: Annotated[bool, typer.Option("--paste", help="Put the given pixels in their places.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures or video from a token model: whole, of a class, or around what is given.

    \b
    Examples:
      smalti generate runs/tiny-generate --out drawn --count 4
      smalti generate runs/tiny-generate --out next --task prediction --input clip.mp4 --fit --paste
      smalti generate runs/tiny-generate --out long --task prediction --input clip.mp4 --length 65
      smalti generate runs/imagenet --out cats --class tabby --guidance 5 --steps 64
      smalti generate runs/film --out wide --task outpainting --region vertical --input clip.mp4
    """
    from smalti.generate import GuidanceConfig, SamplingConfig

    generator, found = open_generator(run, device)
    config = SamplingConfig.parse(
        {"steps": steps, "schedule": schedule, "noise": noise, "temperature": temperature, "top_k": top_k,
         "top_p": top_p, "guidance": GuidanceConfig(scale=guidance)},
        where="generate",
    )  # fmt: skip
    wanted = _Wanted(_task(task, frames, region), given, fit, label, paste, length)
    _check(wanted, generator, steps)
    decoder = open_tokenizer(tokenizer or _own_tokenizer(Path(run), found), device)
    generator.origin.check(decoder.fingerprint, found)
    targets = _targets(out, task, count, generator, overwrite=overwrite)
    _draw_all(_begin(wanted, generator, decoder), config, seed, targets, quiet=as_json)
    if as_json:
        print_json({"generator": found, "task": wanted.task.plain(), "seed": seed, "files": targets})


def _targets(out: Path, task: TaskName, count: int, generator: "Generator", *, overwrite: bool) -> list[Path]:
    """Where the samples go. Raises ConfigError where one is there already."""
    suffix = ".png" if generator.size[0] == 1 else ".mp4"
    targets = [out / f"{task}-{number:04d}{suffix}" for number in range(count)]
    for target in targets:
        if target.exists() and not overwrite:
            raise ConfigError(f"{target}: is there already; give --overwrite or another --out")
    return targets


def _draw_all(start: "_Start", config: "SamplingConfig", seed: int, targets: list[Path], *, quiet: bool) -> None:
    """Draw and write sample 0, 1, ..., a batch at a time."""
    with bar("drawing", len(targets)) as advance:
        for at in range(0, len(targets), _BATCH):
            numbers = list(range(at, min(at + _BATCH, len(targets))))
            for number, clip in zip(numbers, _draw(start, config, seed, numbers), strict=True):
                _write(targets[number], clip, start.generator.origin.fps)
                advance(number + 1)
                if not quiet:
                    print(one_line(targets[number]), flush=True)


class _Wanted(NamedTuple):
    """What is asked for, beside how it is drawn."""

    task: "TaskConfig"
    given: Path | None
    fit: bool
    label: str | None
    paste: bool
    length: int | None


class _Start(NamedTuple):
    """All that the drawing of every sample begins with."""

    wanted: _Wanted
    generator: "Generator"
    tokenizer: "Tokenizer"
    video: "Tensor"
    """`1 3 t h w`, read where something is given."""
    ids: "Tensor"
    """Of the condition."""


def _task(kind: TaskName, frames: int, region: str) -> "TaskConfig":
    from smalti.generate import GenerationTask, InterpolationTask, PaintingTask, PredictionTask

    if kind == "generation":
        return GenerationTask()
    if kind == "prediction":
        return PredictionTask(frames=frames)
    if kind == "interpolation":
        return InterpolationTask()
    return PaintingTask.parse({"kind": kind, "region": region}, where="generate")


def _check(wanted: _Wanted, generator: "Generator", steps: int) -> None:
    """What can be said before the tokenizer is read."""
    from smalti.generate import MaskedConfig, task_tokens

    model, kind = generator.model.config, wanted.task.kind
    cells = math.prod(model.grid)
    if steps > cells and isinstance(model, MaskedConfig):
        raise ConfigError(f"--steps {steps}: there are {cells} tokens, and a step fills at least one; give fewer")
    task_tokens(kind, model.tasks, 1)
    if kind != "generation" and wanted.given is None:
        raise ConfigError(f"--task {kind}: give --input, the picture or video that it begins with")
    if kind == "generation" and (wanted.given is not None or wanted.paste):
        raise ConfigError("--task generation: takes no --input and no --paste; name another --task")
    wanted.task.given(generator.size)  # raises where nothing is left to draw
    if wanted.label is not None:
        generator.origin.label(wanted.label, model.classes)
    if wanted.length is not None and (kind not in ("generation", "prediction") or generator.size[0] == 1):
        raise ConfigError(f"--length {wanted.length}: goes with generation and prediction of video")
    if wanted.length is not None and not isinstance(model, MaskedConfig):
        raise ConfigError(f"--length {wanted.length}: goes with a masked model")


def _begin(wanted: _Wanted, generator: "Generator", tokenizer: "Tokenizer") -> _Start:
    """Read what is given, fill in the rest, and encode it."""
    import torch

    device = next(tokenizer.parameters()).device
    with torch.inference_mode():
        if wanted.given is None:
            video = torch.zeros(1, 3, *generator.size, device=device)
            ids = torch.zeros(1, *generator.model.config.grid, dtype=torch.int64, device=device)
        else:
            video = _read(wanted, generator).to(device)
            ids = tokenizer.encode(wanted.task.fill(video))
    return _Start(wanted, generator, tokenizer, video, ids)


def _read(wanted: _Wanted, generator: "Generator") -> "Tensor":
    """The given pixels, `1 3 t h w`; of prediction, the frames after them repeat the last. Raises InputError."""
    from smalti.data import evaluation, source_of
    from smalti.data.clips import ClipConfig
    from smalti.generate import PredictionTask

    assert wanted.given is not None
    (frames, rows, columns), task = generator.size, wanted.task
    needed = task.frames if isinstance(task, PredictionTask) else frames
    config = source_of(wanted.given, size=(rows, columns) if wanted.fit else None, frames=needed)
    if isinstance(config, ClipConfig):
        config = config.replace({"sampling": "first", "fps": generator.origin.fps if wanted.fit else None})
    video = next(iter(evaluation(config.build()))).video  # a video that is too short is an InputError
    found = tuple(video.shape[2:])
    if found != (needed, rows, columns):
        raise InputError(
            f"{wanted.given}: is {found[0]} x {found[1]} x {found[2]} (frames, rows, columns), and the task begins "
            f"with {needed} x {rows} x {columns}; give --fit to bring its size and rate to the model's"
        )
    return video[:, :, [min(i, needed - 1) for i in range(frames)]]


def _draw(start: _Start, config: "SamplingConfig", seed: int, numbers: list[int]) -> "Tensor":
    """Samples of these numbers as `b t h w 3` uint8 frames."""
    import torch

    from smalti.generate import MaskedTransformer, paste, sample, sample_autoregressive, task_prompt
    from smalti.video import to_uint8

    wanted, (model, origin) = start.wanted, start.generator
    ids = start.ids.expand(len(numbers), -1, -1, -1)
    condition = _condition(start, wanted.task.kind, len(numbers))
    reach = start.tokenizer.encoder.reach
    prompt = task_prompt(wanted.task, ids, origin.strides, reach=reach, condition=condition)
    if isinstance(model, MaskedTransformer):
        drawn = sample(model, prompt, config, seed=seed, samples=numbers)
    else:
        drawn = sample_autoregressive(model, prompt, config, seed=seed, samples=numbers)
    with torch.inference_mode():
        video = start.tokenizer.decode(drawn)
        if wanted.paste:
            video = paste(wanted.task.given(start.generator.size), start.video.expand_as(video), video)
        if wanted.length is not None:
            video = torch.cat([video, *_longer(start, config, seed, numbers, drawn)], 2)[:, :, : wanted.length]
        return to_uint8(video.cpu())


def _longer(start: _Start, config: "SamplingConfig", seed: int, numbers: list[int], first: "Tensor") -> "list[Tensor]":
    """The new frames of the windows after `first`, each of which begins with the end of the one before."""
    from smalti.generate import MaskedTransformer, PredictionTask, extend

    assert start.wanted.length is not None
    (model, origin), tokenizer, task = start.generator, start.tokenizer, start.wanted.task
    assert isinstance(model, MaskedTransformer)
    stride = origin.strides[0]
    keep = 1 + ((task.frames if isinstance(task, PredictionTask) else 1) - 1) // stride
    shown = 1 + stride * (keep - 1)
    condition = _condition(start, "prediction", len(numbers))

    def renew(window: "Tensor") -> "Tensor":
        return tokenizer.encode(tokenizer.decode(window)[:, :, -shown:])

    windows = extend(model, first, condition, config, keep=keep, seed=seed, samples=numbers, renew=renew)
    found: list[Tensor] = []
    total = start.generator.size[0]
    while total < start.wanted.length:
        found.append(tokenizer.decode(next(windows))[:, :, shown:])
        total += found[-1].shape[2]
    return found


def _condition(start: _Start, kind: TaskName, count: int) -> "Condition":
    import torch

    from smalti.generate import Condition, task_tokens

    model, label = start.generator.model.config, start.wanted.label
    labels = None if label is None else torch.full((count,), start.generator.origin.label(label, model.classes))
    tasks = task_tokens(kind, model.tasks, count)
    device = start.ids.device
    return Condition(*(None if x is None else x.to(device) for x in (labels, tasks)))


def _write(target: Path, clip: "Tensor", fps: float | None) -> None:
    from smalti.data.videos import write_video
    from smalti.tokenizer.reconstruct import write_png

    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".png":
        write_png(target, clip[0])
    else:
        write_video(target, iter(clip), fps or 8.0, crf=_CRF)


def find_generator(name: str) -> Path | None:
    """The folder of a generator: `name` itself, or that of a run, finished or not; None where there is none."""
    from smalti.train.checkpoints import checkpoints

    folder = Path(name)
    newest = [checkpoint / "generator" for checkpoint in reversed(checkpoints(folder))]
    for candidate in (folder / "generator", *newest):
        if (candidate / "config.json").is_file():
            return candidate
    config = folder / "config.json"
    if config.is_file():
        from smalti.files import read_json

        about = read_json(config)
        if isinstance(about, dict) and "generator" in about:
            return folder
    return None


def open_generator(name: str, device: str | None) -> "tuple[Generator, Path]":
    """The generator that the user names, and its folder. Raises InputError where there is none."""
    from smalti.generate import Generator
    from smalti.train.common import pick_device

    found = find_generator(name)
    if found is None:
        what = "holds no generator" if Path(name).is_dir() else "no such folder"
        raise InputError(f"{name}: {what}; give a generator folder, or a run of `smalti train` that trains one")
    return Generator.load(found, pick_device(device)), found


def _own_tokenizer(run: Path, found: Path) -> str:
    """The tokenizer that the config of the run names. Raises ConfigError where it names none."""
    from smalti.config import load_yaml
    from smalti.train.generator_config import GeneratorTraining

    for folder in (run, *found.parents[:2]):
        if (folder / "config.yaml").is_file():
            named = load_yaml(GeneratorTraining, folder / "config.yaml").tokenizer
            if named is not None:
                return str(named)
    raise ConfigError(f"{run}: does not say where its tokenizer is; give --tokenizer")


def describe_generator(name: str) -> dict[str, Any]:
    """Everything there is to say about a generator or its run, as plain data."""
    generator, found = open_generator(name, "cpu")
    config, (frames, rows, columns) = generator.model.config, generator.size
    run = {"run": last_lines(Path(name))} if (Path(name) / "config.yaml").is_file() else {}
    return {
        "generator": str(found),
        "kind": config.kind,
        "draws": {"frames": frames, "rows": rows, "columns": columns},
        "grid": list(config.grid),
        "parts": list(config.factorization().sizes),
        "tasks": ", ".join(config.tasks) or "any",
        "classes": config.classes,
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "fingerprint": generator.fingerprint,
        "of_tokenizer": generator.origin.tokenizer,
        "config": config.plain(),
        **run,
    }
