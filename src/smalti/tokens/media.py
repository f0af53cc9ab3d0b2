"""The media of a shard, in the order of the plan, and how they are looked at."""

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from smalti.data.parquet import ParquetStore
from smalti.data.source import Store, open_media
from smalti.data.tars import TarStore
from smalti.data.views import ViewConfig
from smalti.errors import BadFile
from smalti.text import printable
from smalti.tokens.plan import Input, Plan


class Item(NamedTuple):
    """A medium of a shard, or a tar or table that could not be read."""

    number: int
    """Its place in the shard."""
    key: str
    store: Store | None
    place: int
    """Its index in the store."""
    label: int | None
    class_name: str | None
    path: Path
    """The file, tar or table."""
    fault: BadFile | None = None


def items_of(plan: Plan, shard: int, root: Path) -> Iterator[Item]:
    """The media of a shard, in the order of the plan; one without a store where a tar or table cannot be read."""
    number = 0
    for given in plan.inputs_of(shard):
        path = root / given.name
        try:
            _check_size(path, given)
            store = plan.inputs.open(root, given.name)
        except BadFile as bad:
            yield Item(number, printable(given.name), None, 0, None, None, path, bad)
            number += 1
            continue
        for index in range(len(store)):
            label, name = _class_of(store, index, given, plan.classes)
            yield Item(number, store.key(index), store, index, label, name, path)
            number += 1


def _class_of(store: Store, index: int, given: Input, classes: tuple[str, ...]) -> tuple[int | None, str | None]:
    """(number, name) of a medium's class. Names that one tar or table numbers for itself have no number in the set."""
    if isinstance(store, TarStore | ParquetStore):
        label = store.label(index)
        if label is None:
            return None, None
        return label if store.numbered else None, store.classes[label]
    return given.label, None if given.label is None else classes[given.label]


def _check_size(path: Path, given: Input) -> None:
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        return  # opening it will tell
    if size != given.bytes:
        what = f"had {given.bytes:,} bytes when the plan was made and has {size:,}; bring it back, or make a new set"
        raise BadFile(printable(path), "changed", what)


def open_medium(media: Path | bytes) -> BinaryIO | BytesIO:
    """A medium as an open file. Raises BadFile."""
    return BytesIO(media) if isinstance(media, bytes) else open_media(media)


def digest_of(file: BinaryIO | BytesIO) -> bytes:
    """The sha256 of an open file, which is then at its beginning again."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    return digest.digest()


def shown(view: ViewConfig, frame: Tensor, key: str) -> Tensor:
    """What a token set shows of a picture or frame `h w 3`. Raises BadFile, naming `key`."""
    unused = torch.Generator().manual_seed(0)  # the views of token sets draw nothing
    return torch.from_numpy(view.view((frame.shape[0], frame.shape[1]), unused, key).apply(frame.numpy()))
