"""The options of `smalti generate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from smalti.cli.tokenizers import TOKENIZER_HELP

TaskName = Literal["generation", "prediction", "interpolation", "outpainting", "inpainting"]

Run = Annotated[str, typer.Argument(metavar="RUN", help="A generator folder, or the run folder of one.")]
Out = Annotated[Path, typer.Option(help="The folder to write to.")]
TokenizerName = Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " The run's own if none.")]
Task = Annotated[TaskName, typer.Option(help="What is given and what is drawn.")]
Given = Annotated[
    Path | None, typer.Option("--input", help="What a task begins with: a picture, a video, a folder of them.")
]
Frames = Annotated[int, typer.Option(min=1, help="Of prediction: frames that are given.")]
Region = Annotated[
    Literal["central", "vertical", "horizontal", "moving"], typer.Option(help="Of in- and outpainting: the box.")
]
Fit = Annotated[bool, typer.Option("--fit", help="Bring the input to the model's size and rate.")]
Originals = Annotated[
    Path | None, typer.Option(help="A folder for the inputs as the model sees them, to score against.")
]
Label = Annotated[
    str | None, typer.Option("--class", metavar="NAME|N", help="The class that is drawn; all takes each in turn.")
]
Count = Annotated[int, typer.Option(min=1, help="Samples, of each input or class.")]
Steps = Annotated[int, typer.Option(min=1, help="Passes of a masked model.")]
ScheduleName = Annotated[
    Literal["cosine", "arccos", "linear", "square", "exponential"], typer.Option(help="Of the masked share.")
]
Noise = Annotated[float, typer.Option(min=0.0, help="Of the confidence that orders the filling.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Of the logits; 0 takes the most likely.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw among the K likeliest alone.")]
TopP = Annotated[float | None, typer.Option(help="Draw among the likeliest of this probability.")]
Guidance = Annotated[float, typer.Option(min=0.0, help="Towards the class; 0 is none.")]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the sampling, as order=halton; repeatable."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of all noise.")]
Length = Annotated[int | None, typer.Option(min=2, help="Frames of a longer video, window after window.")]
Paste = Annotated[bool, typer.Option("--paste", help="Put the given pixels in their places.")]
Hold = Annotated[bool, typer.Option("--hold", help="Of prediction: keep the last given pixels where nothing moves.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples that are drawn together.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
