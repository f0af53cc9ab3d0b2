"""Checkpoints of the discrete Cosmos tokenizers: DI for images, DV for video (github.com/NVIDIA/Cosmos-Tokenizer).

They are TorchScript archives, read as data: `encoder.jit` and `decoder.jit`, or `autoencoder.jit` with both. Widths,
depths and the patch are read from the names and shapes of the tensors; the strides of a video model are not in them,
because every level stores the convolutions of a halving, used or not.
"""

import math
import re
from collections.abc import Iterator

from smalti.errors import ConfigError, IntegrityError
from smalti.families.family import Checkpoint, Family, ImportOptions, Published
from smalti.families.links import (
    ForeignModel,
    Link,
    Piece,
    Shapes,
    attention,
    convolution,
    layer_names,
    unchanged,
    weight_and_bias,
)
from smalti.quantize import FSQConfig
from smalti.text import one_line
from smalti.tokenizer import CosmosConfig
from smalti.tokenizer_info import SourceIds

COSMOS_LEVELS = (8, 8, 8, 5, 5, 5)
"""FSQ levels of all that is published."""


def cosmos_network(
    shapes: Shapes, compression: tuple[int, int, int] | None, levels: tuple[int, ...], where: str
) -> ForeignModel:
    """Return the config and the links of a network, by the names and shapes of its tensors.

    `compression` = (frames, height, width) in pixels of one token is that of a video model; an image model says it.
    Raises IntegrityError where Cosmos builds no such network, or a part of it is missing.
    """
    try:
        config = _config(shapes, compression, levels)
    except KeyError as error:
        raise IntegrityError(f"{where}: tensor {error.args[0]} is missing; it is not whole") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise IntegrityError(f"{where}: no network that Cosmos builds ({one_line(error)[:120]})") from None
    links, unused = [*_encoder(config), *_decoder(config)], []
    if config.time_kernel > 1:
        run = {link.source for link in links}
        unused = [name for name in shapes if (".downsample." in name or ".upsample." in name) and name not in run]
    return ForeignModel("DV" if config.time_kernel > 1 else "DI", config, links, unused, [])


def is_video(shapes: Shapes) -> bool:
    """Whether the names are those of a video model."""
    return "encoder.conv_in.0.conv3d.weight" in shapes


