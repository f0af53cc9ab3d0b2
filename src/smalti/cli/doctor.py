"""`smalti doctor`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smalti.cli.console import DeviceOption, JsonOption, SettingsOption, message_line, print_json, say
from smalti.errors import ConfigError
from smalti.version import __version__

if TYPE_CHECKING:
    from smalti.pipeline.doctor import Check


def doctor_command(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE|RUN]", help="A recipe, a .yaml file or a run folder; this machine without."),
    ] = None,
    assignments: SettingsOption = None,
    out: Annotated[Path | None, typer.Option(help="The run folder that the recipe would have.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="The recipe's small form.")] = False,
    quantizer: Annotated[str | None, typer.Option(help="Another quantizer, as `smalti train` takes it.")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, a recipe before it is trained, or a run.

    \b
    Of a recipe: its data, learning rates, memory, speed, both networks at the
    start, disk. Of a run: what its log shows, bad files, checkpoints. Nothing is
    written.

    \b
    Examples:
      smalti doctor
      smalti doctor image --set data.path=photos
      smalti doctor runs/image
      torchrun --nproc-per-node 8 -m smalti doctor image --set data.path=photos
      smalti doctor --json
    """
    from smalti.pipeline.check_recipe import ELSEWHERE, ENDING, check_recipe
    from smalti.pipeline.doctor import check_run
    from smalti.pipeline.train import is_run

    options = {"set": assignments, "out": out, "tiny": tiny, "quantizer": quantizer, "device": device}
    if target is None or is_run(target):
        if wrong := [name for name, value in options.items() if value]:
            raise ConfigError(f"`{wrong[0]}` is of a recipe; {'name one' if target is None else f'{target} is a run'}")
        from smalti.pipeline.doctor import check_machine

        checks = check_machine() if target is None else check_run(target)
    else:
        checks = check_recipe(target, out, set=assignments or (), tiny=tiny, quantizer=quantizer, device=device)
    if os.environ.get("RANK", "0") == "0":
        _show(checks, as_json=as_json)
    elif checks[-1].name in ENDING and checks[-1].state == "broken" and checks[-1].result != ELSEWHERE:
        say(f"error: {message_line(checks[-1].result)}")  # of this process alone, and in no other's table
    if broken := [check for check in checks if check.state == "broken"]:
        raise typer.Exit(broken[0].exit_code)


def _show(checks: "Sequence[Check]", *, as_json: bool) -> None:
    if as_json:
        print_json({"smalti": __version__, "checks": [check._asdict() for check in checks]})
        return
    for check in checks:
        print(f"{check.state:<7} {check.name:<20} {message_line(check.result)}")
        if check.remedy:
            print(f"{'':<28} -> {message_line(check.remedy)}")
