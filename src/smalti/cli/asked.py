"""The options of `smalti tokenize`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A folder, a list, one file, tars, Parquet, or hf:OWNER/NAME.")
]
Out = Annotated[Path, typer.Option(help="The folder of the token set; goes on with one that is there.")]
Size = Annotated[str | None, typer.Option(help="Rows x columns, as 256 or 144x256; own size if none.")]
Rate = Annotated[float | None, typer.Option(help="Take frames of video at this rate.")]
ClipLength = Annotated[int | None, typer.Option(min=1, help="Cut video into rows of N frames.")]
Overlap = Annotated[int, typer.Option(min=0, help="Frames that a clip shares with the one before.")]
Batch = Annotated[int, typer.Option(min=1, help="Pictures of one size encoded together.")]
From = Annotated[
    Literal["files", "tars", "parquet"] | None, typer.Option("--from", help="What DATA is, where it is not clear.")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set options.FIELD or inputs.FIELD; repeatable."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one, without a guard.")]
Shard = Annotated[str | None, typer.Option(metavar="I/N", help="Part I of N of the work; auto asks torchrun or Slurm.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")]
GPUs = Annotated[float, typer.Option(min=0.0, help="GPUs of a Ray task, as 0.25.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds until a silent worker counts as hung.")]
Memory = Annotated[float | None, typer.Option(min=0.1, help="GB that a worker may hold.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on by the plan that is there; list nothing.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Write the plan and stop.")]
