"""The samples of a run: which a tokenizer trains on and is validated on, and a cheap record of those of every step (a
digest of all so far, the names of those of a skipped step)."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any, NamedTuple

import torch

from smalti.data import Joint, JointConfig, OneKindConfig, Source, Subset, VideosConfig, Views
from smalti.data.bundled import is_shipped
from smalti.data.images import Images
from smalti.data.packing import MediaConfig
from smalti.data.source import Store, StoreSource, mix
from smalti.data.videos import Videos
from smalti.files import naming_os_errors, read_rows
from smalti.text import counts_text, printable
from smalti.training.config import TokenizerTraining
from smalti.training.task import RunState

_BITS = (1 << 48) - 1
"""Bits of the digest of a step: 65,536 ranks add up to less than 2^64."""
SKIPPED = "skipped.jsonl"
"""File of a run folder with the samples of each step whose update was left out."""


def count_samples(state: RunState, names: Sequence[str], places: Sequence[int]) -> None:
    """Take the samples of a step into `state.samples`: their names and places in the global batch, over all ranks.

    The digest of a step is the sum over its samples, so that it does not depend on which rank has which; that of a run
    is chained from step to step. Runs that have seen the same samples at every step have the same one.
    """
    total = sum(map(_digest, names, places)) & _BITS
    if state.world.size > 1:
        total = int(state.world.sum(torch.tensor(total))) & _BITS
    if state.samples is not None:
        state.samples = mix(state.samples, total) >> 1


def _digest(name: str, place: int) -> int:
    """Hash a sample and its place to 48 bits."""
    text = f"{place} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


def keep_skipped(
    state: RunState, folder: Path, line: Mapping[str, Any], names: Sequence[str], places: Sequence[int]
) -> None:
    """Append a row to `skipped.jsonl` of a run folder: {step, seed, not_finite, samples}, for a step that was skipped.

    Step and seed are all that is needed to load its batch again (`smalti.data.batches` with `start_step` step - 1);
    `samples` has the names of all ranks, in the order of their places. Raises MachineError where the disk refuses.
    """
    parts = state.world.gather(json.dumps([*zip(places, names, strict=True)]).encode())
    if not state.world.is_main:
        return
    rows = sorted((place, name) for part in parts for place, name in json.loads(part))
    bad = [name for name, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    row = {"step": line["step"], "seed": state.config.seed, "not_finite": bad, "samples": [name for _, name in rows]}
    path = folder / SKIPPED
    with naming_os_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def skipped_steps(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of `skipped.jsonl`, each step once: a run that went on from before it wrote it again."""
    rows = {row["step"]: row for row in read_rows(folder / SKIPPED, "step", "samples")}
    return [rows[step] for step in sorted(rows)]


class DataSplit(NamedTuple):
    """Training data and validation data of a run."""

    train: Source
    validation: Source | None
    counts: dict[str, int]
    """Number of samples that are trained on, held out and left out, by name."""
    notes: tuple[str, ...]
    """Facts that a user should know before the first step, a line each."""


def settle_validation(config: TokenizerTraining, previous: TokenizerTraining | None = None) -> TokenizerTraining:
    """Return the config with `held_out` set where it is null; `previous` is that of the run that is resumed.

    A recipe that is validated on media that ship with smalti is validated on the user's own where `data` is: its
    `validation` then keeps its view. Runs of versions without `held_out` go on as they began.
    """
    if config.held_out is not None or (previous is not None and previous.held_out is None):
        return config
    shown = config.validation
    if shown is None or not is_shipped(shown.path) or is_shipped(config.split_data.path):
        return config.replace({"held_out": 0})
    count = config.validation_limit if previous is None or previous.held_out is None else previous.held_out
    return config.replace({"held_out": count, "validation": _view_of(shown, config.split_data)})