def _config(shapes: Shapes, compression: tuple[int, int, int] | None, fsq_levels: tuple[int, ...]) -> CosmosConfig:
    video = is_video(shapes)
    conv, inner = (".0.conv3d", ".conv3d") if video else ("", "")
    width, channels, *_ = shapes[f"encoder.conv_in{conv}.weight"]
    patch = round((channels / 3) ** (1 / (3 if video else 2)))
    # Counted, not the highest number: a name can claim any.
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
    blocks = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
    outs = [shapes[f"encoder.down.{i}.block.0.conv1{conv}.weight"][0] for i in range(levels)]
    if len(fsq_levels) != shapes[f"quant_conv{inner}.weight"][0]:
        raise ValueError(f"FSQ of {len(fsq_levels)} channels, where it has {shapes[f'quant_conv{inner}.weight'][0]}")
    if video:
        if compression is None:
            raise ValueError("a video model without its compression")
        strides, decoder_strides = video_strides(compression, patch, levels)
    else:
        strides, decoder_strides = _image_strides(shapes, levels)
    return CosmosConfig(
        quantizer=FSQConfig(levels=fsq_levels),
        width=width,
        multipliers=tuple(out // width for out in outs),
        depth=len(blocks),
        latent=shapes[f"quant_conv{inner}.weight"][1],
        patch=patch,
        time_kernel=3 if video else 1,
        strides=strides,
        decoder_strides=decoder_strides,
    )


_Strides = tuple[tuple[int, int], ...]


def video_strides(compression: tuple[int, int, int], patch: int, levels: int) -> tuple[_Strides, _Strides]:
    """Return the strides of the encoder and the decoder of a video model that has this compression.

    The encoder halves as early as it can. The decoder doubles time one level later than that, and space where it
    doubles time, or else at the head if space is compressed more than time. Raises ValueError where there is none.
    """
    time, space = (int(math.log2(size / patch)) for size in compression[:2])
    if compression[1] != compression[2] or (patch << time, patch << space) != compression[:2]:
        raise ValueError(f"a compression of {'x'.join(map(str, compression))} with patches of {patch}")
    down = [(2 if i < time else 1, 2 if i < space else 1) for i in range(levels - 1)]
    up = []
    for i in range(levels - 1):
        doubles = 0 < i < time + 1
        up.append((2 if doubles else 1, 2 if doubles or (i < space and space > time) else 1))
    return tuple(down), tuple(up)


def _image_strides(shapes: Shapes, levels: int) -> tuple[_Strides, _Strides]:
    down = tuple((1, 2 if f"encoder.down.{i}.downsample.conv.weight" in shapes else 1) for i in range(levels - 1))
    up = [(1, 2 if f"decoder.up.{i}.upsample.conv.weight" in shapes else 1) for i in reversed(range(1, levels))]
    return down, tuple(up)


def _encoder(config: CosmosConfig) -> Iterator[Link]:
    here, widths, video = layer_names("encoder.layers"), [config.width * m for m in config.multipliers], _video(config)
    yield from _conv("encoder.conv_in", "encoder.stem", video)
    for i, width in enumerate(widths):
        before = widths[i - 1] if i else config.width
        yield from _level(f"encoder.down.{i}.block", here, config.depth, before != width, video)
        if i < len(config.strides) and config.strides[i] != (1, 1):
            yield from _resampling(f"encoder.down.{i}.downsample", next(here), config.strides[i], video)
    yield from _middle("encoder.mid", here, widths[-1], video)
    yield from weight_and_bias("encoder.norm_out.norm" if video else "encoder.norm_out", "encoder.norm")
    yield from _conv("encoder.conv_out", "encoder.head", video)
    yield from _pointwise("quant_conv", "encoder.to_latent", video)


def _decoder(config: CosmosConfig) -> Iterator[Link]:
    here, widths, video = layer_names("decoder.layers"), [config.width * m for m in config.multipliers], _video(config)
    yield from _pointwise("post_quant_conv", "decoder.from_codes", video)
    yield from _conv("decoder.conv_in", "decoder.stem", video)
    yield from _middle("decoder.mid", here, widths[-1], video)
    for k, i in enumerate(reversed(range(len(widths)))):
        before = widths[min(i + 1, len(widths) - 1)]
        yield from _level(f"decoder.up.{i}.block", here, config.depth + 1, before != widths[i], video)
        if i and config.decoder_strides[k] != (1, 1):
            yield from _resampling(f"decoder.up.{i}.upsample", next(here), config.decoder_strides[k], video)
    yield from weight_and_bias("decoder.norm_out.norm" if video else "decoder.norm_out", "decoder.norm")
    yield from _conv("decoder.conv_out", "decoder.to_pixels", video)


def _level(source: str, here: Iterator[str], depth: int, changes_width: bool, video: bool) -> Iterator[Link]:
    for j in range(depth):
        block, target = f"{source}.{j}", next(here)
        yield from _block(block, target, video)
        if changes_width and j == 0:
            yield from _pointwise(f"{block}.nin_shortcut", f"{target}.skip", video)


def _middle(source: str, here: Iterator[str], width: int, video: bool) -> Iterator[Link]:
    yield from _block(f"{source}.block_1", next(here), video)
    names = ("q", "k", "v", "proj_out")
    for part in ("attn_1.0", "attn_1.1") if video else ("attn_1",):
        target = next(here)
        yield from weight_and_bias(f"{source}.{part}.norm.norm" if video else f"{source}.{part}.norm", f"{target}.norm")
        yield from attention(f"{source}.{part}", target, width, names=names, inner=".conv3d" if video else "")
    yield from _block(f"{source}.block_2", next(here), video)


def _block(source: str, target: str, video: bool) -> Iterator[Link]:
    for k in (1, 2):
        yield from weight_and_bias(f"{source}.norm{k}{'.norm' if video else ''}", f"{target}.norm{k}")
        yield from _conv(f"{source}.conv{k}", f"{target}.conv{k}", video)


def _resampling(source: str, target: str, strides: tuple[int, int], video: bool) -> Iterator[Link]:
    if not video:
        yield from weight_and_bias(f"{source}.conv", f"{target}.conv")
        return
    # A halving goes over space first, a doubling over time.
    is_halving = source.endswith("downsample")
    space, time = ("conv1", "conv2") if is_halving else ("conv2", "conv1")
    if strides[1] > 1 and is_halving:  # ours is a plain 2-D convolution
        inside = f"{source}.{space}.conv3d"
        yield Link(f"{inside}.weight", lambda x: [Piece(f"{target}.space.conv.weight", x.squeeze(2))])
        yield unchanged(f"{inside}.bias", f"{target}.space.conv.bias")
    elif strides[1] > 1:
        yield from convolution(f"{source}.{space}.conv3d", f"{target}.space", dims=3)
    if strides[0] > 1:
        yield from convolution(f"{source}.{time}.conv3d", f"{target}.time", dims=3)
    yield from convolution(f"{source}.conv3.conv3d", f"{target}.out", dims=3)


def _conv(source: str, target: str, video: bool) -> Iterator[Link]:
    if not video:
        yield from convolution(source, target, dims=2)
        return
    for k, part in enumerate(("space", "time")):
        yield from convolution(f"{source}.{k}.conv3d", f"{target}.{part}", dims=3)


def _pointwise(source: str, target: str, video: bool) -> list[Link]:
    return convolution(f"{source}.conv3d", target, dims=3) if video else convolution(source, target, dims=2)


def _video(config: CosmosConfig) -> bool:
    return config.time_kernel > 1


_CONSTANTS = ("wavelets", "_arange", "patch_size_buffer", "_levels", "_basis", "implicit_codebook")
"""Last parts of the names of buffers that its architecture gives."""


def _recognises(checkpoint: Checkpoint) -> bool:
    shapes = checkpoint.shapes
    if any(name.startswith(("encoder.conv_in.0.conv3d.", "post_quant_conv.conv3d.")) for name in shapes):
        return True
    pixels = shapes.get("encoder.conv_in.weight", (0, 0))[1:2] + shapes.get("decoder.conv_out.weight", (0,))[:1]
    return any(count in (12, 48, 192) for count in pixels) and not any(name.startswith("quantize.") for name in shapes)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    shapes, where = checkpoint.shapes, checkpoint.where
    halves = [half for half in ("encoder", "decoder") if any(name.startswith(f"{half}.") for name in shapes)]
    if len(halves) < 2:
        raise IntegrityError(f"{where}: the {halves[0]} alone; give the folder that holds encoder.jit and decoder.jit")
    stored = {name: tensor for name, tensor in checkpoint.tensors.items() if name.endswith("quantizer._levels")}
    levels = next((tuple(map(int, tensor.tolist())) for tensor in stored.values()), options.levels or COSMOS_LEVELS)
    channels = shapes.get("quant_conv.conv3d.weight", shapes.get("quant_conv.weight", (0,)))[0]
    if channels != len(levels):
        raise IntegrityError(f"{where}: {channels} channels of latents: a continuous model (CI, CV) has no tokens")
    strides, notes = _strides(checkpoint, options) if is_video(shapes) else (None, [])
    model = cosmos_network(shapes, strides, levels, where)
    constants = sorted(name for name in shapes if name.rpartition(".")[2] in _CONSTANTS)
    return model._replace(
        notes=[*notes, "its project computes in bfloat16, so that a few of its own ids differ from those in float32"],
        ignored={"constants of its architecture": constants},
        licence="NVIDIA Open Model License",
        preprocessing="any size, padded to multiples of 16; videos in windows of 17 frames, each on its own",
        ids=SourceIds(layout="grid"),
    )


def _strides(checkpoint: Checkpoint, options: ImportOptions) -> tuple[tuple[int, int, int], list[str]]:
    """Find the strides of a video model: the option's, or those of a published name. Raises ConfigError where neither
    says them."""
    if options.strides is not None:
        return options.strides, []
    matches = re.findall(r"DV(\d+)x(\d+)x(\d+)", checkpoint.repository or checkpoint.where)
    if not matches:
        raise ConfigError(
            f"{checkpoint.where}: the tensors of a Cosmos DV do not say how much it compresses; say it with"
            " strides=4x8x8 (8x8x8, 8x16x16), as NAME:strides=4x8x8"
        )
    time, height, width = map(int, matches[-1])
    return (time, height, width), [f"strides {time}x{height}x{width}, by its name"]


_MODELS = ("0.1-Tokenizer-DI8x8", "0.1-Tokenizer-DI16x16") + tuple(
    f"{version}-Tokenizer-DV{strides}"
    for version, strides in (("0.1", "4x8x8"), ("0.1", "8x8x8"), ("0.1", "8x16x16"), ("1.0", "8x16x16"))
)

COSMOS = Family(
    name="cosmos",
    title="Cosmos",
    sign="quant_conv with encoder.conv_in over 48 or 192 wavelet channels",
    recognises=_recognises,
    read=_read,
    files=(("encoder.jit", "decoder.jit"), ("autoencoder.jit",)),
    published=tuple(Published(f"nvidia/Cosmos-{model}", "NVIDIA Open Model License") for model in _MODELS),
    parts=("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
)
