"""`smalti prior`."""

from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import JsonOption, OverwriteOption, SeedOption, bar, message_line, print_json


def prior_command(
    sets: Annotated[list[Path], typer.Argument(metavar="SET", help="Token sets of one tokenizer.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of 2,048 tokens.")] = 3000,
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a prior over ids, with which files of `smalti compress` are smaller.

    \b
    A small network learns to predict each token from those around it. It is for
    one tokenizer. Minutes on one core; some hundred thousand tokens suffice.
    smalti/tiny-image and smalti/tiny-video have one already.

    \b
    Examples:
      smalti prior photo-tokens --out prior.safetensors
      smalti prior small-tokens large-tokens --out prior.safetensors --steps 6000
      smalti compress a.jpg a.smt --tokenizer runs/image --prior p.safetensors
    """
    from smalti.pipeline.train_prior import train_prior

    with bar("training", None) as progress:
        learned = train_prior(sets, out, steps=steps, seed=seed, overwrite=overwrite, progress=progress)
    facts = {
        "prior": out,
        "digest": learned.prior.digest,
        "tokenizer": learned.prior.tokenizer,
        "parameters": learned.prior.parameters,
        "tokens": learned.tokens,
        "steps": learned.steps,
        "bits": learned.loss,
    }
    if as_json:
        print_json(facts)
    else:
        size = f"{learned.prior.parameters:,} parameters, trained on {learned.tokens:,} tokens"
        print(f"{message_line(out)}: {size}, {learned.loss:.2f} bits a token on these")
