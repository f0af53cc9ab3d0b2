"""A foreign network as a tokenizer of ours: its config, and one link per foreign tensor that says where it goes.

A link is linear and can be differentiated through, so that a test can compare gradients in the foreign layout.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Literal, NamedTuple

from torch import Tensor

from smalti.errors import IntegrityError
from smalti.quantize import Lookup
from smalti.tokenizer import AnyTokenizerConfig, Tokenizer
from smalti.tokenizer_info import PixelRange, SourceIds

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of foreign tensors by name: enough to recognise a network."""
CheckpointWeights = Literal["average", "live"]
"""Network of a checkpoint that is imported: the EMA weights, which published figures use, or the live ones."""


class Piece(NamedTuple):
    """Values of one of our tensors, or of some of its rows."""

    name: str
    value: Tensor
    rows: tuple[int, ...] | None = None
    """Rows of ours that `value` fills, from the first column on; None is the whole tensor."""


class Link(NamedTuple):
    """A foreign tensor and the pieces of ours that it fills."""

    source: str
    """Name of the foreign tensor."""
    into: Callable[[Tensor], Iterable[Piece]]


class ForeignModel(NamedTuple):
    """A network of another project: its config here, and where its tensors go."""

    kind: str
    """Name of the network in its project."""
    config: AnyTokenizerConfig
    links: list[Link]
    unused: list[str]
    """Tensors that its project stores but never runs."""
    notes: list[str]
    prefix: str = ""
    """Beginning of the names of the network's tensors in the file."""
    names: Mapping[str, str] = {}
    """Names in the file of tensors that have another one there than `prefix` and their own."""
    copy: Literal["average", "live", "bare"] = "bare"
    """CheckpointWeights that are taken: average, live, or bare where the file has one network."""
    ignored: Mapping[str, list[str]] = {}
    """Names in the file of tensors that are left out, by the reason; others are found by themselves."""
    constants: Mapping[str, Tensor] = {}
    """Tensors that its project stores and its architecture gives: checked, then left out."""
    lookup: Lookup | None = None
    """Law of its codebook; None for a quantizer without one."""
    version: str | None = None
    """Version of the network, where its project has several with the same tensors."""
    licence: str = "not stated"
    """Licence of the weights, as published."""
    pixels: PixelRange = "signed"
    """Range of the pixels there."""
    preprocessing: str = "any size; nothing is known of how its project resizes"
    """Resize and crop there, before the encoder."""
    ids: SourceIds = SourceIds()
    """Form of the ids there."""

    def stored(self, name: str) -> str:
        """Return the name in the file of a tensor of the network."""
        return self.names.get(name, self.prefix + name)

    def inside(self, stored: str) -> str:
        """Return the name within the network of a tensor of the file; empty for one of other things."""
        if self.names:
            return next((name for name, other in self.names.items() if other == stored), "")
        return stored[len(self.prefix) :] if stored.startswith(self.prefix) else ""


def layer_names(layers: str) -> Iterator[str]:
    """Yield the names of the layers of a list of ours, in their order: LAYERS.0, LAYERS.1, ... without an end."""
    return (f"{layers}.{number}" for number in count())


def unchanged(source: str, target: str) -> Link:
    """Link a tensor that is ours as it is."""
    return Link(source, lambda tensor: [Piece(target, tensor)])


def weight_and_bias(source: str, target: str) -> list[Link]:
    """Link a weight and a bias that are ours as they are: norms, and linear layers of equal form."""
    return [unchanged(f"{source}.{part}", f"{target}.{part}") for part in ("weight", "bias")]


def convolution(source: str, target: str, *, dims: int, bias: bool = True) -> list[Link]:
    """Link a convolution: 2-D, causal 3-D, or causal over time alone (1-D). Its last slice in time is the tap of the
    current frame."""

    def taps(weight: Tensor) -> Iterable[Piece]:
        if dims == 2:
            return [Piece(f"{target}.now.weight", weight)]
        *past, now = (weight[..., None, None] if dims == 1 else weight).unbind(2)
        return [
            Piece(f"{target}.now.weight", now),
            *(Piece(f"{target}.past.{k}.weight", tap) for k, tap in enumerate(past)),
        ]

    biases = [unchanged(f"{source}.bias", f"{target}.now.bias")] if bias else []
    return [Link(f"{source}.weight", taps), *biases]


