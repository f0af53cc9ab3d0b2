"""Load a tokenizer by its name. A checkpoint of another project becomes a tokenizer of ours, with a report on every
tensor; nothing of it is run."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.arguments import check_arguments
from smalti.devices import Precision, as_device, pick_device
from smalti.errors import ConfigError, IntegrityError, SmaltiError
from smalti.families.cosmos import COSMOS
from smalti.families.diffusers_vq import DIFFUSERS_VQ
from smalti.families.family import Checkpoint, Family, ImportOptions
from smalti.families.links import CheckpointWeights, ForeignModel, assemble
from smalti.families.llamagen import LLAMAGEN
from smalti.families.magicmaster import MAGICMASTER
from smalti.families.maskbit import MASKBIT, MASKGIT
from smalti.families.names import (
    FORMS,
    HubName,
    find_tokenizer,
    is_foreign,
    shipped_folder,
    split_options,
    with_options,
)
from smalti.families.open_magvit2 import OPEN_MAGVIT2_FAMILY
from smalti.families.showo import SHOWO
from smalti.families.source import SourceFiles, config_beside, fetch_from_hub, files_of, published_families, read_source
from smalti.families.taming import TAMING
from smalti.families.vidtok import VIDTOK
from smalti.files import cache_folder, write_json
from smalti.nn.causal import order_weights
from smalti.quantize import Lookup
from smalti.text import one_line, shorten
from smalti.tokenizer import Tokenizer
from smalti.tokenizer.cnn import NOT_CAUSAL
from smalti.tokenizer_info import PixelRange, TokenizerSource
from smalti.version import __version__

FAMILIES: tuple[Family, ...] = (
    MAGICMASTER,
    SHOWO,
    LLAMAGEN,
    DIFFUSERS_VQ,
    OPEN_MAGVIT2_FAMILY,
    VIDTOK,
    COSMOS,
    MASKGIT,
    MASKBIT,
    TAMING,
)
"""All families, in the order in which they are tried."""
_LARGEST = 1 << 33
"""Numbers in the largest network that is built; a small file can claim any shape."""
_SHARED = 1 << 16
"""Numbers that one of a file may fill in several places of ours (learned bins of DSQ)."""
_NO_PART = "no part of the tokenizer"


class ImportReport(NamedTuple):
    """Use of each tensor of a foreign file."""

    source: str
    sha256: str
    peer: str
    copy: str
    """CheckpointWeights that were taken: average, live, or bare where the file has one network."""
    used: list[str]
    ignored: Mapping[str, list[str]]
    """Names of the tensors that were left out, by the reason."""
    missing: list[str]
    """Always none: a file that lacks a tensor is refused, and the error names it."""
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return self._asdict()


class Imported(NamedTuple):
    """An imported tokenizer and the report on its file."""

    tokenizer: Tokenizer
    report: ImportReport

    def save(self, folder: Path) -> None:
        """Write the tokenizer's folder, with the report beside the weights as import.json. The folder must be new."""
        self.tokenizer.save(folder)
        write_json(folder / "import.json", self.report.plain())


def import_checkpoint(
    name: Path | str,
    *,
    levels: tuple[int, ...] | None = None,
    copy: CheckpointWeights | None = None,
    lookup: Lookup | None = None,
    pixels: PixelRange | None = None,
    revision: str | None = None,
) -> Imported:
    """Import the tokenizer in a checkpoint of another project: a file, a folder, or a repository of the hub.

    `name` has the grammar of `smalti.load`; `smalti zoo` lists the families. `copy` takes the EMA weights
    (`average`, the default), which published figures use, or the live ones. The other options say what a file may not:
    `levels` those of FSQ, `lookup` the law by which a codebook's row is found, `pixels` the range that the network was
    trained on. They are asked for only where neither the file, nor a config beside it, nor a known name of the hub
    says them.

    Raises InputError if there is no such file, IntegrityError if it is damaged, of no known family or not whole,
    ConfigError if an option is needed and not given, or is not that of the file; MachineError where the hub cannot be
    reached.
    """
    bare, options = split_options(name)
    own = {"levels": levels, "weights": copy, "lookup": lookup, "pixels": pixels}
    options = with_options(options, own, str(name))
    source = source_at(with_revision(find_tokenizer(bare), revision, str(bare)))
    if not is_foreign(source.paths[0]):  # a folder of ours has no files here
        raise ConfigError(f"{name}: is a tokenizer of smalti already; load it as it is")
    return convert_source(source, options)


