"""A checkpoint of another project becomes a tokenizer of ours, with a report on every tensor. Nothing of it is run."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smalti.errors import ConfigError, IntegrityError
from smalti.families import magicmaster
from smalti.families.links import CheckpointWeights, assemble
from smalti.files import sha256, write_json
from smalti.foreign import naming_file, read_checkpoint, tensors
from smalti.tokenizer import Tokenizer

_LARGEST = 1 << 33
"""Numbers in the largest network that is built; a small file can claim any shape."""


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
    path: Path | str, *, levels: tuple[int, ...] | None = None, copy: CheckpointWeights = "average"
) -> Imported:
    """Import the tokenizer in a MagicMaster checkpoint (.pth of mmengine, whole or stripped, or a bare generator).

    `copy` takes the EMA weights, which all published figures use, or the live ones. FSQ levels are those of the config
    in the file, else `levels`, else those of a published file's name. Raises InputError if there is no such file,
    IntegrityError if it is damaged, of another program or not whole, ConfigError if levels are needed and not known, or
    are not those of the file. A file whose name has the first 8 digits of its sha256 is refused with another digest.
    """
    path = Path(path)
    tree = read_checkpoint(path)
    digest = sha256(path)
    in_name = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if in_name and in_name[1] != digest[:8]:
        raise IntegrityError(
            f"{path}: its name promises sha256 {in_name[1]}..., its content has {digest[:8]}...; fetch it again"
        )
    with naming_file(path):
        stored = tensors(tree["state_dict"] if isinstance(tree, dict) and "state_dict" in tree else tree)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    count = sum(math.prod(shape) for shape in shapes.values())
    if count > _LARGEST:
        raise IntegrityError(f"{path}: claims {count:,} numbers in its network, at most {_LARGEST:,} are read")
    model = magicmaster.recognise(shapes, _config_text(tree), levels, copy, path)
    if levels is not None and levels != model.config.quantizer.digit_levels:
        own = ",".join(map(str, model.config.quantizer.digit_levels))
        raise ConfigError(f"--levels {','.join(map(str, levels))}: {path} has {own}; leave the option out")
    tokenizer = Tokenizer(model.config)
    used = sorted({model.prefix + link.source for link in model.links})
    own_tensors = {name[len(model.prefix) :]: stored[name] for name in used if name in stored}
    state = assemble(tokenizer, model.links, own_tensors, str(path))
    if bad := sorted(name for name, tensor in state.items() if not bool(tensor.isfinite().all())):
        raise IntegrityError(f"{path}: {len(bad)} tensors have NaN or infinite numbers ({', '.join(bad[:3])})")
    tokenizer.load_state_dict(state)
    notes = [*model.notes]
    if not tokenizer.is_causal:
        notes.append("not causal: its norms and its modulation see the whole clip, so it cannot be streamed")
    report = ImportReport(
        source=path.name,
        sha256=digest,
        peer=f"MagicMaster {model.kind}",
        copy=model.copy,
        used=used,
        ignored={reason: names for reason, names in model.ignored.items() if names},
        missing=[],
        notes=notes,
    )
    return Imported(tokenizer.eval(), report)


def _config_text(tree: Any) -> str:
    """Return the text of the training's config, if the file has it."""
    meta = tree.get("meta") if isinstance(tree, dict) else None
    text = meta.get("cfg") if isinstance(meta, dict) else None
    return text if isinstance(text, str) else ""
