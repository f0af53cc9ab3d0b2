"""`smalti demo`."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.console import bar, say
from smalti.cli.train import show_steps
from smalti.text import Progress


def demo_command(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("smalti-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps: about a minute.")] = False,
) -> None:
    """Train a small tokenizer on the images and videos that smalti ships, evaluate it, and show what it does.

    \b
    Examples:
      smalti demo
      smalti demo --quick --out first-look
    """
    # Two unbound threads on two shared cores wait for each other a clock tick at a time: here the demo's small kernels
    # take up to 80 times as long. Must be set before torch is loaded; wrong where several processes share the cores.
    os.environ.setdefault("OMP_PROC_BIND", "true")
    from smalti.app.demo import run_demo

    with ExitStack() as shown:

        def progress(name: str) -> Progress:
            shown.close()  # one bar at a time
            return show_steps(shown.enter_context(bar(f"training: {name}", None)))

        page = run_demo(out, quick=quick, say=say, progress=progress)
    print(f"{page}: open this page to see it all")