def with_revision(place: Path | HubName, revision: str | None, name: str) -> Path | HubName:
    """Return a place on the hub at `revision`. Raises ConfigError where the place is none, or has another revision."""
    if revision is None:
        return place
    if not isinstance(place, HubName) or place.revision not in (None, revision):
        raise ConfigError(f"{name}: revision {revision} is that of a hub repository without another @revision")
    return place._replace(revision=revision)


def source_at(place: Path | HubName) -> SourceFiles:
    """Find the files at a place, fetching those of the hub; for a tokenizer of ours, its folder."""
    if isinstance(place, Path):
        return files_of(place, FAMILIES) if is_foreign(place) else SourceFiles(str(place), (place,))
    folder = fetch_from_hub(place, FAMILIES)
    name = str(place).removeprefix("hf:")
    files = SourceFiles(name, (folder,))
    if is_foreign(folder):
        files = files_of(folder, published_families(place, FAMILIES) or FAMILIES, name)
    commit = next((part.name for part in folder.parents if part.parent.name == "snapshots"), folder.name)
    return files._replace(repository=place.repository, revision=commit)


def load_converted(source: SourceFiles, options: ImportOptions) -> Tokenizer:
    """Load a foreign checkpoint from the cache of converted tokenizers, or convert it and put it there.

    The cache knows it by the digest of the files, their name and the config beside them, which may say what they do
    not, the options and the version of smalti. Where the cache cannot be written, the checkpoint is converted each
    time.
    """
    digest = source.digest()
    config = config_beside(source.paths[0])
    facts = [digest, source.where, source.repository, config, options.essence(), __version__]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = cache_folder() / "tokenizers" / key
    try:
        tokenizer = Tokenizer.load(folder)
        if tokenizer.source is not None:  # the same file in a newer commit
            tokenizer.source = tokenizer.source.replace({"revision": source.revision})
        return tokenizer
    except SmaltiError:  # not there, or damaged
        tokenizer = convert_source(source, options, digest).tokenizer
    with suppress(SmaltiError):
        tokenizer.save(folder, replace=True)
    return tokenizer


