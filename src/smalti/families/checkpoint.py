"""A checkpoint of somebody else becomes a tokenizer of ours; a report tells of every tensor. Nothing of it is run."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from smalti.errors import ConfigError, IntegrityError
from smalti.families import magicmaster, magicmaster_vqgan
from smalti.families.links import assemble
from smalti.families.magicmaster import Found, Shapes
from smalti.files import sha256
from smalti.foreign import naming_file, read_checkpoint, tensors
from smalti.tokenizer import Tokenizer

Copy = Literal["average", "live"]
_LARGEST = 1 << 33
"""Numbers in the largest network that is built; a small file can claim any shape."""
_PREFIXES: Mapping[Copy, tuple[str, ...]] = {
    "average": ("generator_ema.module.", "generator_ema."),
    "live": ("generator.module.", "generator."),
}


class Report(NamedTuple):
    """What became of each tensor of a file."""

    source: str
    sha256: str
    peer: str
    copy: str
    """Which of the networks in the file: average, live, or bare where it has but one."""
    used: list[str]
    ignored: Mapping[str, list[str]]
    """Reason -> names."""
    missing: list[str]
    """Always none: a file that lacks a tensor is refused, and the line names it."""
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON; ignored tensors are listed by name."""
        return self._asdict()


class Imported(NamedTuple):
    """A tokenizer and where it comes from."""

    tokenizer: Tokenizer
    report: Report


def import_checkpoint(path: Path | str, *, levels: tuple[int, ...] | None = None, copy: Copy = "average") -> Imported:
    """The tokenizer in a MagicMaster checkpoint (.pth of mmengine, whole or stripped, or a bare generator).

    The averaged weights are taken, which all published numbers use, or the live ones. FSQ levels are those of the
    config in the file, else `levels`, else what the name of a published file says. Raises InputError if there is no
    such file, IntegrityError if it is damaged, of another program or not whole, ConfigError if levels are needed and
    not known, or are not those of the file. A published file carries the first 8 digits of its sha256 in its name;
    another digest is refused.
    """
    path = Path(path)
    tree = read_checkpoint(path)
    digest = sha256(path)
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named and named[1] != digest[:8]:
        raise IntegrityError(
            f"{path}: its name promises sha256 {named[1]}..., its content has {digest[:8]}...; fetch it again"
        )
    with naming_file(path):
        stored = tensors(tree["state_dict"] if isinstance(tree, dict) and "state_dict" in tree else tree)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    prefix, taken = _prefix(shapes, copy, path)
    generator = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    told = magicmaster.fsq_levels(_config(tree))
    by_name = None if told or levels else _levels_of_name(path.name)
    found = _recognise(generator, told or levels or by_name, path)
    if levels is not None and levels != found.config.quantizer.digit_levels:
        own = ",".join(map(str, found.config.quantizer.digit_levels))
        raise ConfigError(f"--levels {','.join(map(str, levels))}: {path} has {own}; leave the option out")
    notes = [*found.notes, *_labels(tokenizer := Tokenizer(found.config))]
    if by_name and found.config.quantizer.kind == "fsq":
        notes.append(f"its FSQ levels are not in it; its name says {math.prod(by_name):,} codes")
    wanted = {link.theirs for link in found.links}
    theirs = {name: stored[prefix + name] for name in sorted(wanted & generator.keys())}
    state = assemble(tokenizer, found.links, theirs, str(path))
    if bad := sorted(name for name, tensor in state.items() if not bool(tensor.isfinite().all())):
        raise IntegrityError(f"{path}: {len(bad)} tensors have NaN or infinite numbers ({', '.join(bad[:3])})")
    tokenizer.load_state_dict(state)
    ignored = {"stored but never run by MagicMaster": [prefix + name for name in found.unused]}
    ignored |= _others(shapes, prefix)
    unknown = sorted(generator.keys() - wanted - set(found.unused))
    ignored["not known to MagicMaster's networks"] = [prefix + name for name in unknown]
    kind = "VQGAN" if found.config.kind == "vqgan" else "MAGVIT-v2"
    report = Report(
        source=path.name,
        sha256=digest,
        peer=f"MagicMaster {kind}",
        copy=taken,
        used=sorted(prefix + name for name in wanted),
        ignored={reason: names for reason, names in ignored.items() if names},
        missing=[],
        notes=notes,
    )
    return Imported(tokenizer.eval(), report)


def _prefix(shapes: Shapes, copy: Copy, path: Path) -> tuple[str, str]:
    """What stands before the names of the generator, and which copy that is."""
    starts = ("encoder.conv_in.", "encoder._in_conv.")
    for name, prefixes in _PREFIXES.items() if copy == "average" else [("live", _PREFIXES["live"])]:
        for prefix in prefixes:
            if any(shape_name.startswith(prefix + start) for shape_name in shapes for start in starts):
                return prefix, name
    if any(name.startswith(starts) for name in shapes):
        return "", "bare"
    told = ", ".join(sorted({name.split(".")[0] for name in shapes})[:6]) or "no tensors"
    raise IntegrityError(f"{path}: not a checkpoint of MagicMaster, the one peer that is known here (it has {told})")


def _recognise(shapes: Shapes, levels: tuple[int, ...] | None, path: Path) -> Found:
    count = sum(math.prod(shape) for shape in shapes.values())
    if count > _LARGEST:
        raise IntegrityError(f"{path}: claims {count:,} numbers in its network, at most {_LARGEST:,} are read")
    is_vqgan = "encoder._in_conv.weight" in shapes
    try:
        if is_vqgan:
            return magicmaster_vqgan.recognise(shapes, levels, str(path))
        return magicmaster.recognise(shapes, levels, str(path))
    except KeyError as error:
        raise IntegrityError(f"{path}: tensor {error.args[0]} is missing; it is not whole") from None
    except (IndexError, ValueError, StopIteration, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise IntegrityError(
            f"{path}: no network that MagicMaster can build ({reason or type(error).__name__})"
        ) from None


def _levels_of_name(name: str) -> tuple[int, ...] | None:
    """As in magvit_fsq_imagenet1k_style2_d128_64000_128x128_8x8_ep20-04cd7358.pth."""
    found = [levels for codes, levels in magicmaster.LEVELS.items() if f"_{codes}_" in name]
    return found[0] if len(found) == 1 else None


def _config(tree: Any) -> str:
    """The text of the training's config, where the file has it."""
    meta = tree.get("meta") if isinstance(tree, dict) else None
    text = meta.get("cfg") if isinstance(meta, dict) else None
    return text if isinstance(text, str) else ""


def _others(shapes: Shapes, prefix: str) -> dict[str, list[str]]:
    """The tensors that are not of the generator that was taken, by what they are."""
    reasons = {
        "generator_ema.": "the averaged generator, or its counter",
        "generator.": "the live generator",
        "discriminator.": "the discriminator",
        "perceptual_loss.": "LPIPS",
    }
    groups: dict[str, list[str]] = {}
    for name in sorted(shapes):
        if prefix and not name.startswith(prefix):
            reason = next((text for start, text in reasons.items() if name.startswith(start)), "no part of a generator")
            groups.setdefault(reason, []).append(name)
    return groups


def _labels(tokenizer: Tokenizer) -> list[str]:
    if tokenizer.is_causal:
        return []
    return ["not causal: its norms and its modulation see the whole clip, so it cannot be streamed"]
