"""`smalti doctor`."""

import typer

from smalti.cli.console import print_json
from smalti.cli.options import JsonOption
from smalti.errors import MachineError
from smalti.version import __version__


def doctor_command(as_json: JsonOption = False) -> None:
    """Check this machine: packages, device, threads, weights of metrics, disk, encoder.

    \b
    Examples:
      smalti doctor
      smalti doctor --json
    """
    from smalti.pipeline.doctor import check_machine

    checks = check_machine()
    if as_json:
        print_json({"smalti": __version__, "checks": [check._asdict() for check in checks]})
    else:
        for check in checks:
            print(f"{check.state:<7} {check.name:<20} {check.result}")
            if check.remedy:
                print(f"{'':<28} -> {check.remedy}")
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(MachineError.exit_code)
