"""The list of verbs, and how every failure becomes one line and a fixed exit code."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from smalti.allocator import keep_freed_memory
from smalti.cli import (
    compare,
    compress,
    decode,
    decompress,
    demo,
    doctor,
    eval,
    export,
    generate,
    import_,
    inflate,
    info,
    prior,
    recipes,
    reconstruct,
    serve,
    tokenize,
    train,
    zoo,
)
from smalti.cli.console import message_line, say
from smalti.errors import MachineError, PeerFailed, SmaltiError, is_out_of_memory
from smalti.version import __version__

UNREAD = 1
"""Exit code where the reader of the output was gone."""
_OPTIONS = {"label": "class", "source": "from", "price": "lambda"}
"""Arguments of functions whose options are called by a word of Python."""
INTERNAL = 70
STOPPED = 130
USAGE = 2

_GO_ON = dict.fromkeys(("demo", "tokenize"), "; the same command goes on where it was")
"""How to continue after Ctrl-C, by verb; `train` says it itself, with its step."""

app = typer.Typer(
    name="smalti",
    add_completion=False,
    rich_markup_mode=None,  # plain help: as readable in a log or a pipe as in a terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"smalti {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _smalti(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere.")] = False,
) -> None:
    """Images and video to discrete tokens and back: train, measure and use visual tokenizers.

    \b
    Examples:
      smalti demo                                   a tour, in minutes on a CPU
      smalti train tiny --set data.path=photos      train on a folder of images
      smalti eval runs/tiny --data photos           evaluate the result
      smalti reconstruct runs/tiny clip.mp4
      smalti serve                                  a page to look at tokens

    \b
    Exit codes: 0 done, 1 the reader of the output was gone, 2 wrong usage, 3 input
    that cannot be used, 4 a damaged file, 5 missing device, package or space, 70
    internal error, 128 + n stopped by signal n (130 is Ctrl-C).
    """


app.command("demo", short_help="See the whole way on real media, in minutes.")(demo.demo_command)
app.command("train", short_help="Train a tokenizer or a token model.")(train.train_command)
app.command("eval", short_help="Measure a tokenizer, or compare two folders.")(eval.eval_command)
app.command("reconstruct", short_help="Encode and decode images and videos.")(reconstruct.reconstruct_command)
app.command("tokenize", short_help="Turn images and videos into a token set.")(tokenize.tokenize_command)
app.command("decode", short_help="Write rows of a token set as PNG and MP4.")(decode.decode_command)
app.command("generate", short_help="Sample images and video from a token model.")(generate.generate_command)
app.command("export", short_help="Write a tokenizer as ONNX or for AOTInductor.")(export.export_command)
app.command("compress", short_help="Write an image or a video as a small file.")(compress.compress_command)
app.command("decompress", short_help="Write the image or video of a compressed file.")(decompress.decompress_command)
app.command("prior", short_help="Train a prior, for smaller compressed files.")(prior.prior_command)
app.command("inflate", short_help="Make a video tokenizer from an image tokenizer.")(inflate.inflate_command)
app.command("import", short_help="Convert another project's checkpoint.")(import_.import_command)
app.command("info", short_help="Show what a tokenizer, run, token set or file is.")(info.info_command)
app.command("recipes", short_help="List the recipes, or print one.")(recipes.recipes_command)
app.command("zoo", short_help="List other projects' tokenizers that load by name.")(zoo.zoo_command)
app.command("compare", short_help="Train several configs side by side.")(compare.compare_command)
app.command("serve", short_help="Open the page: see tokens, change them.")(serve.serve_command)
app.command("doctor", short_help="Check this machine, a recipe or a run.")(doctor.doctor_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console entry: run one verb and exit."""
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes that the terminal's encoding has no letter for.
        if stream is not None and "reconfigure" in dir(stream):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is finished: ignore Ctrl-C while torch shuts down
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one verb; gives the exit code. An error is one line on stderr, after its traceback with `--debug`."""
    verb, rest = _split(arguments or ["--help"])
    debug = "--debug" in verb
    try:
        code = app([argument for argument in verb if argument != "--debug"] + rest, "smalti", standalone_mode=False)
        if sys.stdout is not None:  # a daemon may have none
            sys.stdout.flush()
        if code == STOPPED:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        return int(code or 0)
    except BrokenPipeError:  # `smalti recipes | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        failure = explain(error, next((word for word in verb if not word.startswith("-")), ""))
        if isinstance(error, PeerFailed) and not str(error):  # another process tells of it
            return failure.code
        say(failure.line + (_GO_ON.get(verb[0], "") if failure.code == STOPPED else ""))
        return failure.code


class Failure(NamedTuple):
    """An error as the user sees it."""

    line: str
    code: int


def explain(error: BaseException, verb: str = "") -> Failure:
    """The one line and the exit code of an error of a command."""
    if isinstance(error, SmaltiError):
        return Failure(f"error: {message_line(_with_options(str(error), verb))}", error.exit_code)
    if (usage := _usage_message(error)) is not None:
        known = f" {verb}" if verb in _commands() else ""
        return Failure(f"error: {message_line(usage)} (see smalti{known} --help)", USAGE)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Failure("stopped", STOPPED)
    if is_out_of_memory(error):
        remedy = "take smaller images, batches or clips, or another --device"
        return Failure(f"error: out of memory ({message_line(error)[:80]}): {remedy}", MachineError.exit_code)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return Failure(f"error: {message_line(f'{where}{error.strerror or error}')}", MachineError.exit_code)
    what = message_line(f"{type(error).__name__}: {error}")
    return Failure(f"internal error: {what} (run with --debug for the traceback)", INTERNAL)


def _with_options(message: str, verb: str) -> str:
    """Return a message in which an argument of a function, as `name` or before ": must be" at its beginning, is the
    option of that name, where the command has one: --name."""
    params = commands[verb].params if verb in (commands := _commands()) else ()
    options = {text for param in params for text in param.opts}

    def option(match: re.Match[str]) -> str:
        argument = match[1] or match[2]
        name = "--" + _OPTIONS.get(argument, argument).replace("_", "-")
        return name if name in options else match[0]

    return re.sub(r"`([a-z_]+)`|^([a-z_]+)(?=: must be )", option, message)


def _commands() -> Mapping[str, Any]:
    """The commands by their names."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before `--`, and from it on: file names that may look like options."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end:])


def _usage_message(error: Any) -> str | None:
    """Return what is wrong with the syntax of the command line; None for any other error."""
    # Where the class lives differs between releases of typer, so it is known by its name.
    is_usage = any(kind.__name__ == "ClickException" for kind in type(error).__mro__)
    # typer puts what a type's own check says behind its kind.
    return str(error.format_message()).replace(": Value error, ", ": ") if is_usage else None
