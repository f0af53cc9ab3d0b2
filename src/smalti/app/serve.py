"""The web page: `smalti.serve`, the function behind the command."""

from collections.abc import Callable, Sequence
from pathlib import Path

from smalti.app.page_files import facts_file, page_facts, page_files, write_web_page
from smalti.app.server import Limits, PageServer
from smalti.app.service import Service
from smalti.arguments import check_arguments, check_least, check_out_folder
from smalti.errors import ConfigError, MachineError
from smalti.text import Progress

SHIPPED = ("smalti/tiny-image", "smalti/tiny-video")
"""Tokenizers of the page where none is named."""


def serve(
    tokenizers: Sequence[str | Path] = SHIPPED,
    *,
    save: str | Path | None = None,
    port: int = 8000,
    max_pixels: int = 2**22,
    device: str | None = None,
    on_ready: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Serve the page on this machine alone until it is interrupted, or write it as a folder for any host.

    The page shows original and reconstruction, the map of tokens, what a token governs, edits and errors; ids go out as
    .npy and as a link. Served, its tokenizers are run here by torch, and token models generate and continue clips. As a
    folder, they are ONNX programs inside it that the browser runs: no pixel leaves the page, and it needs no network.

    Args:
        tokenizers: names as `smalti.load` takes them; for serving also runs of token models, and for a folder also
            folders that `smalti export` wrote. The two that ship with the package if not given.
        save: folder to write instead of serving; it must not exist.
        port: port at 127.0.0.1; 0 takes any that is free.
        max_pixels: pixels of an image or of all frames of a clip that are taken.
        device: device to work on; None takes the best there is.
        on_ready: called with the address when the page is there.
        progress: called after each program of an export.

    Raises ConfigError for a name that comes twice and a folder that is there, MachineError where the port is in use or
    the packages of the export are absent, and what `smalti.load` raises.
    """
    check_arguments(serve, locals())
    check_out_folder("save", save)
    check_least({"port": (port, 0), "max_pixels": (max_pixels, 1)})
    if port > 65535:
        raise ConfigError(f"port: {port} is above 65535, the largest there is")
    if save is not None:
        write_web_page(tokenizers, Path(save), progress)
        return
    with open_server(tokenizers, port, max_pixels, device) as server:
        if on_ready is not None:
            on_ready(server.address)
        server.serve_forever(poll_interval=0.2)


def open_server(
    tokenizers: Sequence[str | Path],
    port: int,
    max_pixels: int,
    device: str | None = None,
    limits: Limits | None = None,
) -> PageServer:
    """Return the server of the page, which listens and does not answer yet. Raises as `serve` does."""
    service = Service(tokenizers, device, max_pixels)
    about, models = service.facts()
    files = {**page_files(), "tokenizers.json": facts_file(page_facts(about, models))}
    verbs = {"encode": service.encode, "decode": service.decode}
    verbs |= {"generate": service.generate, "continue": service.extend}
    try:
        return PageServer(port, files, verbs, limits or Limits(body=8 * max_pixels))
    except OSError as error:
        raise MachineError(f"port: {port} cannot be used ({error.strerror or error}); give another `port`") from None
