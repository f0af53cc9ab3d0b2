"""MagicMaster's generators: 2-D and 3-D MAGVIT-v2 with FSQ or DSQ, and VQGAN (github.com/ZhichengHuang/MagicMaster).

Widths, depths, strides and kernels are read from the names and shapes of the tensors; only FSQ levels are not in them.
What is odd there and kept: the norms and the convolution at the end of the encoder, and the norm at the end of the
decoder, are stored but never run; the 15,360 codes of DSQ are 25,600, for channel 5 goes through the bins of channel 2.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from smalti.errors import ConfigError, IntegrityError
from smalti.families.links import Link, convolution, copied, phase_first, projection, rows, table
from smalti.quantize import DSQConfig, FSQConfig
from smalti.tokenizer import AnyTokenizerConfig, TokenizerConfig

DSQ_PLACES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "64000": {"lqt_8": (0, 1, 2), "lqt_5": (3, 4, 5)},
    "15360": {"lqt_8": (0, 1), "lqt_5": (2, 5), "lqt_4": (3, 4)},
}
"""Which channels each group of learned bins serves; `lqt_3` of the latter is stored and never used."""
LEVELS: Mapping[int, tuple[int, ...]] = {64_000: (8, 8, 8, 5, 5, 5), 15_360: (8, 8, 5, 4, 4, 3)}
"""By the number of codes that the names of its configs and files give."""
QUIRK = "DSQ 15,360 has 25,600 codes: MagicMaster sends channel 5 through the 5 bins of channel 2, in training too"


Shapes = Mapping[str, tuple[int, ...]]
"""Foreign tensors by name: what a network is can be told without a value of it."""


class Found(NamedTuple):
    """What a set of tensors turned out to be."""

    config: AnyTokenizerConfig
    links: list[Link]
    unused: list[str]
    """Stored but never run by MagicMaster."""
    notes: list[str]


class Layer(NamedTuple):
    """One executed layer of theirs, in order."""

    kind: str
    """block, down, up, adaptive, tail."""
    name: str


def recognise(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> Found:
    """The config and the links of a MAGVIT-v2 generator. `levels` are FSQ's.

    Raises IntegrityError where the layout is not one that MagicMaster can build.
    """
    dims = len(shapes["encoder.conv_in.conv.weight"]) - 2
    encoder = list(layers_of(shapes, "encoder.encoder_layers"))
    decoder = list(layers_of(shapes, "decoder.decoder_layers"))
    kinds = [layer.kind for layer in decoder]
    middle = kinds.index("adaptive") if "adaptive" in kinds else 0
    widths, depths = _levels(shapes, encoder, "down")
    widths_out, depths_out = _levels(shapes, decoder[middle:], "up")
    strides = _strides(shapes, decoder)[::-1]
    if widths != widths_out[::-1] or len(strides) != len(widths) - 1 or depths[-1] < middle:
        raise IntegrityError(f"{where}: its encoder and decoder do not mirror each other; no MAGVIT-v2 of MagicMaster")
    quantizer, quantizer_links, unused, notes = quantizer_of(shapes, levels, where)
    stem, head = shapes["encoder.conv_in.conv.weight"], shapes["decoder.conv_out.conv.weight"]
    video = dims == 3
    config = TokenizerConfig(
        quantizer=quantizer,
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        strides=tuple(strides),
        depth=_one((*depths[:-1], depths[-1] - middle)),
        decoder_depth=_one(depths_out[::-1]),
        middle=middle,
        stem_kernel=stem[-1],
        stem_time=stem[2] if video else None,
        code_kernel=1,
        head_kernel=head[-1],
        head_time=head[2] if video else None,
        norm="clip" if video else "frame",
        final_norm=False,
        adaptive="none" if "adaptive" not in kinds else "clip" if video else "frame",
        adaptive_source="first",
        activate_upsample=True,
        time_kernel=3 if video else 1,
        past_kernel="full",
        start="grey" if video else "repeat",
    )
    links = [
        *convolution("encoder.conv_in.conv", "encoder.stem", dims=dims),
        *_half(shapes, encoder, "encoder.layers", dims),
        *projection("quantizer.project_in", "encoder.to_latent.now"),
        *quantizer_links,
        *projection("quantizer.project_out", "decoder.from_codes.now"),
        *_half(shapes, decoder, "decoder.layers", dims),
        *convolution("decoder.conv_out.conv", "decoder.to_pixels", dims=dims),
    ]
    tails = [layer.name for layer in (*encoder, *decoder) if layer.kind == "tail"]
    unused = unused + [name for name in shapes if any(name.startswith(f"{tail}.") for tail in tails)]
    return Found(config, links, unused, notes)


def layers_of(names: Iterable[str], stack: str) -> Iterator[Layer]:
    """The layers of one half in the order of execution; stacks of blocks are told block by block."""
    places = [name[len(stack) + 1 :].split(".") for name in names if name.startswith(f"{stack}.")]
    for i in sorted({int(place[0]) for place in places}):
        inside = [place[1:] for place in places if place[0] == str(i)]
        parts = {place[0] for place in inside}
        if "_residual" in parts:
            yield Layer("block", f"{stack}.{i}")
        elif "_conv" in parts:
            yield Layer("down", f"{stack}.{i}")
        elif "net" in parts:
            yield Layer("up", f"{stack}.{i}")
        elif "linear" in parts:
            yield Layer("adaptive", f"{stack}.{i}")
        elif any(len(place) > 1 and place[1] == "_residual" for place in inside):
            yield from (Layer("block", f"{stack}.{i}.{j}") for j in sorted(int(part) for part in parts))
        else:
            yield Layer("tail", f"{stack}.{i}")


def fsq_levels(config: str) -> tuple[int, ...] | None:
    """The levels that the text of a MagicMaster config gives its FSQ, or None."""
    found = re.search(r"quantizer=dict\([^()]*?levels=[\[(]([\d,\s]+)[\])]", config)
    return tuple(int(level) for level in found[1].split(",") if level.strip()) if found else None


def _levels(shapes: Shapes, layers: Sequence[Layer], between: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channels and the number of blocks of each level, in the order of execution."""
    first = next(layer for layer in layers if layer.kind in ("block", "down", "up"))
    kernels = {"block": "_residual.2.conv.weight", "down": "_conv.conv.weight", "up": "net.0.conv.weight"}
    widths, depths = [shapes[f"{first.name}.{kernels[first.kind]}"][1]], [0]
    for kind, name in layers:
        if kind == "block":
            widths[-1] = shapes[f"{name}.{kernels[kind]}"][0]
            depths[-1] += 1
        elif kind == between:
            widths.append(widths[-1])
            depths.append(0)
    return tuple(widths), tuple(depths)


