"""`smalti generate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.console import (
    TOKENIZER_HELP,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    SeedOption,
    bar,
    end_with_bad_files,
    print_json,
    print_line,
)

TaskName = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]


def generate_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A generator folder, or the run folder of one.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " Default: the run's own.")] = None,
    task: Annotated[TaskName, typer.Option(help="What is known and what is generated.")] = "generation",
    input: Annotated[
        Path | None, typer.Option("--input", help="The image, video or folder that a task starts from.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Number of known frames (prediction).")] = 1,
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
        Literal["cosine", "arccos", "linear", "square", "exponential", "log"],
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
    paste: Annotated[bool, typer.Option("--paste", help="Copy the known pixels into the result.")] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep the last known pixels where nothing moves (prediction).")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples generated together.")] = 8,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample images or video from a token model: whole, of a class, or around an input.

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
    from smalti.pipeline.generate import generate

    with bar("generating", None) as progress:
        result = generate(
            run,
            out,
            tokenizer=tokenizer,
            task=task,
            input=input,
            frames=frames,
            region=region,
            fit=fit,
            originals=originals,
            label=label,
            count=count,
            steps=steps,
            schedule=schedule,
            noise=noise,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
            set=assignments or (),
            seed=seed,
            length=length,
            paste=paste,
            hold=hold,
            batch=batch,
            overwrite=overwrite,
            device=device,
            progress=progress,
            on_file=None if as_json else print_line,
        )
    if as_json:
        print_json(result.plain())
    end_with_bad_files(result.bad, result.listed - len(result.bad))
