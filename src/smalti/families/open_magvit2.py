"""Checkpoints of Open-MAGVIT2 for images and video, with LFQ (github.com/TencentARC/SEED-Voken).

Widths, depths, bits and strides are read from the names and shapes of the tensors.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from smalti.errors import IntegrityError
from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.links import ForeignModel, Link, Piece, Shapes, convolution, layer_names, weight_and_bias
from smalti.quantize import LFQConfig
from smalti.text import one_line
from smalti.tokenizer import OpenMagvit2Config
from smalti.tokenizer_info import SourceIds


def open_magvit2_network(shapes: Shapes, where: str) -> ForeignModel:
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
    here, widths = layer_names("encoder.layers"), [config.width * m for m in config.multipliers]
    yield from _conv(config, "encoder.conv_in", "encoder.stem", bias=False)
    for i, width in enumerate(widths):
        yield from _level(config, f"encoder.down.{i}.block", here, widths[max(0, i - 1)] != width)
        if i < len(widths) - 1:
            yield from _conv(config, f"encoder.down.{i}.downsample", next(here))
    yield from _level(config, "encoder.mid_block", here, False)
    yield from weight_and_bias("encoder.norm_out", "encoder.norm")
    yield from _conv(config, "encoder.conv_out", "encoder.to_latent")


def _decoder(config: OpenMagvit2Config) -> Iterator[Link]:
    here, widths = layer_names("decoder.layers"), [config.width * m for m in config.multipliers]
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
    # Counted, not the highest number: a name can claim any.
    places = {name[len(stack) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{stack}.")}
    return len(places)


_SIGN = "encoder.mid_block.0.norm1.weight"


def _recognises(checkpoint: Checkpoint) -> bool:
    signs = ("encoder.mid_block.", "decoder.mid_block.", "decoder.adaptive.")
    behind = ("", *(name.removesuffix(_SIGN) for name in checkpoint.shapes if name.endswith(f".{_SIGN}")))
    return any(name.startswith(prefix + sign) for prefix in behind for sign in signs for name in checkpoint.shapes)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    model = open_magvit2_network(shapes_of(network, checkpoint.shapes), checkpoint.where)
    size = "17 frames of 128 px" if model.config.time_kernel > 1 else "128 or 256 px, as it was trained"
    return model._replace(
        names=network.names,
        copy=network.copy,
        licence="Apache-2.0",
        preprocessing=f"short side resized, centre crop, {size}",
        ids=SourceIds(layout="flat"),
    )


_HUB = "TencentARC/Open-MAGVIT2-Tokenizer"
_FILES = {
    f"{_HUB}-128-resolution": "imagenet_128_L.ckpt",
    f"{_HUB}-256-resolution": "imagenet_256_L.ckpt",
    f"{_HUB}-16384-Pretrain": "pretrain256_16384.ckpt",
    f"{_HUB}-262144-Pretrain": "pretrain256_262144.ckpt",
    f"{_HUB}-262144-Video": "video_128_262144.ckpt",
}

OPEN_MAGVIT2_FAMILY = Family(
    name="open-magvit2",
    title="Open-MAGVIT2",
    sign="encoder.mid_block.*, decoder.adaptive.*",
    recognises=_recognises,
    read=_read,
    files=tuple((name,) for name in _FILES.values()),
    published=tuple(Published(name, "Apache-2.0", files=(file,)) for name, file in _FILES.items()),
    parts=("encoder.", "decoder."),
    others={
        "loss.": "the discriminator, or LPIPS",
        "model_ema.": "EMA weights of something else, or their counter",
        "encoder.": "the live network",
        "decoder.": "the live network",
    },
)
