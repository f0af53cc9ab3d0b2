"""`smalti decode`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smalti.cli.console import (
    TOKENIZER_HELP,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    bar,
    message_line,
    print_json,
)

if TYPE_CHECKING:
    from smalti.pipeline.decode import DecodedRow

SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="The folder of a token set.")]


def decode_command(
    tokens: SetArgument,
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    to: Annotated[
        Literal["media", "npy"],
        typer.Option(help="PNG and MP4, or the ids as .npy files that can be mapped into memory."),
    ] = "media",
    rows: Annotated[str | None, typer.Option(metavar="A:B", help="Only these rows, as 0:10 or 7.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="The row of this key; repeatable.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " Default: the set's own.")] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Number format of the decoder; default: the file's; see doctor."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn rows of a token set back into PNG, and MP4 at their frame rate; or write their ids as .npy files.

    \b
    .npy: ids, offsets, shapes and labels, with keys.txt and metadata.json.

    \b
    Examples:
      smalti decode photo-tokens --out decoded --rows 0:10
      smalti decode video-tokens --out decoded --key a.mp4 --tokenizer runs/v
      smalti decode photo-tokens --out photo-npy --to npy
    """
    from smalti.pipeline.decode import decode

    def on_row(row: "DecodedRow") -> None:
        if not as_json:
            length = "" if row.fps is None else f", {row.frames:,} frames at {row.fps:.4g}/s"
            print(f"{message_line(row.path)}: {row.width}x{row.height}{length}", flush=True)

    with bar("decoding", None) as progress:
        written = decode(
            tokens,
            out,
            to=to,
            rows=rows,
            key=keys or [],
            tokenizer=tokenizer,
            overwrite=overwrite,
            device=device,
            precision=precision,
            progress=progress,
            on_row=on_row,
        )
    if to == "npy" and not as_json:
        print(f"{out}: the ids of {len(written):,} rows")
    if as_json:
        print_json({"set": tokens, "done": [row._asdict() for row in written]})
