"""The one way to name a tokenizer: in Python, in every command and in the fields `init` and `tokenizer` of configs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from smalti.config import parse_yaml
from smalti.errors import ConfigError, InputError, SmaltiError
from smalti.families.family import ImportOptions
from smalti.files import MANIFEST, naming_os_errors, read_json
from smalti.model_folder import CONFIG, WEIGHTS, find_model
from smalti.text import nearest

TINY_IMAGE, TINY_VIDEO = "smalti/tiny-image", "smalti/tiny-video"
TINY_VIDEO_CONDITIONAL = "smalti/tiny-video-conditional"
TINY_IMAGE_2, TINY_VIDEO_2 = "smalti/tiny-image-2", "smalti/tiny-video-2"
TINY_IMAGE_2_PERCEPTUAL, TINY_VIDEO_2_PERCEPTUAL = f"{TINY_IMAGE_2}-perceptual", f"{TINY_VIDEO_2}-perceptual"
SHIPPED_NAMES = (
    *(TINY_IMAGE, TINY_VIDEO, TINY_VIDEO_CONDITIONAL),
    *(TINY_IMAGE_2, TINY_VIDEO_2, TINY_IMAGE_2_PERCEPTUAL, TINY_VIDEO_2_PERCEPTUAL),
)
"""Names of the trained tokenizers that ship with the package; what a name stands for never changes."""

FORMS = (
    f"a tokenizer folder, a run folder, {TINY_IMAGE_2}, {TINY_VIDEO_2}, a checkpoint of another project, or"
    " OWNER/NAME[@REVISION] for the hub"
)
"""Names that `load` takes, for messages."""

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".jit")
"""Suffixes of files of weights."""

HUB = "hf:"
"""Beginning of a name that is the hub's even if a folder has the same name."""
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[\w.-]+)*)(?:@([\w./-]+))?")
_OPTIONS = re.compile(r"(?s)(.+?):([a-z]+=[\w.-]+(?:,[a-z]+=[\w.-]+)*)")


LISTS = frozenset({"levels", "strides"})
"""Options of an import that are lists of numbers."""


class HubName(NamedTuple):
    """A repository of the Hugging Face hub, or one file or folder in it."""

    repository: str
    revision: str | None
    """Branch, tag or commit; None for the newest."""
    inside: str = ""
    """Path of a file or a folder in the repository; empty for all of it."""

    def __str__(self) -> str:
        path = f"{self.repository}/{self.inside}" if self.inside else self.repository
        return HUB + path + (f"@{self.revision}" if self.revision else "")


def split_options(name: str | Path) -> tuple[str | Path, ImportOptions]:
    """Split a name as `vqgan.ckpt:lookup=euclidean` into the name and the options of its import.

    The options are the fields of `ImportOptions`, lists as in `levels=8x8x8x5x5x5`. A file or folder that has the
    whole name comes first. Raises ConfigError for an option that does not exist, or is there twice.
    """
    match = _OPTIONS.fullmatch(str(name))
    with naming_os_errors(Path(name)):  # as a name that is too long for a file
        is_whole = match is None or Path(name).exists()
    if match is None or is_whole:
        return name, ImportOptions()
    pairs = [option.partition("=")[::2] for option in match[2].split(",")]
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ConfigError(f"{name}: says an option twice; give each once")
    plain: dict[str, object] = {**values}
    for key in LISTS & values.keys():
        plain[key] = parse_yaml("[" + values[key].replace("x", ",") + "]", where=str(name))
    options = ImportOptions.parse(plain, where=str(name))
    return Path(match[1]) if isinstance(name, Path) else match[1], options


def with_options(options: ImportOptions, others: Mapping[str, object], name: str) -> ImportOptions:
    """Return the options that a name holds with those that are given beside it, by their fields; None is not given.

    Raises ConfigError where the two say different things.
    """
    added = {key: value for key, value in others.items() if value is not None}
    for key, value in added.items():
        if (own := getattr(options, key)) not in (getattr(ImportOptions(), key), value):
            raise ConfigError(f"{key}: {value} is given beside {name}, which says {own}; give it once")
    return options.replace(added)


def find_tokenizer(name: str | Path) -> Path | HubName:
    """Find the folder of a tokenizer, the file or folder of a checkpoint of another project, or else a name on the hub,
    without asking the hub or reading any weights. `load` has the grammar; options of an import are left out.

    Raises InputError where the name is that of nothing here and cannot be one on the hub.
    """
    name = split_options(name)[0]
    path, text = Path(name), str(name)
    with naming_os_errors(path):
        is_folder = path.is_dir()
    if is_folder:
        if (folder := find_model(path, "tokenizer")) is not None:
            return folder
        if not has_weights(path) and not (path / CONFIG).is_file():
            wanted = f"a tokenizer ({CONFIG} and {WEIGHTS}) nor a run with a checkpoint (step-*/tokenizer)"
            raise InputError(f"{name}: holds neither {wanted}; give {FORMS}")
        return path
    if isinstance(name, str):
        if (folder := shipped_folder(name)) is not None:
            return folder
        hub = _HUB_NAME.fullmatch(text.removeprefix(HUB))
        # runs/mine.ckpt is a file that is not there; owner/name/its.ckpt is one of the hub.
        likely = not path.exists() and (hub is None or bool(hub[2]) == hub[0].split("@")[0].endswith(SUFFIXES))
        if hub and (text.startswith(HUB) or likely):
            return HubName(hub[1], hub[3], hub[2].removeprefix("/"))
    if path.is_file():
        return path
    local = isinstance(name, Path) or path.is_absolute() or text.startswith((".", "~"))
    what = "no such file or folder" if local else "neither a file, a folder nor the name of a hub repository"
    raise InputError(f"{name}: {what}; give {FORMS}{nearest(text, SHIPPED_NAMES)}")


def is_foreign(path: Path) -> bool:
    """Return whether a place that `find_tokenizer` found is of another project: a file, or a folder without our
    config.json."""
    if path.is_file():
        return True
    if (path / MANIFEST).is_file():
        return False
    if not (path / CONFIG).is_file():
        return has_weights(path)
    try:
        facts = read_json(path / CONFIG)
    except SmaltiError:
        return has_weights(path) and not (path / WEIGHTS).is_file()
    return not (isinstance(facts, dict) and ("smalti" in facts or "tokenizer" in facts))


def full_name(name: str | Path) -> str:
    """Return a name of the same tokenizer that holds from any working folder. Raises as `find_tokenizer` does."""
    bare, options = split_options(name)
    if not Path(bare).is_dir() and shipped_folder(str(bare)) is not None:
        return str(bare)
    place = find_tokenizer(bare)
    text = str(place if isinstance(place, HubName) else place.absolute())
    values = {key: value for key, value in options.essence().items() if value is not None}
    values |= {key: "x".join(map(str, values[key])) for key in LISTS & values.keys()}
    return text + (":" + ",".join(f"{key}={value}" for key, value in values.items()) if values else "")


def shipped_folder(name: str) -> Path | None:
    """Return the folder of a tokenizer that ships with the package; None for another name.

    Its file holds half precision, of which `load` makes float32.
    """
    folder = Path(__file__).parents[1] / "weights" / name.removeprefix("smalti/")
    return folder if name in SHIPPED_NAMES else None


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds files of weights, or a subfolder `vqvae` with some (a pipeline of diffusers)."""
    folders = [folder, folder / "vqvae"]
    return any(path.suffix in SUFFIXES for inner in folders if inner.is_dir() for path in inner.iterdir())
