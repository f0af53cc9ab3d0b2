"""The files of a checkpoint of another project: found in a folder or fetched from the hub, and read as data."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from smalti.config import parse_yaml
from smalti.errors import ConfigError, InputError, IntegrityError, MachineError, SmaltiError
from smalti.families.family import Checkpoint, Family
from smalti.families.names import FORMS, HUB, SHIPPED_NAMES, SUFFIXES, HubName
from smalti.files import MANIFEST, read_json, sha256
from smalti.foreign import naming_file, read_checkpoint, tensors
from smalti.hub import hub_fault, is_hub_fault
from smalti.model_folder import CONFIG, WEIGHTS
from smalti.text import nearest

_CONFIGS = (CONFIG, "config.yaml")
_LARGEST_CONFIG = 1 << 20
"""Bytes of the longest config that is read: it lies beside weights, and may be anything."""


class SourceFiles(NamedTuple):
    """The files of one checkpoint."""

    where: str
    """Name in messages and reports: the path, or the hub's name."""
    paths: tuple[Path, ...]
    repository: str | None = None
    revision: str | None = None
    """Commit of the hub's repository."""

    def digest(self) -> str:
        """Return the sha256 of the file; of several, that of their digests in order."""
        digests = [sha256(path) for path in self.paths]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def files_of(place: Path, families: Iterable[Family], where: str = "") -> SourceFiles:
    """Find the files of weights at a place: the file itself, or in a folder those that a family's files are named like,
    or else the only one. Raises InputError where there is none, ConfigError where there are several."""
    where = where or str(place)
    families = tuple(families)
    if not place.is_dir():
        return SourceFiles(where, (place,))
    if shards := shards_of(place, families):
        if absent := [name for name in shards if not (place / name).is_file()]:
            raise InputError(f"{where}: {', '.join(absent)} is missing, in which its index has the tokenizer; fetch it")
        return SourceFiles(where, tuple(place / name for name in shards))
    for names in (names for family in families for names in family.files):
        if all((place / name).is_file() for name in names):
            return SourceFiles(where, tuple(place / name for name in names))
    files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{where}: has no file of weights ({', '.join(SUFFIXES)}); give {FORMS}")
    if len(files) > 1:
        listed = ", ".join(path.name for path in files[:6])
        raise ConfigError(f"{where}: has {len(files)} files of weights ({listed}); name one of them")
    return SourceFiles(where, (files[0],))


def shards_of(folder: Path, families: Iterable[Family]) -> list[str]:
    """Return the files that hold a family's tensors in a large model in shards, by its index (`*.index.json`); none
    where there is no index, or no such tensors in it."""
    for index in sorted(folder.glob("*.index.json")):
        content = read_json(index)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict):
            continue
        for family in families:
            if family.inside and any(name.startswith(family.inside) for name in places):
                files = {Path(str(file)).name for name, file in places.items() if name.startswith(family.inside)}
                return sorted(files)
    return []


def read_source(source: SourceFiles) -> Checkpoint:
    """Read the files as data. Raises as `read_checkpoint` does, and where two of them have a tensor of one name."""
    all_tensors: dict[str, Tensor] = {}
    trees = []
    for path in source.paths:
        try:
            tree = read_checkpoint(path)
        except IntegrityError as error:
            raise IntegrityError(f"{source.where}: {error}" if source.repository else str(error)) from None
        with naming_file(path):
            own = tensors(tree["state_dict"] if isinstance(tree, dict) and "state_dict" in tree else tree)
        if twice := sorted(own.keys() & all_tensors.keys()):
            names = ", ".join(twice[:3])
            raise IntegrityError(f"{path}: has tensors of another file beside it ({names}); fetch it again")
        all_tensors |= own
        trees.append(tree)
    return Checkpoint(
        where=source.where,
        file_name=source.paths[0].name,
        tensors=all_tensors,
        shapes={name: tuple(tensor.shape) for name, tensor in all_tensors.items()},
        tree=trees[0],
        config=config_beside(source.paths[0]),
        repository=source.repository,
    )