def convert_source(source: SourceFiles, options: ImportOptions, digest: str | None = None) -> Imported:
    """Read the files, recognise their family, and convert them. Raises as `import_checkpoint` does."""
    checkpoint = read_source(source)
    digest = digest or source.digest()
    in_name = re.search(r"-([0-9a-f]{8})\.pth$", checkpoint.file_name)
    if in_name and in_name[1] != digest[:8]:
        raise IntegrityError(
            f"{source.where}: its name promises sha256 {in_name[1]}..., its content has {digest[:8]}...; fetch it again"
        )
    count = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    if count > _LARGEST:
        raise IntegrityError(f"{source.where}: claims {count:,} numbers in its network, at most {_LARGEST:,} are read")
    family = family_of(checkpoint)
    where = f"{source.where} ({family.title})"
    with _naming_family(where):
        model = family.read(checkpoint, options)
    _check_options(model, options, where)
    with torch.device("meta"):  # one tensor's shape can claim widths that no memory holds
        needed = sum(parameter.numel() for parameter in Tokenizer(model.config).parameters())
    if needed > 2 * count + _SHARED:
        raise IntegrityError(f"{where}: its shapes name a network of {needed:,} numbers, and it holds {count:,}")
    tokenizer = Tokenizer(model.config)
    names = {link.source: model.stored(link.source) for link in model.links}
    held = {name: checkpoint.tensors[stored] for name, stored in names.items() if stored in checkpoint.tensors}
    state = assemble(tokenizer, model.links, held, where)
    if bad := sorted(name for name, tensor in state.items() if not bool(tensor.isfinite().all())):
        raise IntegrityError(f"{where}: {len(bad)} tensors have NaN or infinite numbers ({', '.join(bad[:3])})")
    ignored = _leftovers(checkpoint, family, model, where)
    tokenizer.load_state_dict(state)
    row = family.row(source.repository)
    tokenizer.source = TokenizerSource(
        family=family.name,
        network=model.kind,
        name=source.where,
        revision=source.revision,
        sha256=digest,
        weights=model.copy,
        licence=model.licence,
        licence_source=row.licence_source
        if row
        else f"that of {family.title}'s published weights; this file names none",
        pixels=model.pixels,
        preprocessing=model.preprocessing,
        ids=model.ids,
    )
    notes = [*model.notes]
    if not tokenizer.is_causal:
        notes.append(f"{NOT_CAUSAL}, so it cannot be streamed")
    report = ImportReport(
        source=source.where if source.repository else checkpoint.file_name,
        sha256=digest,
        peer=f"{family.title} {model.kind}",
        copy=model.copy,
        used=sorted(set(names.values())),
        ignored={reason: without_use for reason, without_use in ignored.items() if without_use},
        missing=[],
        notes=notes,
    )
    return Imported(tokenizer.eval(), report)


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint. Raises IntegrityError, naming those that were tried, if it is of none."""
    for family in FAMILIES:
        if family.recognises(checkpoint):
            return family
    roots = ", ".join(sorted({name.split(".")[0] for name in checkpoint.shapes})[:6]) or "no tensors"
    tried = ", ".join(family.name for family in FAMILIES)
    raise IntegrityError(f"{checkpoint.where}: not a checkpoint of a family known here: it has {roots}; tried {tried}")


@contextmanager
def _naming_family(where: str) -> Iterator[None]:
    """Turn what a family's reader meets in a file that is not whole, or not as it expects, into one line."""
    try:
        yield
    except KeyError as error:
        raise IntegrityError(f"{where}: tensor {error.args[0]} is missing; it is not whole") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise IntegrityError(f"{where}: no network that is known here ({one_line(error)[:160]})") from None


def _check_options(model: ForeignModel, options: ImportOptions, where: str) -> None:
    """Raise ConfigError for an option that says other than the file, or that its family has no use for."""
    levels = model.config.quantizer.digit_levels if model.config.quantizer.kind in ("fsq", "dsq") else None
    own: dict[str, object] = {"levels": levels, "lookup": model.lookup, "pixels": model.pixels}
    own |= {"version": model.version, "strides": model.config.total_strides}
    for name, value in own.items():
        wanted = getattr(options, name)
        if wanted is not None and wanted != value:
            said, actual = _option_text(wanted), "none" if value is None else _option_text(value)
            raise ConfigError(f"{name} {said}: {where} has {actual}; leave the option out")


def _option_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _leftovers(checkpoint: Checkpoint, family: Family, model: ForeignModel, where: str) -> dict[str, list[str]]:
    """Return the tensors that no link uses, by the reason. Raises IntegrityError for one that the network should use,
    or a constant with other values than its architecture gives."""
    for name, constant in model.constants.items():
        stored = model.stored(name)
        if stored in checkpoint.tensors and not _equal(checkpoint.tensors[stored], constant):
            raise IntegrityError(f"{where}: {stored} has other values than its architecture gives; another layout")
    ignored: dict[str, list[str]] = {reason: list(names) for reason, names in model.ignored.items()}
    known = {model.stored(link.source) for link in model.links} | {name for names in ignored.values() for name in names}
    for reason, names in (("constants of its architecture", model.constants), ("stored but never run", model.unused)):
        more = sorted({model.stored(name) for name in names} & checkpoint.tensors.keys() - known)
        ignored.setdefault(reason, []).extend(more)
        known |= set(more)
    unknown, sources = [], {link.source for link in model.links}
    for name in sorted(checkpoint.tensors.keys() - known):
        if model.inside(name).startswith(family.parts):
            unknown.append(name)
            continue
        reason = next((text for start, text in family.others.items() if name.startswith(start)), _NO_PART)
        pieces = name.split(".")
        if reason == _NO_PART and any(".".join(pieces[i:]) in sources for i in range(len(pieces))):
            reason = "another copy of its weights"
        ignored.setdefault(reason, []).append(name)
    if unknown:
        what = f"{len(unknown)} tensors of its network are not known here ({', '.join(map(shorten, unknown[:5]))})"
        raise IntegrityError(f"{where}: {what}: a newer layout; update smalti")
    return ignored


