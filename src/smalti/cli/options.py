"""Options that several commands share, and how their values are read."""

from typing import Annotated, Literal

import typer

from smalti.errors import ConfigError

TOKENIZER_HELP = "A tokenizer folder, a run, smalti/tiny-image, smalti/tiny-video, or OWNER/NAME."

TokenizerOption = Annotated[str, typer.Option(metavar="TOKENIZER", help=TOKENIZER_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, mps, ...; the best one if not given.")]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="Number format; default: the file's. bfloat16: 2-5 % other ids, as good; see doctor."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
MaxBadOption = Annotated[
    float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="End early if more than this share of files is bad.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of all randomness.")]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of the config; repeatable.")
]


def integers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of an option like `1,2,2`. Raises ConfigError that names the option."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: expected whole numbers with commas, as in 1,2,2") from None


def parse_size(text: str) -> int | tuple[int, int]:
    """Return height and width of `--size`, or the side of a square. Raises ConfigError."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise ConfigError(f"--size {text}: expected one number or height x width, as in 256 or 144x256")
    return sides[0], sides[1]
