"""How far a newcomer walks: the files, functions and calls between files of the package that a command executes.

Each path runs once, under `sys.setprofile`, through the entry of the command line. What imports execute is left out:
module and class bodies, and all that they call. A call between files is from the nearest function of the package that
is on the stack, through whatever of torch or typer lies between, and is counted once for two files; a pair of files
that call each other in both directions goes back and forth.
"""

import contextlib
import inspect
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType

import torch

import smalti
from smalti.cli.main import main

PACKAGE = str(Path(smalti.__file__).parent) + os.sep
MEDIA = Path(PACKAGE) / "data" / "media"
PHOTOS, FILM = MEDIA / "photos" / "heldout", MEDIA / "film" / "heldout" / "march.mp4"
SMALL = ("--set", "steps=1", "--set", "batch_size=2", "--device", "cpu")
NOTE = "files, functions and calls between files that execute, imports left out; lines of those files"


class Walk:
    """Within it, the functions of the package that are executed, and the calls between its files."""

    def __init__(self, inside: tuple[str, ...] | None = None) -> None:
        """Count only what is called by a function of the package whose first parameters are `inside`, and itself."""
        self.inside = inside
        self.functions: set[tuple[str, str, int]] = set()
        self.edges: set[tuple[str, str]] = set()

    def __enter__(self) -> "Walk":
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not ours(code) or not is_function(code):
            return
        callers = [caller for caller in stack(frame.f_back) if ours(caller)]
        if not all(map(is_function, callers)):
            return  # an import is under way
        if self.inside is not None and not any(self._enters(one) for one in (code, *callers)):
            return
        if not code.co_name.startswith("<"):  # comprehensions are frames in old Pythons alone
            self.functions.add((code.co_filename, code.co_name, code.co_firstlineno))
        starts_here = self.inside is not None and self._enters(code)
        if callers and callers[0].co_filename != code.co_filename and not starts_here:
            self.edges.add((callers[0].co_filename, code.co_filename))

    def _enters(self, code: CodeType) -> bool:
        return self.inside is not None and code.co_varnames[: len(self.inside)] == self.inside

    def row(self, path: str) -> dict[str, object]:
        """The counts of a path."""
        files = {file for file, _, _ in self.functions}
        if not files:
            raise RuntimeError(f"{path}: no function of the package was called; was one renamed?")
        return {
            "path": path,
            "files": len(files),
            "functions": len(self.functions),
            "cross-file edges": len(self.edges),
            "back-and-forth pairs": sum(one < other and (other, one) in self.edges for one, other in self.edges),
            "packages": len({Path(file).relative_to(PACKAGE).parts[0] for file in files}),
            "lines": sum(len(Path(file).read_text(encoding="utf-8").splitlines()) for file in files),
        }

    def pairs(self) -> list[str]:
        """The pairs of files that go back and forth, by their paths in the package."""
        both = [edge for edge in self.edges if edge[0] < edge[1] and edge[::-1] in self.edges]
        return sorted(" ".join(file.removeprefix(PACKAGE) for file in edge) for edge in both)


def ours(code: CodeType) -> bool:
    """Whether code is of the package."""
    return code.co_filename.startswith(PACKAGE)


def is_function(code: CodeType) -> bool:
    """Whether code is the body of a function, and not of a module or a class."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED)


def stack(frame: FrameType | None) -> Iterator[CodeType]:
    """The code of a frame, of its caller, and so on."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def command(*arguments: object) -> None:
    """Run a verb in this process, silently. Raises RuntimeError where it fails."""
    said, handler = io.StringIO(), signal.getsignal(signal.SIGINT)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    signal.signal(signal.SIGINT, handler)  # the entry leaves the signal ignored
    if code:
        raise RuntimeError(f"smalti {' '.join(map(str, arguments))} failed: {said.getvalue()[-500:]}")


def encode_stream() -> Callable[[], object]:
    """Load a tokenizer, and give what encodes the frames of a video file with it, one after the other."""
    from smalti.data import open_video
    from smalti.video import to_video

    tokenizer = smalti.load("smalti/tiny-video")

    def encode() -> None:
        with open_video(FILM) as reader, torch.inference_mode():
            list(tokenizer.encode_stream(to_video(frame) for frame in reader.frames()))

    return encode


def paths() -> Mapping[str, Callable[[], object]]:
    """The paths by name, in the order in which each finds what it needs of those before it."""
    patch = ("--set", "gan.discriminator.kind=patch", "--set", "gan.discriminator.width=8")
    grid = ("--set", "generator.grid=[1,8,8]", "--set", "generator.width=16", "--set", "generator.depth=1")
    return {
        "step(state, video), patch discriminator": lambda: command("train", "tiny", *SMALL, *patch, "--out", "gan"),
        "smalti train tiny": lambda: command("train", "tiny", *SMALL, "--out", "run"),
        "encode_stream of video": encode_stream(),
        "smalti reconstruct, video": lambda: command("reconstruct", "smalti/tiny-video", FILM, "--out", "seen"),
        "smalti tokenize --workers 0": lambda: command(
            "tokenize", "run", PHOTOS, "--out", "tokens", "--size", 64, "--workers", 0, "--device", "cpu"
        ),
        "smalti train, generator": lambda: command(
            "train", "tiny-generate-images", *SMALL, *grid, "--set", "data=tokens", "--out", "model"
        ),
        "smalti generate": lambda: command(
            "generate", "model", "--tokenizer", "run", "--out", "new", "--device", "cpu"
        ),
        "smalti eval": lambda: command("eval", "run", "--data", PHOTOS, "--size", 64, "--device", "cpu"),
        "smalti compress": lambda: command("compress", PHOTOS / "owl.jpg", "owl.smt", "--tokenizer", "run"),
    }


def measure() -> tuple[str, Sequence[Mapping[str, object]]]:
    """Walk all paths in a folder of their own."""
    rows, before = [], Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, path in paths().items():
                with Walk(("state", "video") if name.startswith("step(") else None) as walk:
                    path()
                rows.append(walk.row(name))
                print(f"{name}: back and forth: {'; '.join(walk.pairs()) or 'nothing'}")
        finally:
            os.chdir(before)
    return NOTE, rows