def fetch_from_hub(hub: HubName, families: Iterable[Family]) -> Path:
    """Fetch what makes a tokenizer from a repository of the hub, once, into the hub's cache; return its place there.

    Of a published repository of a family only its files are fetched, else those that ours and the families' have.
    Raises InputError for a repository that is not there, MachineError where the hub cannot be reached or its licence
    must be accepted first.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = str(hub).removeprefix(HUB)
    families = tuple(families)
    tried = f"tried as a tokenizer of smalti and of {', '.join(family.title for family in families)}"
    fetch = partial(snapshot_download, hub.repository, revision=hub.revision)
    try:
        folder = Path(fetch(allow_patterns=_wanted(hub, families)))
        if not hub.inside and (shards := shards_of(folder, families)):
            folder = Path(fetch(allow_patterns=shards))
    except HFValidationError:
        raise InputError(f"{name}: neither a folder nor the name of a hub repository; give {FORMS}") from None
    except GatedRepoError:
        address = f"https://huggingface.co/{hub.repository}"
        row = next((family.row(hub.repository) for family in published_families(hub, families)), None)
        licence = f"its licence ({row.licence})" if row else "its licence"
        raise MachineError(f"{name}: accept {licence} at {address}, then log in with `hf auth login`") from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the repository has no revision {hub.revision}; see its page on the hub") from None
    except RepositoryNotFoundError:
        raise InputError(f"{name}: no such folder, and no such repository on the hub; give {FORMS}") from None
    except Exception as error:
        if not is_hub_fault(error):
            raise
        near = nearest(name, SHIPPED_NAMES)
        known = "".join(f" ({family.title})" for family in published_families(hub, families))
        fault = f"{name}{known}: no such folder here, and the hub {hub_fault(error)}"
        raise MachineError(f"{fault}; give {FORMS}{near}") from None
    place = folder / hub.inside
    if not place.exists() or not any(path.is_file() for path in [place, *place.rglob("*")]):
        raise InputError(f"{name}: the repository has no file of weights of a known name; {tried}")
    return place


def published_families(hub: HubName, families: Iterable[Family]) -> list[Family]:
    """Return the families that list a repository among their published ones."""
    return [family for family in families if family.row(hub.repository) is not None]


def _wanted(hub: HubName, families: tuple[Family, ...]) -> list[str]:
    """List the patterns of the files to fetch."""
    if hub.inside:
        beside = hub.inside.rpartition("/")[0]
        return [hub.inside, f"{hub.inside}/*", *(f"{beside}/{name}".lstrip("/") for name in _CONFIGS)]
    patterns = [*_CONFIGS, WEIGHTS, MANIFEST, *(f"{file}.index.json" for file in (WEIGHTS, "pytorch_model.bin"))]
    for family in published_families(hub, families) or families:
        row = family.row(hub.repository)
        for names in (row.files,) if row is not None and row.files else family.files:
            patterns += names
            patterns += [f"{name.rpartition('/')[0]}/{config}" for name in names if "/" in name for config in _CONFIGS]
    return sorted(set(patterns))


def config_beside(path: Path) -> Mapping[str, Any]:
    """Read config.json, config.yaml or a YAML file of the same name beside a file of weights.

    Returns its content, empty where none can be read, because whatever lies there need not be a config of it."""
    for beside in (*(path.with_name(name) for name in _CONFIGS), path.with_suffix(".yaml")):
        try:
            if not beside.is_file() or beside.stat().st_size > _LARGEST_CONFIG:
                continue
            if beside.suffix == ".json":
                content = read_json(beside)
            else:
                content = parse_yaml(beside.read_text(encoding="utf-8"), where=str(beside))
        except (SmaltiError, OSError, UnicodeDecodeError):
            continue
        if isinstance(content, dict):
            return content
    return {}
