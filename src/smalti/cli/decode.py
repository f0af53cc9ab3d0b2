"""`smalti decode`."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import bar, message_line, print_json
from smalti.cli.opening import open_tokenizer
from smalti.cli.options import TOKENIZER_HELP, DeviceOption, JsonOption, OverwriteOption
from smalti.errors import ConfigError, InputError

SetArgument = Annotated[Path, typer.Argument(metavar="SET", help="The folder of a token set.")]


def decode_command(
    tokens: SetArgument,
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    rows: Annotated[str | None, typer.Option(metavar="A:B", help="Only these rows, as 0:10 or 7.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--key", help="The row of this key; repeatable.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER_HELP + " Default: the set's own.")] = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn rows of a token set back into PNG, and MP4 at their frame rate.

    \b
    Examples:
      smalti decode photo-tokens --out decoded --rows 0:10
      smalti decode video-tokens --out decoded --key a.mp4 --tokenizer runs/v
    """
    from smalti.tokens.decode import choose_rows, decode_row, targets
    from smalti.tokens.finalize import read_made
    from smalti.tokens.reader import TokenSet

    found = TokenSet(tokens)
    name = tokenizer or read_made(tokens).get("tokenizer")
    if name is None:
        raise InputError(f"{tokens}: does not say where its tokenizer is; give --tokenizer")
    chosen = choose_rows(found, rows, keys or [])
    jobs = targets(found, chosen, out)
    for target in jobs.values():
        if target.exists() and not overwrite:
            raise ConfigError(f"{target}: already exists; pass --overwrite or choose another --out")
    model = open_tokenizer(name, device)
    found.check(model)
    done = []
    with bar("decoding", len(jobs)) as advance:
        for number, (index, target) in enumerate(jobs.items(), start=1):
            result = decode_row(model, found.row(index), target)
            done.append({**result._asdict(), "row": index})
            advance(number)
            if not as_json:
                length = "" if result.fps is None else f", {result.frames:,} frames at {result.fps:.4g}/s"
                print(f"{message_line(target)}: {result.width}x{result.height}{length}", flush=True)
    if as_json:
        print_json({"set": tokens, "done": done})
