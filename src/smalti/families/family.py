"""A family: the tokenizers of one project, how a checkpoint of it is recognised, and the facts that are not in it."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from smalti.config import Config, Triple, Tuple
from smalti.families.links import CheckpointWeights, ForeignModel, Shapes
from smalti.quantize import Lookup
from smalti.tokenizer_info import PixelRange


class ImportOptions(Config):
    """Facts that a file may not have; a family asks for those that it needs and does not find."""

    weights: CheckpointWeights = "average"
    """EMA weights, which published figures use, or the live ones."""
    lookup: Lookup | None = None
    """Law by which a codebook's row is found."""
    pixels: PixelRange | None = None
    """Range of the pixels that the network was trained on: [-1, 1] (`signed`) or [0, 1] (`unit`)."""
    levels: Tuple[int] | None = None
    """FSQ levels."""
    version: str | None = None
    """Version of the network, where a project has several with the same tensors (VidTok: 1.0, 1.1)."""
    strides: Triple[int] | None = None
    """Frames, height and width in pixels of one token, where the tensors do not say them (Cosmos DV)."""


class Checkpoint(NamedTuple):
    """A checkpoint of another project, read as data."""

    where: str
    """Name in messages: the path, or the hub's name."""
    file_name: str
    tensors: Mapping[str, Tensor]
    """All tensors by dotted name; of a tree with a `state_dict`, those in it."""
    shapes: Shapes
    tree: Any
    """Everything else that its file says, as plain data."""
    config: Mapping[str, Any]
    """Content of config.json, or of config.yaml, beside the weights; empty if there is none."""
    repository: str | None
    """Repository of the hub that it was fetched from."""


class Published(NamedTuple):
    """A repository of the hub with weights of a family, and what its files do not say."""

    repository: str
    licence: str
    """Licence of the weights, as its project states it; `not stated` where it does not."""
    files: tuple[str, ...] = ()
    """Names of the files that make one tokenizer, where they are not those of the family."""
    lookup: Lookup | None = None
    pixels: PixelRange | None = None
    preprocessing: str = ""
    version: str | None = None
    strides: tuple[int, int, int] | None = None
    licence_source: str = "the tag of its repository on the hub"
    """Place where the licence is stated, or was looked for."""


class Family(NamedTuple):
    """The tokenizers of one project. A file of `smalti.families` defines one, a constant of its name."""

    name: str
    title: str
    """Name for people: in messages and reports."""
    sign: str
    """Tensor, or property, by which a checkpoint is recognised; for messages."""
    recognises: Callable[[Checkpoint], bool]
    """Whether the names of the tensors (and config.json) are this family's. Cheap, and true for half a checkpoint too,
    so that its fault can be named."""
    read: Callable[[Checkpoint, ImportOptions], ForeignModel]
    """Make the config and the links. Raises IntegrityError where the file is not whole, ConfigError where an option is
    needed and not given."""
    files: tuple[tuple[str, ...], ...] = ()
    """Names that its weights have in a folder or a repository; each entry is the files of one whole tokenizer."""
    inside: str = ""
    """Beginning of its tensors' names in a model that holds much more; of one in shards, others are left alone."""
    published: tuple[Published, ...] = ()
    parts: tuple[str, ...] = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    """Beginnings of the names of its network's tensors. One of them that no link uses is a newer layout: refused."""
    others: Mapping[str, str] = {}
    """Beginning of the names of what else its checkpoints hold -> what that is, for the report."""

    def row(self, repository: str | None) -> Published | None:
        """Return the facts of a repository of the hub, if it is one of the published ones."""
        return next((row for row in self.published if row.repository == repository), None)


class StoredNetwork(NamedTuple):
    """One copy of a network's weights in a file that may hold several."""

    names: Mapping[str, str]
    """Name within the network -> name in the file."""
    copy: Literal["average", "live", "bare"]


def find_network(shapes: Shapes, sign: str, weights: CheckpointWeights) -> StoredNetwork:
    """Find the network that has the tensor `sign`, behind whatever prefix. Raises KeyError where there is none.

    EMA weights stand behind a prefix with `ema` in it, or (Lightning's `LitEma`) as `model_ema.` and the name without
    its dots; those are mapped from the live names, because they also hold parts of the loss. With `weights="average"`
    they come first.
    """
    prefixes = sorted(
        {name.removesuffix(sign) for name in shapes if name == sign or name.endswith(f".{sign}")}, key=len
    )
    averaged = [prefix for prefix in prefixes if _is_average(prefix)]
    live = [prefix for prefix in prefixes if not _is_average(prefix)]
    flat = "model_ema." + sign.replace(".", "")
    has_both = bool(live and averaged) or flat in shapes
    if weights == "average" and not averaged and live and flat in shapes:
        names = _behind(shapes, live[0])
        flattened = {name: "model_ema." + name.replace(".", "") for name in names}
        return StoredNetwork({**names, **{name: flat for name, flat in flattened.items() if flat in shapes}}, "average")
    chosen = [*averaged, *live] if weights == "average" else live
    if not chosen:
        raise KeyError(sign)
    copy: Literal["average", "live", "bare"] = "average" if _is_average(chosen[0]) else "live" if has_both else "bare"
    return StoredNetwork(_behind(shapes, chosen[0]), copy)


def shapes_of(network: StoredNetwork, shapes: Shapes) -> Shapes:
    """Return the shapes of a network's tensors by their names within it."""
    return {name: shapes[stored] for name, stored in network.names.items()}


def _is_average(prefix: str) -> bool:
    return "ema" in re.split(r"[._]", prefix)


def _behind(shapes: Shapes, prefix: str) -> dict[str, str]:
    return {name[len(prefix) :]: name for name in shapes if name.startswith(prefix)}
