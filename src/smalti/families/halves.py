"""The two halves of a VQGAN under anybody's names: its config and links, from names and shapes of tensors."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from smalti.families.links import Link, Piece, Shapes, convolution, layer_names, unchanged, weight_and_bias
from smalti.nn.blocks import GROUPS
from smalti.quantize import CodebookConfig, Lookup, QuantizerConfig
from smalti.tokenizer import VQGANConfig
from smalti.tokenizer.vqgan import Shortcut
from smalti.tokenizer_info import PixelRange


class HalfLevel(NamedTuple):
    """One level of a half: blocks, each perhaps with attention, then perhaps a halving or doubling."""

    blocks: Sequence[str]
    attention: Sequence[str] = ()
    """One for each block, or none."""
    resample: str | None = None
    """Convolution after the blocks; None for the last level, and for a mean."""


class Half(NamedTuple):
    """The names of an encoder or a decoder, in the order of execution."""

    stem: str
    levels: Sequence[HalfLevel]
    middle: Sequence[str]
    norm: str
    head: str
    middle_attention: str | None = None


class Layout(NamedTuple):
    """The names within the parts, and what they do differently from the first VQGAN."""

    shortcut: str = "nin_shortcut"
    """1x1 convolution of a block that changes the channels."""
    attention: tuple[str, str, str, str, str] = ("norm", "q", "k", "v", "proj_out")
    """Norm, query, key, value and output."""
    block_bias: bool = True
    shortcut_of: Shortcut = "input"
    averages: bool = False
    """Whether sides are halved by a mean, without a convolution."""
    groups: int = GROUPS
    pixels: PixelRange = "signed"


def taming_half(shapes: Shapes, half: str) -> Half:
    """Find the names of an encoder or a decoder that is named as in taming-transformers."""
    is_encoder = half == "encoder"
    resample = "downsample.conv" if is_encoder else "upsample.conv"
    levels = numbered(shapes, f"{half}.{'down' if is_encoder else 'up'}")
    stages = [
        HalfLevel(
            blocks=numbered(shapes, f"{level}.block"),
            attention=numbered(shapes, f"{level}.attn") if count(shapes, f"{level}.attn") else (),
            resample=f"{level}.{resample}",
        )
        for level in (levels if is_encoder else levels[::-1])
    ]
    return Half(
        stem=f"{half}.conv_in",
        levels=stages,
        middle=(f"{half}.mid.block_1", f"{half}.mid.block_2"),
        middle_attention=f"{half}.mid.attn_1",
        norm=f"{half}.norm_out",
        head=f"{half}.conv_out",
    )


def vqgan_config(
    shapes: Shapes, encoder: Half, decoder: Half, quantizer: QuantizerConfig, projections: int, layout: Layout
) -> VQGANConfig:
    """Read widths, depths and the places of attention. Raises ValueError where the halves do not fit together."""
    outward = decoder.levels[::-1]
    if len(encoder.levels) != len(outward):
        raise ValueError(f"an encoder of {len(encoder.levels)} levels and a decoder of {len(outward)}")
    widths, widths_out = (_widths(shapes, levels) for levels in (encoder.levels, outward))
    unit = math.gcd(*widths, *widths_out)
    attended, attended_out = ([i for i, s in enumerate(levels) if s.attention] for levels in (encoder.levels, outward))
    if attended != attended_out or (encoder.middle_attention is None) != (decoder.middle_attention is None):
        raise ValueError(f"attention at the levels {attended} of the encoder and {attended_out} of the decoder")
    middle, middle_out = len(encoder.middle), len(decoder.middle)
    innermost = len(widths) - 1
    out = tuple(width // unit for width in widths_out)
    head = shapes[f"{encoder.head}.weight"]
    return VQGANConfig(
        quantizer=quantizer,
        width=unit,
        multipliers=tuple(width // unit for width in widths),
        decoder_multipliers=None if widths == widths_out else out,
        depth=_one([len(stage.blocks) for stage in encoder.levels]),
        decoder_depth=_one([len(stage.blocks) for stage in outward]),
        middle=middle,
        decoder_middle=None if middle == middle_out else middle_out,
        attention_levels=None if attended == [innermost] else tuple(attended),
        middle_attention=encoder.middle_attention is not None,
        latent=head[0],
        projections=1 if projections else 0,
        latent_kernel=1 if head[-1] == 1 else 3,
        groups=layout.groups,
        block_bias=layout.block_bias,
        downsample="average" if layout.averages else "convolution",
        shortcut=layout.shortcut_of,
        pixels=layout.pixels,
    )


def encoder_links(shapes: Shapes, half: Half, layout: Layout) -> Iterator[Link]:
    """Link an encoder up to its last convolution; projections are the caller's."""
    yield from _convolution(half.stem, "encoder.stem", bias=layout.block_bias)
    here = layer_names("encoder.layers")
    for i, stage in enumerate(half.levels):
        yield from _stage(shapes, stage, here, layout)
        if i < len(half.levels) - 1:
            target = next(here)
            yield from [] if stage.resample is None else weight_and_bias(stage.resample, f"{target}.conv")
    yield from _middle(shapes, half, here, layout)
    yield from weight_and_bias(half.norm, "encoder.norm")
    yield from convolution(half.head, "encoder.head", dims=2)