def split_data(config: TokenizerTraining) -> DataSplit:
    """List the data of a run, and hold out the samples that its config says. Raises InputError as `build` does."""
    built = config.data.build()
    parts: dict[str, Source] = {"": built}
    if isinstance(built, Joint):
        parts = {"images": built.images, "videos": built.videos}
    counts, notes = dict[str, int](), list[str]()
    for part, source in parts.items():
        left_out = source.store.left_out if isinstance(source, StoreSource) else {}
        path = printable(_data(config, part).path)
        if left_out:
            notes.append(f"{path}: left out: {counts_text(left_out)}")
        for what, count in left_out.items():
            counts[what] = counts.get(what, 0) + count
    if not config.held_out:
        own = None if config.validation is None else config.validation.build()
        return DataSplit(_in_views(config, built), own, {"samples": len(built), **counts}, (*notes, *_without(config)))
    whole = parts["videos"] if isinstance(built, Joint) else built
    assert isinstance(whole, Images | Videos)
    parted = hold_out(whole, config.held_out, config.seed)
    train = built.with_videos(parted.train) if isinstance(built, Joint) else parted.train
    shown = _with_view(whole, config.validation or _center(config.split_data))
    validation = Subset(shown, parted.held_out) if parted.held_out else None
    counts |= {"samples": len(train), "held_out": len(parted.held_out), "copies_of_held_out": parted.copies}
    what = f"{len(parted.held_out):,} of {len(whole):,} samples are held out for validation and never trained on"
    copies = f", nor are {parted.copies:,} copies of them" if parted.copies else ""
    notes.append(f"{printable(config.split_data.path)}: {what}{copies} (held_out)")
    return DataSplit(_in_views(config, train), validation, counts, tuple(notes))


def _in_views(config: TokenizerTraining, train: Source) -> Source:
    """Return training data in all views of its config."""
    if not config.views:
        return train
    whole, rows = (train.source, train.indices) if isinstance(train, Subset) else (train, None)
    assert isinstance(whole, Images | Videos)
    shown = [_with_view(whole, view) for view in config.all_views]
    return Views(shown if rows is None else [Subset(one, rows) for one in shown], config.view_pixels)


def _data(config: TokenizerTraining, part: str) -> OneKindConfig:
    data = config.data
    if isinstance(data, JointConfig):
        return data.images if part == "images" else data.videos
    return data


def _without(config: TokenizerTraining) -> list[str]:
    """Return the note on a run that holds nothing out of its data."""
    if config.validation is None:
        return [f"no validation: set held_out to {config.validation_limit} to hold out samples, or validation.path"]
    if is_shipped(config.validation.path) and not is_shipped(config.split_data.path):
        return ["validated on media that ship with smalti, not on yours (validation.path)"]
    return []


def _view_of(shown: OneKindConfig, data: OneKindConfig) -> OneKindConfig:
    """Return `data` as `shown` shows its media; centered where it is of another kind."""
    if shown.kind != data.kind:
        return _center(data)
    return shown.replace({name: getattr(data, name) for name in MediaConfig.model_fields if name != "kind"})


def _with_view(source: Images | Videos, view: OneKindConfig) -> Source:
    """Return the same media as `view`, which is of their kind, shows them."""
    if isinstance(source, Images):
        return source.with_view(view)
    assert isinstance(view, VideosConfig)
    return source.with_view(view)


def _center(data: OneKindConfig) -> OneKindConfig:
    fields: dict[str, object] = {"crop": "center", "flip": False}
    return data.replace(fields | ({"sampling": "center"} if data.kind == "videos" else {}))


class HeldOut(NamedTuple):
    """A source in two parts that share no sample and no bytes."""

    train: Subset
    """Samples to train on, in the order of the source."""
    held_out: Sequence[int]
    """Indices of the samples that are held out, in the order of the source."""
    copies: int
    """Number of samples that have the bytes of one that is held out: they are in neither part."""


def hold_out(source: Images | Videos, count: int, seed: int) -> HeldOut:
    """Hold out `count` samples, but at most a tenth (and at least one of two or more): those of the smallest hash.

    The hash is that of (seed, name), so the choice depends on no order and no random generator. Samples whose bytes
    are those of a held-out one are not trained on either: among the samples of equal size, whose sha256 is compared.
    That is not done for Parquet files, where it would read every cell.
    """
    total = len(source)
    count = min(count, max(1, total // 10)) if total > 1 else 0
    chosen = set(nsmallest(count, range(total), key=lambda i: (_hash(seed, source.key(i)), i)))
    copies = _copies(source.store, chosen) if chosen else set()
    train = [i for i in range(total) if i not in chosen and i not in copies]
    return HeldOut(Subset(source, train if count else range(total)), sorted(chosen), len(copies))


def _hash(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _copies(store: Store, chosen: set[int]) -> set[int]:
    """Return the other samples that have the bytes of a chosen one."""
    sizes = store.sizes()
    if sizes is None:
        return set()
    wanted = {sizes[i] for i in chosen if sizes[i] > 0}
    alike = [i for i in range(len(store)) if i not in chosen and sizes[i] in wanted]
    digests = {store.digest(i) for i in chosen} - {None} if alike else set()
    return {i for i in alike if store.digest(i) in digests}