def phase_first(links: Sequence[Link], time: int, square: int) -> list[Link]:
    """Reorder the links of a convolution whose output channels are (channel, time phase, pixel of the square): ours are
    (time phase, channel, pixel)."""

    def reorder(link: Link) -> Link:
        def into(tensor: Tensor) -> Iterable[Piece]:
            ordered = tensor.unflatten(0, (-1, time, square)).transpose(0, 1).flatten(0, 2)
            return link.into(ordered)

        return Link(link.source, into)

    return [reorder(link) for link in links]


def pointwise(source: str, target: str) -> list[Link]:
    """Link a linear layer over channels, which is a 1x1 convolution of ours."""
    return [
        Link(f"{source}.weight", lambda weight: [Piece(f"{target}.weight", weight[..., None, None])]),
        unchanged(f"{source}.bias", f"{target}.bias"),
    ]


def attention(source: str, target: str, channels: int, *, names: Sequence[str], inner: str = "") -> list[Link]:
    """Link query, key, value and output of an attention, `names` in this order: linear layers or 1x1 convolutions."""

    def rows(part: str, k: int) -> Link:
        places = tuple(range(k * channels, (k + 1) * channels))
        into = f"{target}.query_key_value.{part}"
        return Link(f"{source}.{names[k]}{inner}.{part}", lambda x: [Piece(into, x.reshape(channels, -1), places)])

    out = f"{source}.{names[3]}{inner}"
    return [
        *(rows(part, k) for k in range(3) for part in ("weight", "bias")),
        Link(f"{out}.weight", lambda x: [Piece(f"{target}.out.weight", x.flatten(1))]),
        unchanged(f"{out}.bias", f"{target}.out.bias"),
    ]


def channel_values(source: str, target: str, places: tuple[int, ...]) -> Link:
    """Link a tensor of one number per channel to these rows of ours; one number for several rows fills them all."""
    return Link(source, lambda tensor: [Piece(target, tensor.reshape(-1, 1), places)])


def channel_rows(source: str, target: str, places: tuple[int, ...]) -> Link:
    """Link a tensor of one row per channel to the heads of these rows of ours; one row for several rows fills all."""
    return Link(source, lambda tensor: [Piece(target, tensor, places)])


def assemble(
    tokenizer: Tokenizer, links: Iterable[Link], tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Make the state of `tokenizer`, in its number type, of foreign tensors.

    Raises IntegrityError, naming the foreign tensors, where one is missing or has another shape than its network wants.
    """
    links = list(links)
    if missing := sorted(link.source for link in links if link.source not in tensors):
        raise IntegrityError(f"{where}: {len(missing)} tensors are missing ({', '.join(missing[:5])}); it is not whole")
    state = dict(tokenizer.state_dict())
    filled, wrong = set[str](), list[str]()
    for link in links:
        tensor = tensors[link.source]
        try:
            pieces = list(link.into(tensor))
        except (RuntimeError, IndexError, ValueError):  # too few dimensions for what the link does to them
            wrong.append(f"{link.source} {list(tensor.shape)}")
            continue
        for name, value, places in pieces:
            updated = None if name not in state else _place(state[name], value.to(state[name].dtype), places)
            if updated is None:
                wrong.append(f"{link.source} {list(tensor.shape)}")
                break
            state[name] = updated
            filled.add(name)
    if wrong:
        names = ", ".join(wrong[:5])
        raise IntegrityError(f"{where}: {len(wrong)} tensors have another shape than their network ({names})")
    if unfilled := sorted(state.keys() - filled):
        raise IntegrityError(f"{where}: nothing in it makes our {', '.join(unfilled[:5])}; its layout is not known")
    return state


def _place(tensor: Tensor, value: Tensor, places: tuple[int, ...] | None) -> Tensor | None:
    """Return `tensor` with `value` in it, or None where it does not fit."""
    if places is None:
        return value if value.shape == tensor.shape else None
    flat = tensor.reshape(tensor.shape[0], -1).clone()
    if value.dim() != 2 or value.shape[0] not in (1, len(places)) or value.shape[1] > flat.shape[1]:
        return None
    flat[list(places), : value.shape[1]] = value
    return flat.view_as(tensor)