def decoder_links(shapes: Shapes, half: Half, layout: Layout) -> Iterator[Link]:
    """Link a decoder from its first convolution on; projections are the caller's."""
    yield from convolution(half.stem, "decoder.stem", dims=2)
    here = layer_names("decoder.layers")
    yield from _middle(shapes, half, here, layout)
    for i, stage in enumerate(half.levels):
        yield from _stage(shapes, stage, here, layout)
        if i < len(half.levels) - 1:
            yield from weight_and_bias(str(stage.resample), f"{next(here)}.conv")
    yield from weight_and_bias(half.norm, "decoder.norm")
    yield from convolution(half.head, "decoder.to_pixels", dims=2)


def codebook_links(projections: int) -> list[Link]:
    """Link the table of codes, and the 1x1 convolutions before and after it where there are any."""
    table = unchanged("quantize.embedding.weight", "quantizer.codebook")
    if not projections:
        return [table]
    quant = convolution("quant_conv", "encoder.to_latent", dims=2)
    return [*quant, table, *convolution("post_quant_conv", "decoder.from_codes", dims=2)]


def codebook_config(shapes: Shapes, lookup: Lookup) -> CodebookConfig:
    """Read the size of the table of codes."""
    size, dim = shapes["quantize.embedding.weight"]
    return CodebookConfig(size=size, dim=dim, by=lookup)


def count(shapes: Shapes, start: str) -> int:
    """Count the numbered parts `start.0.`, `start.1.`, ... by the highest number; 0 where there are none."""
    inside = [name[len(start) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{start}.")]
    return 1 + max((int(number) for number in inside if number.isdigit()), default=-1)


def numbered(shapes: Shapes, start: str) -> list[str]:
    """List the numbered parts `start.0`, `start.1`, ... Raises KeyError where there are none."""
    if not (parts := count(shapes, start)):
        raise KeyError(f"{start}.0")
    return [f"{start}.{i}" for i in range(parts)]


def turned(links: Sequence[Link], dim: int) -> list[Link]:
    """Turn the order of the channels along `dim` of links: for ids whose first digit is the highest."""

    def turn(link: Link) -> Link:
        return Link(link.source, lambda tensor: link.into(tensor.flip(dim)))

    return [turn(link) for link in links]


def _widths(shapes: Shapes, levels: Sequence[HalfLevel]) -> list[int]:
    return [shapes[f"{stage.blocks[0]}.conv1.weight"][0] for stage in levels]


def _one(depths: Sequence[int]) -> int | tuple[int, ...]:
    return depths[0] if len(set(depths)) == 1 else tuple(depths)


def _convolution(source: str, target: str, *, bias: bool) -> list[Link]:
    return convolution(source, target, dims=2)[: None if bias else 1]


def _stage(shapes: Shapes, stage: HalfLevel, here: Iterator[str], layout: Layout) -> Iterator[Link]:
    for j, block in enumerate(stage.blocks):
        yield from _block(shapes, block, next(here), layout)
        if stage.attention:
            yield from _attention(shapes, stage.attention[j], next(here), layout)


def _middle(shapes: Shapes, half: Half, here: Iterator[str], layout: Layout) -> Iterator[Link]:
    for j, block in enumerate(half.middle):
        yield from _block(shapes, block, next(here), layout)
        if j == 0 and half.middle_attention is not None:
            yield from _attention(shapes, half.middle_attention, next(here), layout)


def _block(shapes: Shapes, source: str, target: str, layout: Layout) -> Iterator[Link]:
    bias = layout.block_bias
    for part in ("norm1", "norm2"):
        yield from weight_and_bias(f"{source}.{part}", f"{target}.{part}")
    for part in ("conv1", "conv2"):
        yield from _convolution(f"{source}.{part}", f"{target}.{part}", bias=bias)
    out, channels, *_ = shapes[f"{source}.conv1.weight"]
    if out != channels:
        yield from _convolution(f"{source}.{layout.shortcut}", f"{target}.skip", bias=bias)


def _attention(shapes: Shapes, source: str, target: str, layout: Layout) -> Iterator[Link]:
    norm, *joint, last = layout.attention
    yield from weight_and_bias(f"{source}.{norm}", f"{target}.norm")
    channels = shapes[f"{source}.{norm}.weight"][0]
    for k, part in enumerate(joint):
        yield from _rows(f"{source}.{part}", f"{target}.query_key_value", range(k * channels, (k + 1) * channels))
    yield Link(f"{source}.{last}.weight", lambda weight: [Piece(f"{target}.out.weight", weight.flatten(1))])
    yield unchanged(f"{source}.{last}.bias", f"{target}.out.bias")


def _rows(source: str, target: str, rows: range) -> list[Link]:
    """Link a linear layer, or a 1x1 convolution, to some rows of ours."""
    places = tuple(rows)

    def weights(weight: Tensor) -> list[Piece]:
        return [Piece(f"{target}.weight", weight.flatten(1), places)]

    def biases(bias: Tensor) -> list[Piece]:
        return [Piece(f"{target}.bias", bias.unsqueeze(1), places)]

    return [Link(f"{source}.weight", weights), Link(f"{source}.bias", biases)]
