"""Checkpoints of Open-MAGVIT2 for images and video, with LFQ (github.com/TencentARC/SEED-Voken).

Widths, depths, bits and strides are read from the names and shapes of the tensors.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from smalti.errors import IntegrityError
from smalti.families.links import ForeignModel, Link, Piece, Shapes, convolution, weight_and_bias
from smalti.quantize import LFQConfig
from smalti.text import one_line
from smalti.tokenizer import OpenMagvit2Config


def recognise_network(shapes: Shapes, where: str) -> ForeignModel:
    """Return the config and the links of a network, by the names and shapes of its tensors.

    Raises IntegrityError where Open-MAGVIT2 builds no such network, or a part of it is missing.
    """
    try:
        video = "encoder.conv_in.conv_1.weight" in shapes
        conv = ".conv_1" if video else ""
        width = shapes[f"encoder.conv_in{conv}.weight"][0]
        levels = _count(shapes, "encoder.down")
        outs = [shapes[f"encoder.down.{i}.block.0.conv1{conv}.weight"][0] for i in range(levels)]
        # A video's upsampling makes 8 times the channels where it doubles time too, 4 times where it does not.
        ups = [shapes[f"decoder.up.{i}.upsample.conv1{conv}.weight"] for i in range(1, levels)]
        config = OpenMagvit2Config(
            quantizer=LFQConfig(bits=shapes[f"encoder.conv_out{conv}.weight"][0]),
            width=width,
            multipliers=tuple(out // width for out in outs),
            depth=_count(shapes, "encoder.mid_block"),
            time_kernel=3 if video else 1,
            time_strides=tuple(2 if out == 8 * inside else 1 for out, inside, *_ in ups) if video else (),
        )
    except KeyError as error:
        raise IntegrityError(f"{where}: tensor {error.args[0]} is missing; it is not whole") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise IntegrityError(f"{where}: no network that Open-MAGVIT2 builds ({one_line(error)[:120]})") from None
    links = [*_encoder(config), *_decoder(config)]
    return ForeignModel("Open-MAGVIT2 video" if video else "Open-MAGVIT2 image", config, links, [], [])


def _encoder(config: OpenMagvit2Config) -> Iterator[Link]:
    here, widths = _places("encoder.layers"), [config.width * m for m in config.multipliers]
    yield from _conv(config, "encoder.conv_in", "encoder.stem", bias=False)
    for i, width in enumerate(widths):
        yield from _level(config, f"encoder.down.{i}.block", here, widths[max(0, i - 1)] != width)
        if i < len(widths) - 1:
            yield from _conv(config, f"encoder.down.{i}.downsample", next(here))
    yield from _level(config, "encoder.mid_block", here, False)
    yield from weight_and_bias("encoder.norm_out", "encoder.norm")
    yield from _conv(config, "encoder.conv_out", "encoder.to_latent")


def _decoder(config: OpenMagvit2Config) -> Iterator[Link]:
    here, widths = _places("decoder.layers"), [config.width * m for m in config.multipliers]
    yield from _conv(config, "decoder.conv_in", "decoder.stem")
    yield from _level(config, "decoder.mid_block", here, False)
    for i in reversed(range(len(widths))):
        norm = next(here)
        for part in ("gamma", "beta"):
            yield from weight_and_bias(f"decoder.adaptive.{i}.{part}", f"{norm}.{part}")
        yield from _level(config, f"decoder.up.{i}.block", here, widths[min(i + 1, len(widths) - 1)] != widths[i])
        if i:
            up = _conv(config, f"decoder.up.{i}.upsample.conv1", f"{next(here)}.conv")
            yield from (_pixel_last(link, config.strides[i - 1][0]) for link in up)
    yield from weight_and_bias("decoder.norm_out", "decoder.norm")
    yield from _conv(config, "decoder.conv_out", "decoder.to_pixels")


def _pixel_last(link: Link, time: int) -> Link:
    """Reorder the output channels of an upsampling: (time phase, pixel of the square, channel) there, (time phase,
    channel, pixel) here."""

    def into(tensor: Tensor) -> Iterable[Piece]:
        return link.into(tensor.unflatten(0, (time, 4, -1)).transpose(1, 2).flatten(0, 2))

    return Link(link.source, into)


def _level(config: OpenMagvit2Config, source: str, here: Iterator[str], changes_width: bool) -> Iterator[Link]:
    for j in range(config.depth):
        block, target = f"{source}.{j}", next(here)
        for k in (1, 2):
            yield from weight_and_bias(f"{block}.norm{k}", f"{target}.norm{k}")
            yield from _conv(config, f"{block}.conv{k}", f"{target}.conv{k}", bias=False)
        if changes_width and j == 0:
            yield from _conv(config, f"{block}.nin_shortcut", f"{target}.skip", bias=False)


def _conv(config: OpenMagvit2Config, source: str, target: str, *, bias: bool = True) -> list[Link]:
    if config.time_kernel > 1:
        return convolution(f"{source}.conv_1", target, dims=3, bias=bias)
    return convolution(source, target, dims=2, bias=bias)


def _count(shapes: Shapes, stack: str) -> int:
    places = {name[len(stack) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{stack}.")}
    return 1 + max(int(place) for place in places)


def _places(layers: str) -> Iterator[str]:
    i = 0
    while True:
        yield f"{layers}.{i}"
        i += 1
