"""`smalti generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.console import bar, message_line, print_json, say
from smalti.cli.opening import open_tokenizer
from smalti.cli.options import TOKENIZER_HELP, DeviceOption, JsonOption, OverwriteOption, SeedOption
from smalti.errors import BadFile, ConfigError, InputError

if TYPE_CHECKING:
    from smalti.cli.drawing import Drawing, Job, Wanted
    from smalti.data import Source
    from smalti.generation import Generator, SamplingConfig, TaskConfig


TaskName = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]


def generate_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A generator folder, or the run folder of one.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " Default: the run's own.")] = None,
    task: Annotated[TaskName, typer.Option(help="What is given and what is generated.")] = "generation",
    given: Annotated[
        Path | None, typer.Option("--input", help="The image, video or folder that a task starts from.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Number of given frames (prediction).")] = 1,
    region: Annotated[
        Literal["central", "vertical", "horizontal", "moving"], typer.Option(help="The box of in- and outpainting.")
    ] = "central",
    fit: Annotated[bool, typer.Option("--fit", help="Resize the input to the model's size and frame rate.")] = False,
    originals: Annotated[
        Path | None, typer.Option(help="Write the inputs as the model sees them to this folder.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME|N", help="The class to generate; all takes each in turn.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Samples of each input or class.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps of a masked model.")] = 12,
    schedule: Annotated[
        Literal["cosine", "arccos", "linear", "square", "exponential"],
        typer.Option(help="Schedule of the masked share."),
    ] = "cosine",
    noise: Annotated[float, typer.Option(min=0.0, help="Noise on the confidence that orders the steps.")] = 4.5,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Temperature of the logits; 0 takes the most likely.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the K most likely values only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely values of this total probability.")
    ] = None,
    guidance: Annotated[float, typer.Option(min=0.0, help="Scale of classifier-free guidance; 0 turns it off.")] = 0.0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a sampling field, as order=halton; repeatable."),
    ] = None,
    seed: SeedOption = 0,
    length: Annotated[int | None, typer.Option(min=2, help="Frames of a video longer than the model's window.")] = None,
    paste: Annotated[bool, typer.Option("--paste", help="Copy the given pixels into the result.")] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep the last given pixels where nothing moves (prediction).")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples generated together.")] = 8,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample images or video from a token model: whole, of a class, or around what is given.

    \b
    Examples:
      smalti generate runs/tiny-generate --out samples --count 4
      smalti generate runs/in1k --out cats --class tabby --guidance 5 --steps 64
      smalti generate runs/in1k --out fake --class all --set order=halton
      smalti generate runs/clips --out next --task prediction --input a.mp4 --fit
      smalti generate runs/clips --out next --task prediction --input val --hold
      smalti generate runs/clips --out long --length 65
      smalti generate runs/clips --out wide --task outpainting --input a.mp4
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
        raise ConfigError(f"{target}: already exists; pass --overwrite or choose another --out")


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
                print(message_line(job.target), flush=True)
    if as_json:
        faults = [{"path": fault.path, "code": fault.code, "message": fault.message} for fault in bad]
        drawn = [{"path": job.target, "class": job.label} for job in done]
        asked_for = {"task": drawing.wanted.task.plain(), "sampling": drawing.config.plain(), "seed": drawing.seed}
        print_json({"generator": drawing.generator.fingerprint, **asked_for, "done": drawn, "bad": faults})
    if bad:
        for fault in bad:
            say(f"left out: {message_line(fault)}")
        say(f"error: {len(bad)} inputs could not be used and are left out; the rest is done")
        raise typer.Exit(InputError.exit_code)


def _task(kind: TaskName, frames: int, region: str) -> "TaskConfig":
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
