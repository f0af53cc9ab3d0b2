"""The data of a tokenizer's run in two parts: what it trains on, and what it is validated on."""

from typing import NamedTuple

from smalti.data import Joint, JointConfig, OneKindConfig, Source, Subset, VideosConfig
from smalti.data.bundled import is_shipped
from smalti.data.held_out import hold_out
from smalti.data.images import Images
from smalti.data.packing import MediaConfig
from smalti.data.source import StoreSource
from smalti.data.videos import Videos
from smalti.text import counts_text, printable
from smalti.training.config import TokenizerTraining


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
        return DataSplit(built, own, {"samples": len(built), **counts}, (*notes, *_without(config)))
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
    return DataSplit(train, validation, counts, tuple(notes))


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
        return Images(view, source.store)
    assert isinstance(view, VideosConfig)
    return Videos(view, source.store)


def _center(data: OneKindConfig) -> OneKindConfig:
    fields: dict[str, object] = {"crop": "center", "flip": False}
    return data.replace(fields | ({"sampling": "center"} if data.kind == "videos" else {}))
