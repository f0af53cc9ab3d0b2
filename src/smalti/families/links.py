"""How a tensor of somebody else's network becomes tensors of ours: one link per foreign name.

A link is linear and can be differentiated through, so that a test can compare gradients in the peer's own layout.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from smalti.errors import IntegrityError
from smalti.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A part of one of our tensors."""

    name: str
    value: Tensor
    rows: tuple[int, ...] | None = None
    """Rows of ours that `value` fills, from the first column on; None is the whole tensor."""


class Link(NamedTuple):
    """Where a foreign tensor goes."""

    theirs: str
    into: Callable[[Tensor], Iterable[Piece]]


def whole(theirs: str, ours: str) -> Link:
    """A tensor that is ours as it is."""
    return Link(theirs, lambda tensor: [Piece(ours, tensor)])


def copied(theirs: str, ours: str) -> list[Link]:
    """A weight and a bias that are ours as they are: norms, and linear layers of equal form."""
    return [whole(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def convolution(theirs: str, ours: str, *, dims: int) -> list[Link]:
    """A 2-D or causal 3-D convolution: its last slice in time is the tap of the current frame."""

    def taps(weight: Tensor) -> Iterable[Piece]:
        if dims == 2:
            return [Piece(f"{ours}.now.weight", weight)]
        *past, now = weight.unbind(2)
        return [
            Piece(f"{ours}.now.weight", now),
            *(Piece(f"{ours}.past.{k}.weight", tap) for k, tap in enumerate(past)),
        ]

    return [Link(f"{theirs}.weight", taps), whole(f"{theirs}.bias", f"{ours}.now.bias")]


def phase_first(links: Sequence[Link], time: int, square: int) -> list[Link]:
    """The same links for a convolution whose output channels are ordered (channel, time phase, pixel of the square):
    ours are (time phase, channel, pixel)."""

    def reorder(link: Link) -> Link:
        def into(tensor: Tensor) -> Iterable[Piece]:
            ordered = tensor.unflatten(0, (-1, time, square)).transpose(0, 1).flatten(0, 2)
            return link.into(ordered)

        return Link(link.theirs, into)

    return [reorder(link) for link in links]


def projection(theirs: str, ours: str) -> list[Link]:
    """A linear layer over channels, which is a 1x1 convolution of ours."""
    return [
        Link(f"{theirs}.weight", lambda weight: [Piece(f"{ours}.weight", weight[..., None, None])]),
        whole(f"{theirs}.bias", f"{ours}.bias"),
    ]


def rows(theirs: str, ours: str, places: tuple[int, ...]) -> Link:
    """A tensor of one number per channel for these rows of ours; one number for several places fills them all."""
    return Link(theirs, lambda tensor: [Piece(ours, tensor.reshape(-1, 1), places)])


def table(theirs: str, ours: str, places: tuple[int, ...]) -> Link:
    """A tensor of one row per channel for the heads of these rows of ours; one row for several places fills all."""
    return Link(theirs, lambda tensor: [Piece(ours, tensor, places)])


def assemble(
    tokenizer: Tokenizer, links: Iterable[Link], tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The state of `tokenizer`, in its number type, made of foreign tensors.

    Raises IntegrityError, naming the foreign tensors, where one is missing or has another shape than its network wants.
    """
    links = list(links)
    if missing := sorted(link.theirs for link in links if link.theirs not in tensors):
        raise IntegrityError(f"{where}: {len(missing)} tensors are missing ({', '.join(missing[:5])}); it is not whole")
    state = dict(tokenizer.state_dict())
    filled, wrong = set[str](), list[str]()
    for link in links:
        tensor = tensors[link.theirs]
        try:
            pieces = list(link.into(tensor))
        except (RuntimeError, IndexError, ValueError):  # too few dimensions for what the link does to them
            wrong.append(f"{link.theirs} {list(tensor.shape)}")
            continue
        for name, value, places in pieces:
            placed = None if name not in state else _place(state[name], value.to(state[name].dtype), places)
            if placed is None:
                wrong.append(f"{link.theirs} {list(tensor.shape)}")
                break
            state[name] = placed
            filled.add(name)
    if wrong:
        told = ", ".join(wrong[:5])
        raise IntegrityError(f"{where}: {len(wrong)} tensors have another shape than their network ({told})")
    if unfilled := sorted(state.keys() - filled):
        raise IntegrityError(f"{where}: nothing in it makes our {', '.join(unfilled[:5])}; its layout is not known")
    return state


def _place(have: Tensor, value: Tensor, places: tuple[int, ...] | None) -> Tensor | None:
    """`have` with `value` in it, or None where it does not fit."""
    if places is None:
        return value if value.shape == have.shape else None
    table = have.reshape(have.shape[0], -1).clone()
    if value.dim() != 2 or value.shape[0] not in (1, len(places)) or value.shape[1] > table.shape[1]:
        return None
    table[list(places), : value.shape[1]] = value
    return table.view_as(have)
