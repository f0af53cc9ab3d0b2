"""`smalti generate`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from smalti.cli import asked_drawing as asked
from smalti.cli.terminal import bar, one_line, print_json, say
from smalti.cli.tokenizers import DeviceOption, JsonOption, open_tokenizer
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.drawing import Drawing, Job, Wanted
    from smalti.data import Source
    from smalti.generation import Generator, SamplingConfig, TaskConfig


def generate(
    run: asked.Run,
    out: asked.Out,
    tokenizer: asked.TokenizerName = None,
    task: asked.Task = "generation",
    given: asked.Given = None,
    frames: asked.Frames = 1,
    region: asked.Region = "central",
    fit: asked.Fit = False,
    originals: asked.Originals = None,
    label: asked.Label = None,
    count: asked.Count = 1,
    steps: asked.Steps = 12,
    schedule: asked.ScheduleName = "cosine",
    noise: asked.Noise = 4.5,
    temperature: asked.Temperature = 1.0,
    top_k: asked.TopK = None,
    top_p: asked.TopP = None,
    guidance: asked.Guidance = 0.0,
    assignments: asked.Fields = None,
    seed: asked.Seed = 0,
    length: asked.Length = None,
    paste: asked.Paste = False,
    hold: asked.Hold = False,
    batch: asked.Batch = 8,
    overwrite: asked.Overwrite = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures or video from a token model: whole, of a class, or around what is given.

    \b
    Examples:
      smalti generate runs/tiny-generate --out drawn --count 4
      smalti generate runs/imagenet --out cats --class tabby --count 8 --guidance 5 --steps 64
      smalti generate runs/imagenet --out fake --class all --count 50 --set guidance.schedule=power_cosine
      smalti generate runs/tiny-generate --out next --task prediction --input clip.mp4 --fit --paste
      smalti generate runs/tiny-generate --out next --task prediction --input clips --fit --hold --originals true
      smalti generate runs/tiny-generate --out long --task prediction --input clip.mp4 --length 65
      smalti generate runs/film --out wide --task outpainting --region vertical --input clip.mp4
    """
    from smalti.cli.drawing import Wanted, inputs_of, plan
    from smalti.generation import SamplingConfig

    drawn_from = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": {"scale": guidance}}
    fields = {"steps": steps, "schedule": schedule, "noise": noise, **drawn_from}
    config = SamplingConfig.parse(fields, where="generate").override(assignments or ())
    wanted = Wanted(_task(task, frames, region), given, originals, fit, label, count, paste, hold, length)
    drawing = _open(run, tokenizer, wanted, config, device)._replace(seed=seed)
    source = inputs_of(wanted, drawing.generator)
    jobs = plan(wanted, drawing.generator, source, out)
    _check_free(jobs, overwrite)
    _draw(drawing, jobs, source, batch, as_json)


def _open(run: str, tokenizer: str | None, wanted: "Wanted", config: "SamplingConfig", device: str | None) -> "Drawing":
    """The generator and its tokenizer; what can be said without the latter is said first."""
    from smalti.cli.drawing import Drawing
    from smalti.cli.generators import open_generator, own_tokenizer

    generator, found = open_generator(run, device)
    _check(wanted, generator, config)
    decoder = open_tokenizer(tokenizer or own_tokenizer(Path(run), found), device)
    generator.origin.check(decoder.fingerprint, found)
    return Drawing(wanted, generator, decoder, config)


def _check_free(jobs: "dict[str, list[Job]]", overwrite: bool) -> None:
    """Raise ConfigError where a file is there that may not be replaced."""
    there = (job.target for some in jobs.values() for job in some if job.target.exists())
    if not overwrite and (target := next(there, None)) is not None:
        raise ConfigError(f"{target}: is there already; give --overwrite or another --out")


def _draw(drawing: "Drawing", jobs: "dict[str, list[Job]]", source: "Source | None", batch: int, as_json: bool) -> None:
    """Draw all, saying what is done; ends with the code of bad input where some inputs could not be used."""
    from smalti.cli.drawing import draw_all

    bad: list[BadFile] = []
    done: list[Job] = []
    with bar("drawing", sum(map(len, jobs.values()))) as advance:
        for job in draw_all(drawing, jobs, source, bad.append, batch):
            done.append(job)
            advance(len(done))
            if not as_json:
                print(one_line(job.target), flush=True)
    if as_json:
        faults = [{"path": fault.path, "code": fault.code, "message": fault.message} for fault in bad]
        drawn = [{"path": job.target, "class": job.label} for job in done]
        asked_for = {"task": drawing.wanted.task.plain(), "sampling": drawing.config.plain(), "seed": drawing.seed}
        print_json({"generator": drawing.generator.fingerprint, **asked_for, "done": drawn, "bad": faults})
    if bad:
        for fault in bad:
            say(f"left out: {one_line(fault)}")
        say(f"error: {len(bad)} inputs could not be used and are left out; the rest is done")
        raise typer.Exit(InputError.exit_code)


def _task(kind: asked.TaskName, frames: int, region: str) -> "TaskConfig":
    from smalti.generation import GenerationTask, InterpolationTask, PaintingTask, PredictionTask

    if kind == "generation":
        return GenerationTask()
    if kind == "prediction":
        return PredictionTask(frames=frames)
    if kind == "interpolation":
        return InterpolationTask()
    return PaintingTask.parse({"kind": kind, "region": region}, where="generate")


def _check(wanted: "Wanted", generator: "Generator", config: "SamplingConfig") -> None:
    """What can be said before the tokenizer is read."""
    from smalti.generation import MaskedConfig, task_tokens

    model, kind = generator.model.config, wanted.task.kind
    if isinstance(model, MaskedConfig):
        if config.steps > model.entries:
            what = "tokens" if model.unit == "token" else "parts of tokens"
            raise ConfigError(
                f"--steps {config.steps}: there are {model.entries} {what}, and a step fills at least one; give fewer"
            )
    elif kind not in ("generation", "prediction"):
        raise ConfigError(f"--task {kind}: an autoregressive model continues a beginning; use a masked model")
    task_tokens(kind, model.tasks, 1)
    if kind != "generation" and wanted.given is None:
        raise ConfigError(f"--task {kind}: give --input, the picture or video that it begins with")
    if kind == "generation" and (wanted.given is not None or wanted.paste or wanted.originals is not None):
        raise ConfigError("--task generation: takes no --input, --paste or --originals; name another --task")
    if wanted.hold and (kind != "prediction" or wanted.length is not None):
        raise ConfigError("--hold: goes with --task prediction, without --length")
    wanted.task.given(generator.size)  # raises where nothing is left to draw
    if config.guidance.scale > 0 and (wanted.label is None or model.classes == 0):
        lacks = "this model was trained without classes" if model.classes == 0 else "give --class"
        raise ConfigError(f"--guidance {config.guidance.scale:g}: there is no class to guide towards; {lacks}")
    if wanted.length is None:
        return
    if kind not in ("generation", "prediction") or generator.size[0] == 1:
        raise ConfigError(f"--length {wanted.length}: goes with generation and prediction of video")
    task_tokens("prediction", model.tasks, 1)  # the windows after the first
