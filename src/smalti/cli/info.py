"""`smalti info`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from smalti.cli.console import print_json
from smalti.cli.options import TOKENIZER_HELP, JsonOption


def info_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP + " Or a .smt file.")],
    as_json: JsonOption = False,
) -> None:
    """Show information about a tokenizer (strides, codebook, bits per pixel, parameters, causal, tile-exact), a run,
    a token set, a token model or a compressed file.

    \b
    Examples:
      smalti info runs/tiny
      smalti info runs/tiny/step-00000300/tokenizer --json
      smalti info clip.smt
      smalti info photo-tokens
      smalti info runs/tiny-generate
    """
    from smalti.cli.generators import describe_generator, find_generator
    from smalti.codec.codec import read_info
    from smalti.pipeline.info import describe_tokenizer, last_lines
    from smalti.tokenizer.open import find_tokenizer, load
    from smalti.tokens.reader import describe_set, is_token_set

    path, run = Path(tokenizer), False
    if path.is_file():
        facts = read_info(path).plain()
    elif is_token_set(path):
        facts = describe_set(path)
    elif find_generator(tokenizer) is not None:
        facts = describe_generator(tokenizer)
    else:
        facts, run = describe_tokenizer(load(tokenizer)), (path / "config.yaml").is_file()
    if run:
        facts = {"tokenizer": str(find_tokenizer(tokenizer)), **facts, "run": last_lines(Path(tokenizer))}
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "config":
            print(f"{name.replace('_', ' '):<22} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " x ".join(map(str, value)) if len(set(value)) > 1 else f"{value[0]} ^ {len(value)}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