def _one(depths: tuple[int, ...]) -> int | tuple[int, ...]:
    return depths[0] if len(set(depths)) == 1 else depths


def _strides(shapes: Shapes, decoder: Sequence[Layer]) -> list[tuple[int, int]]:
    """(time, space) of each upsampling: it has 4 or 8 times as many channels out as in."""
    kernels = [shapes[f"{name}.net.0.conv.weight"] for kind, name in decoder if kind == "up"]
    return [(kernel[0] // kernel[1] // 4, 2) for kernel in kernels]


def _half(shapes: Shapes, layers: Sequence[Layer], ours: str, dims: int) -> list[Link]:
    links: list[Link] = []
    for i, (kind, theirs) in enumerate(layer for layer in layers if layer.kind != "tail"):
        here = f"{ours}.{i}"
        if kind == "block":
            links += block(shapes, theirs, here, dims=dims, wrapped=".conv")
        elif kind == "down":
            links += convolution(f"{theirs}._conv.conv", here, dims=dims)
        elif kind == "adaptive":
            links += projection(f"{theirs}.linear", f"{here}.modulation")
        else:
            time, _ = _strides(shapes, [Layer(kind, theirs)])[0]
            links += phase_first(convolution(f"{theirs}.net.0.conv", f"{here}.conv", dims=dims), time, 4)
    return links


def block(shapes: Shapes, theirs: str, ours: str, *, dims: int, wrapped: str) -> list[Link]:
    """A residual block; `wrapped` is what their convolution's name adds (".conv" of a causal one)."""
    first, second = f"{theirs}._residual.2{wrapped}", f"{theirs}._residual.5{wrapped}"
    widens = shapes[f"{first}.weight"][1] != shapes[f"{second}.weight"][0]
    return [
        *copied(f"{theirs}._residual.0", f"{ours}.norm1"),
        *convolution(first, f"{ours}.conv1", dims=dims),
        *copied(f"{theirs}._residual.3", f"{ours}.norm2"),
        *convolution(second, f"{ours}.conv2", dims=dims),
        *(convolution(f"{theirs}._shortcut{wrapped}", f"{ours}.skip", dims=dims) if widens else []),
    ]


class FoundQuantizer(NamedTuple):
    """The quantizer of a generator."""

    config: FSQConfig | DSQConfig
    links: list[Link]
    unused: list[str]
    notes: list[str]


def quantizer_of(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> FoundQuantizer:
    """FSQ with `levels`, or DSQ with the levels that its learned bins have.

    Raises ConfigError where FSQ levels are needed and not given, IntegrityError where they do not fit.
    """
    channels = shapes["quantizer.project_in.weight"][0]
    groups = {name.split(".")[1] for name in shapes if name.startswith("quantizer.lqt_")}
    if not groups:
        if levels is None:
            raise ConfigError(f"{where}: does not say its FSQ levels; give them, as in --levels 8,8,8,5,5,5")
        if len(levels) != channels:
            raise ConfigError(f"{where}: its FSQ has {channels} channels, and {len(levels)} levels were given")
        return FoundQuantizer(FSQConfig(levels=levels), [], [], [])
    places = DSQ_PLACES["15360" if "lqt_4" in groups else "64000"]
    links, bins = list[Link](), dict[int, int]()
    for group, rows_of in places.items():
        theirs = f"quantizer.{group}"
        bins |= dict.fromkeys(rows_of, shapes[f"{theirs}.a"][1])
        links.append(table(f"{theirs}.a", "quantizer.widths", rows_of))
        for part, ours in (("start", "start"), ("scale1", "scale_in"), ("scale2", "scale_out"), ("bias", "bias")):
            links.append(rows(f"{theirs}.{part}", f"quantizer.{ours}", rows_of))
    if set(bins) != set(range(channels)):
        raise IntegrityError(f"{where}: its bins serve {len(bins)} channels, and it has {channels}")
    unused = [name for name in shapes if name.startswith("quantizer.lqt_3.")] if "lqt_4" in groups else []
    quantizer = DSQConfig(levels=tuple(bins[j] + 1 for j in range(channels)))
    return FoundQuantizer(quantizer, links, unused, [QUIRK] if unused else [])
