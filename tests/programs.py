"""Programs in real processes of their own, whose start is a fork of one that has torch and smalti imported.

A process costs seconds of a processor less. What is about the start itself (`python -m smalti`, what is imported, how
much memory is held) uses `subprocess`.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "smalti.pipeline.train", "smalti.cli.main"])  # AdamW imports _dynamo


def _inside(arguments: tuple[str, ...], environment: dict[str, str], said: tuple[str, str]) -> None:
    """Become the program, with signals as at a terminal."""
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    option, program, *rest = arguments
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


class Program:
    """`python -m MODULE ...` or `python -c PROGRAM ...`, as `subprocess.Popen` begins it; its output is kept."""

    def __init__(self, *arguments: object, env: Mapping[str, str] | None = None) -> None:
        words = tuple(map(str, arguments))
        assert words[0] in ("-m", "-c")
        self._folder = tempfile.TemporaryDirectory()
        paths = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in paths:
            path.touch()
        self._said = (str(paths[0]), str(paths[1]))
        environment = dict(os.environ if env is None else env)
        self._process: BaseProcess = SERVER.Process(target=_inside, args=(words, environment, self._said), daemon=False)
        self._process.start()
        weakref.finalize(self, self._process.kill)  # of a test that failed in between

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float) -> "CompletedProcess[str]":
        """Its exit code and what it said; one that does not end in time is killed."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            raise TimeoutExpired("a program", timeout)
        out, err = (Path(path).read_text(errors="replace") for path in self._said)
        self._folder.cleanup()
        return CompletedProcess("a program", code, out, err)


def run(*arguments: object, env: Mapping[str, str] | None = None, timeout: float = 120) -> "CompletedProcess[str]":
    """The exit code and the output of `python ARGUMENTS`."""
    return Program(*arguments, env=env).wait(timeout)
