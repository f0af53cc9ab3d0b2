"""`smalti generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.terminal import bar, one_line, print_json, say
from smalti.cli.tokenizers import TOKENIZER_HELP, DeviceOption, JsonOption, open_tokenizer
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.drawing import Job, Wanted
    from smalti.generate import Generator, SamplingConfig, TaskConfig

TaskName = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]


def generate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A generator folder, or the run folder of one.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " The run's own if none.")] = None,
    task: Annotated[TaskName, typer.Option(help="What is given and what is drawn.")] = "generation",
    given: Annotated[
        Path | None, typer.Option("--input", help="What a task begins with: a picture, a video, a folder of them.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Of prediction: frames that are given.")] = 1,
    region: Annotated[
        Literal["central", "vertical", "horizontal", "moving"], typer.Option(help="Of in- and outpainting: the box.")
    ] = "central",
    fit: Annotated[bool, typer.Option("--fit", help="Bring the input to the model's size and rate.")] = False,
    originals: Annotated[
        Path | None, typer.Option(help="A folder for the inputs as the model sees them, to score against.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME|N", help="The class that is drawn; all takes each in turn.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples, of each input and class.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Passes of a masked model.")] = 12,
    schedule: Annotated[
        Literal["cosine", "arccos", "linear", "square", "exponential"], typer.Option(help="Of the masked share.")
    ] = "cosine",
    noise: Annotated[float, typer.Option(min=0.0, help="Of the confidence that orders the filling.")] = 4.5,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the logits; 0 takes the most likely.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among the K likeliest alone.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest of this probability.")] = None,
    guidance: Annotated[float, typer.Option(min=0.0, help="Towards the class; 0 is none.")] = 0.0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the sampling, as order=halton; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    length: Annotated[int | None, typer.Option(min=2, help="Frames of a longer video, window after window.")] = None,
    paste: Annotated[bool, typer.Option("--paste", help="Put the given pixels in their places.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples that are drawn together.")] = 8,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
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
      smalti generate runs/tiny-generate --out next --task prediction --input clips --fit --originals true
      smalti generate runs/tiny-generate --out long --task prediction --input clip.mp4 --length 65
      smalti generate runs/film --out wide --task outpainting --region vertical --input clip.mp4
    """
    from smalti.cli.drawing import Drawing, Wanted, draw_all, inputs_of, plan
    from smalti.cli.generators import open_generator, own_tokenizer
    from smalti.generate import SamplingConfig

    generator, found = open_generator(run, device)
    config = SamplingConfig.parse(
        {"steps": steps, "schedule": schedule, "noise": noise, "temperature": temperature, "top_k": top_k,
         "top_p": top_p, "guidance": {"scale": guidance}},
        where="generate",
    ).override(assignments or ())  # fmt: skip
    wanted = Wanted(_task(task, frames, region), given, originals, fit, label, count, paste, length)
    _check(wanted, generator, config)
    decoder = open_tokenizer(tokenizer or own_tokenizer(Path(run), found), device)
    generator.origin.check(decoder.fingerprint, found)
    source = inputs_of(wanted, generator)
    jobs = plan(wanted, generator, source, out)
    listed = [job for some in jobs.values() for job in some]
    for job in listed:
        if job.target.exists() and not overwrite:
            raise ConfigError(f"{job.target}: is there already; give --overwrite or another --out")
    bad: list[BadFile] = []
    done: list[Job] = []
    with bar("drawing", len(listed)) as advance:
        for job in draw_all(Drawing(wanted, generator, decoder, config, seed), jobs, source, bad.append, batch):
            done.append(job)
            advance(len(done))
            if not as_json:
                print(one_line(job.target), flush=True)
    if as_json:
        faults = [{"path": fault.path, "code": fault.code, "message": fault.message} for fault in bad]
        drawn = [{"path": job.target, "class": job.label} for job in done]
        print_json({"generator": found, "task": wanted.task.plain(), "sampling": config.plain(), "seed": seed,
                    "done": drawn, "bad": faults})  # fmt: skip
    _say_bad(bad)


def _say_bad(bad: list[BadFile]) -> None:
    """Name the inputs that could not be used, and end with the code of bad input."""
    if not bad:
        return
    for fault in bad:
        say(f"left out: {one_line(fault)}")
    say(f"error: {len(bad)} inputs could not be used and are left out; the rest is done")
    raise typer.Exit(InputError.exit_code)


def _task(kind: TaskName, frames: int, region: str) -> "TaskConfig":
    from smalti.generate import GenerationTask, InterpolationTask, PaintingTask, PredictionTask

    if kind == "generation":
        return GenerationTask()
    if kind == "prediction":
        return PredictionTask(frames=frames)
    if kind == "interpolation":
        return InterpolationTask()
    return PaintingTask.parse({"kind": kind, "region": region}, where="generate")


def _check(wanted: "Wanted", generator: "Generator", config: "SamplingConfig") -> None:
    """What can be said before the tokenizer is read."""
    from smalti.generate import MaskedConfig, task_tokens

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
    wanted.task.given(generator.size)  # raises where nothing is left to draw
    if config.guidance.scale > 0 and (wanted.label is None or model.classes == 0):
        lacks = "this model was trained without classes" if model.classes == 0 else "give --class"
        raise ConfigError(f"--guidance {config.guidance.scale:g}: there is no class to guide towards; {lacks}")
    if wanted.length is None:
        return
    if kind not in ("generation", "prediction") or generator.size[0] == 1:
        raise ConfigError(f"--length {wanted.length}: goes with generation and prediction of video")
    task_tokens("prediction", model.tasks, 1)  # the windows after the first
