"""`smalti info`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from smalti.cli.console import TOKENIZER_HELP, JsonOption, print_json


def info_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOKENIZER", help=TOKENIZER_HELP + " Also token sets and .smt.")],
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
    from smalti.codec.codec import read_info
    from smalti.families import load
    from smalti.families.names import SUFFIXES, find_tokenizer, is_foreign
    from smalti.generation import Generator
    from smalti.model_folder import find_model
    from smalti.pipeline.info import run_facts
    from smalti.tokens.reader import describe_set, is_token_set

    path = Path(tokenizer)
    run = (path / "config.yaml").is_file() and not is_foreign(path)  # others put a config of that name beside weights
    if path.is_file() and path.suffix not in SUFFIXES:
        facts = read_info(path).plain()
    elif is_token_set(path):
        facts = describe_set(path)
    elif (folder := find_model(path, "generator")) is not None:
        facts = {"generator": str(folder), **Generator.load(folder).facts()}
    else:
        facts = load(tokenizer).facts()
        if run:
            facts = {"tokenizer": str(find_tokenizer(tokenizer)), **facts}
    if run:
        facts["run"] = run_facts(path)
    if as_json:
        print_json(facts)
        return
    run_rows = {f"run {name}": value for name, value in facts.pop("run", {}).items()}
    if (steps := run_rows.pop("run steps", None)) is not None:
        run_rows["run step"] = f"{run_rows['run step']:,} of {steps:,}"
    for name, value in {**facts, **run_rows}.items():
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
