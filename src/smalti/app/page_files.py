"""The web page as files: its sources, examples, runtime and tokenizers, for a server or for a folder on any host."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.data import bundled
from smalti.errors import ConfigError, InputError, IntegrityError
from smalti.families import load
from smalti.files import check_manifest, naming_os_errors, new_folder, read_json, write_bytes, write_json
from smalti.pipeline.export import export
from smalti.text import Progress
from smalti.tokenizer import Tokenizer
from smalti.version import __version__

_HERE = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
    ".md": "text/plain; charset=utf-8",
}
RUNTIME = {
    "ort.js": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""Files of onnxruntime-web 1.30.0 -> their sha256."""
_EXAMPLES = {
    "owl.jpg": "of an owl",
    "kingfisher.jpg": "of a kingfisher",
    "hawa_mahal.jpg": "of the Hawa Mahal",
    "astronaut.jpg": "of an astronaut",
    "march.mp4": "of a march",
    "flight.mp4": "of a flight",
}
"""Shipped media that the page shows to begin with."""


class PageFile(NamedTuple):
    """A file of the page."""

    content: bytes
    kind: str
    """Its media type."""


def page_files() -> dict[str, PageFile]:
    """Return the page and its examples by their paths: all but the list of its tokenizers."""
    sources = {path.name: path for path in sorted((_HERE / "page").iterdir()) if path.suffix in _TYPES}
    sources |= {f"examples/{name}": _example(name) for name in _EXAMPLES}
    sources["examples/ATTRIBUTION.md"] = bundled.photos("heldout").parents[1] / "ATTRIBUTION.md"
    return {name: PageFile(path.read_bytes(), _TYPES[path.suffix]) for name, path in sources.items()}


def _example(name: str) -> Path:
    return (bundled.photos if name.endswith(".jpg") else bundled.videos)("heldout") / name


def page_facts(tokenizers: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the content of tokenizers.json, from which the page knows what it can run."""
    examples = [
        {"file": f"examples/{name}", "title": title, "kind": "image" if name.endswith(".jpg") else "clip"}
        for name, title in _EXAMPLES.items()
    ]
    in_browser = any(one["place"] == "browser" for one in tokenizers)
    runtime = " It runs tokenizers by onnxruntime-web 1.30.0 of Microsoft (MIT licence)." if in_browser else ""
    about = f"smalti {__version__}.{runtime} The authors of the examples are in examples/ATTRIBUTION.md."
    return {
        "smalti": __version__,
        "about": about,
        "tokenizers": list(tokenizers),
        "models": list(models),
        "samples": examples,
    }


def tokenizer_facts(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the page must know of a tokenizer, but for where it runs."""
    facts = tokenizer.facts()
    names = ("levels", "codebook_size", "fingerprint", "is_causal")
    return {"name": name, "strides": list(tokenizer.strides), **{key: facts[key] for key in names}}


def write_web_page(tokenizers: Sequence[str | Path], out: Path, progress: Progress | None = None) -> None:
    """Write the folder `out`: the page with tokenizers inside, which works on any host without a network.

    Each is a name as `smalti.load` takes it, or a folder that `smalti export --to onnx` wrote. Raises ConfigError where
    `out` is there or a name comes twice, MachineError where the packages of the export are absent.
    """
    names = [str(name) for name in tokenizers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"tokenizers: {twice[0]} comes twice; name each once")
    with new_folder(out) as folder, naming_os_errors(out):
        entries = []
        for number, name in enumerate(names):
            place = f"models/{number}"
            entries.append({"name": name, "place": "browser", **_put_programs(name, folder, place, progress)})
        for path, file in page_files().items():
            (folder / path).parent.mkdir(exist_ok=True)
            write_bytes(folder / path, file.content)
        _put_runtime(folder / "ort")
        write_json(folder / "tokenizers.json", page_facts(entries))


def _put_programs(name: str, folder: Path, place: str, progress: Progress | None) -> dict[str, Any]:
    """Put the ONNX programs of a tokenizer in `folder/place`; return what the page must know of them."""
    target = folder / place
    target.parent.mkdir(exist_ok=True)
    if is_exported(Path(name)):
        check_manifest(Path(name), extra=True)
        shutil.copytree(name, target)
    else:
        tokenizer = load(name)
        export(
            tokenizer, target, to="onnx", weights="float16" if _are_halves(tokenizer) else "float32", progress=progress
        )
    config = read_json(target / "config.json")
    try:
        facts = config["tokenizer"]
        public = {key: facts[key] for key in ("strides", "levels", "codebook_size", "fingerprint", "is_causal")}
        files = {key: f"{place}/{Path(about['file']).name}" for key, about in config["programs"].items()}
        is_onnx = config["to"] == "onnx"
        # Conditional tokens: `encode` takes the first frame alone, and the other groups come one after the other.
        public["starts_alone"] = isinstance(config["programs"]["encode"]["inputs"]["video"]["shape"][2], int)
    except (KeyError, TypeError, IndexError):
        raise IntegrityError(f"{name}: its config.json is not one that `smalti export` writes") from None
    if not is_onnx:
        raise InputError(f"{name}: holds no ONNX programs; `smalti export --to onnx` writes them")
    return {**public, "files": files}


def _are_halves(tokenizer: Tokenizer) -> bool:
    """Return whether half the space holds the weights exactly, as those that ship with the package."""
    return all(torch.equal(weight, weight.half().float()) for weight in tokenizer.float().parameters())


def is_exported(path: Path) -> bool:
    """Return whether a folder is one that `smalti export` wrote."""
    config = path / "config.json"
    return config.is_file() and isinstance(facts := read_json(config), dict) and "programs" in facts


def _put_runtime(folder: Path) -> None:
    """Write onnxruntime-web, unpacked. Raises IntegrityError where a file is not the one of its version."""
    folder.mkdir()
    source = _HERE / "onnxruntime_web"
    for name, digest in RUNTIME.items():
        content = gzip.decompress((source / f"{name}.gz").read_bytes())
        if hashlib.sha256(content).hexdigest() != digest:
            raise IntegrityError(f"{source / name}.gz: is not onnxruntime-web 1.30.0; install smalti again")
        write_bytes(folder / name, content)
    write_bytes(folder / "LICENSE", (source / "LICENSE").read_bytes())
    write_bytes(folder / "ThirdPartyNotices.txt", gzip.decompress((source / "ThirdPartyNotices.txt.gz").read_bytes()))


def facts_file(facts: Mapping[str, Any]) -> PageFile:
    """Return tokenizers.json as a file of the page."""
    return PageFile(json.dumps(facts).encode(), "application/json")