def _equal(stored: Tensor, constant: Tensor) -> bool:
    return stored.shape == constant.shape and torch.equal(stored.double(), constant.double())


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Number types that networks compute in; torch stores others, as of 8 bits, and has no convolutions of them."""


def load(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    *,
    lookup: Lookup | None = None,
    pixels: PixelRange | None = None,
) -> Tokenizer:
    """Load the tokenizer of that name, for inference: on the CPU and with the number type of its file unless said.

    `name` is a tokenizer folder, a run folder (its finished tokenizer, or its newest checkpoint's), a name that
    ships with the package, as `smalti/tiny-image-2`, a checkpoint of another project (a file, or its folder), or a
    repository of the Hugging Face hub, ours or another project's, which is downloaded once into its cache:
    `owner/name`, `owner/name@revision`, `owner/name/file.ckpt`, or the same after `hf:`. A folder that exists comes
    before a repository of the same name; a `Path` is never a repository. `revision` says the same as `@revision`.

    The family of another project's checkpoint is recognised by its tensors (`smalti zoo` lists the families); it is
    converted once, in float32, and read from the cache after. `lookup` and `pixels` are asked for where neither it nor
    its name says them (`import_checkpoint`); everywhere else that takes a name, they are a part of it:
    `vqgan.ckpt:lookup=euclidean`.

    Raises InputError for a name of nothing, IntegrityError for a tokenizer that has changed since it was written or a
    checkpoint of no known family, ConfigError for an option that is missing or wrong, MachineError where the hub cannot
    be reached. Runs no code that it loads.
    """
    check_arguments(load, locals(), {"name": f"give {FORMS}"})
    if dtype is not None and dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise ConfigError(f"dtype: {str(dtype).removeprefix('torch.')} is no type of weights; give {known}")
    place = as_device(device)
    bare, options = split_options(name)
    options = with_options(options, {"lookup": lookup, "pixels": pixels}, str(name))
    source = source_at(with_revision(find_tokenizer(bare), revision, str(name)))
    if is_foreign(source.paths[0]):
        tokenizer = load_converted(source, options)
    elif options != ImportOptions():
        raise ConfigError(f"{name}: is a tokenizer of smalti, which needs no {', '.join(options.essence())}")
    else:
        tokenizer = Tokenizer.load(source.paths[0])
    if dtype is None and source.paths[0] == shipped_folder(str(bare)):
        dtype = torch.float32  # its file holds half precision, which is exact in float32
    if not tokenizer.config.is_contiguous_on_cpu:
        order_weights(tokenizer)
    return tokenizer.to(device=place, dtype=dtype)


def as_tokenizer(
    tokenizer: Tokenizer | str | Path, device: str | None = None, precision: Precision | None = None
) -> Tokenizer:
    """Return a tokenizer as it is, or load it by a name as `load` takes it, on `device` or the best there is.

    `precision` is the number format of its networks; None is that of its file. Raises ConfigError for a `precision`
    beside a tokenizer that is loaded already.
    """
    if not isinstance(tokenizer, Tokenizer):
        loaded = load(tokenizer, pick_device(device))
        return loaded if precision is None else loaded.compute_in(getattr(torch, precision))
    if precision is not None:
        raise ConfigError("`precision` is for a tokenizer that is loaded by its name; this one: tokenizer.compute_in")
    return tokenizer
