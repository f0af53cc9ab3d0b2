"""Checkpoints of VidTok's models with FSQ, version 1.0 and 1.1, causal or not, and diffusers' `AutoencoderVidTok`
(github.com/microsoft/VidTok).

Widths, depths, levels of halving and FSQ channels are read from the names and shapes of the tensors; so is whether it
is causal, for then its convolutions over time stand inside a module of their own (`conv`). The version of a causal one
is not in them; the others have one. FSQ has 8 levels per channel.
"""

import re
from collections.abc import Iterator
from typing import Literal, cast, get_args

from smalti.errors import ConfigError, IntegrityError
from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.links import (
    ForeignModel,
    Link,
    Shapes,
    attention,
    convolution,
    layer_names,
    unchanged,
    weight_and_bias,
)
from smalti.quantize import FSQConfig
from smalti.text import one_line
from smalti.tokenizer import VidTokConfig
from smalti.tokenizer_info import SourceIds

VidTokVersion = Literal["1.0", "1.1"]


def vidtok_network(shapes: Shapes, version: VidTokVersion, where: str) -> ForeignModel:
    """Return the config and the links of a network of that version, by the names and shapes of its tensors.

    Raises IntegrityError where VidTok builds no network with FSQ of this kind, or a part of it is missing.
    """
    inner = _inner(shapes)
    try:
        width, codes = shapes[f"encoder.conv_in{inner}.weight"][0], shapes[f"decoder.conv_in{inner}.weight"][1]
        if shapes[f"encoder.conv_out{inner}.weight"][0] != codes:
            raise IntegrityError(f"{where}: a VidTok model with a KL latent, which has no tokens; take one with FSQ")
        # Counted, not the highest number: a name can claim any.
        levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
        blocks = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
        config = VidTokConfig(
            quantizer=FSQConfig(levels=(8,) * codes),
            width=width,
            multipliers=tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] // width for i in range(levels)),
            depth=len(blocks),
            time_down=_levels_with(shapes, "encoder.down_temporal", "downsample", levels),
            time_up=_levels_with(shapes, "decoder.up_temporal", "upsample", levels),
            start="around" if not inner else "zero" if version == "1.0" else "repeat",
            interpolation="nearest" if version == "1.0" else "linear",
        )
    except KeyError as error:
        raise IntegrityError(f"{where}: tensor {error.args[0]} is missing; it is not whole") from None
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise IntegrityError(f"{where}: no network that VidTok builds ({one_line(error)[:120]})") from None
    links = [*_encoder(config, inner), *_decoder(config, inner)]
    kind = f"{version} FSQ" if inner else f"{version} FSQ, not causal"
    return ForeignModel(kind, config, links, [], [], version=version)


def _inner(shapes: Shapes) -> str:
    """Return what the convolutions over time of a network have behind their names: `.conv`, but none if not causal."""
    return "" if "encoder.conv_in.weight" in shapes and "encoder.conv_in.conv.weight" not in shapes else ".conv"


def _levels_with(shapes: Shapes, stack: str, part: str, levels: int) -> tuple[int, ...]:
    return tuple(i for i in range(levels) if f"{stack}.{i}.{part}.mix_factor" in shapes)


def _encoder(config: VidTokConfig, inner: str) -> Iterator[Link]:
    here, widths = layer_names("encoder.layers"), [config.width * m for m in config.multipliers]
    yield from convolution(f"encoder.conv_in{inner}", "encoder.stem", dims=3)
    for i, width in enumerate(widths):
        changes_width = width != (widths[i - 1] if i else config.width)
        yield from _level("encoder.down", i, here, config.depth, changes_width, inner)
        if i < len(widths) - 1:
            yield from weight_and_bias(f"encoder.down.{i}.downsample.conv", f"{next(here)}.conv")
        if i in config.time_down:
            yield from _resampling(f"encoder.down_temporal.{i}.downsample", next(here), inner)
    yield from _middle("encoder.mid", here, widths[-1], inner)
    yield from weight_and_bias("encoder.norm_out.norm", "encoder.norm")
    yield from convolution(f"encoder.conv_out{inner}", "encoder.to_latent", dims=3)


def _decoder(config: VidTokConfig, inner: str) -> Iterator[Link]:
    here, widths = layer_names("decoder.layers"), [config.width * m for m in config.multipliers]
    yield from convolution(f"decoder.conv_in{inner}", "decoder.stem", dims=3)
    yield from _middle("decoder.mid", here, widths[-1], inner)
    for i in reversed(range(len(widths))):
        changes_width = widths[min(i + 1, len(widths) - 1)] != widths[i]
        yield from _level("decoder.up", i, here, config.depth + 1, changes_width, inner)
        if i:
            yield from weight_and_bias(f"decoder.up.{i}.upsample.conv", f"{next(here)}.conv")
        if i in config.time_up:
            yield from _resampling(f"decoder.up_temporal.{i}.upsample", next(here), inner)
    yield from weight_and_bias("decoder.norm_out.norm", "decoder.norm")
    yield from convolution(f"decoder.conv_out{inner}", "decoder.to_pixels", dims=3)


def _level(stack: str, i: int, here: Iterator[str], depth: int, changes_width: bool, inner: str) -> Iterator[Link]:
    for j in range(depth):
        block, target = f"{stack}.{i}.block.{j}", next(here)
        yield from _block(block, target, dims=2, inner="")
        if changes_width and j == 0:
            yield from convolution(f"{block}.nin_shortcut", f"{target}.skip", dims=2)
        yield from _block(f"{stack}_temporal.{i}.block.{j}", next(here), dims=1, inner=inner)


def _middle(source: str, here: Iterator[str], width: int, inner: str) -> Iterator[Link]:
    yield from _block(f"{source}.block_1", next(here), dims=3, inner=inner)
    target = next(here)
    yield from weight_and_bias(f"{source}.attn_1.norm.norm", f"{target}.norm")
    yield from attention(f"{source}.attn_1", target, width, names=("q", "k", "v", "proj_out"), inner=inner)
    yield from _block(f"{source}.block_2", next(here), dims=3, inner=inner)


def _block(source: str, target: str, *, dims: int, inner: str) -> Iterator[Link]:
    for k in (1, 2):
        yield from weight_and_bias(f"{source}.norm{k}.norm", f"{target}.norm{k}")
        yield from convolution(f"{source}.conv{k}{inner}", f"{target}.conv{k}", dims=dims)


def _resampling(source: str, target: str, inner: str) -> Iterator[Link]:
    yield unchanged(f"{source}.mix_factor", f"{target}.mix")
    yield from convolution(f"{source}.conv{inner}", f"{target}.conv", dims=3)


_SIGN = "encoder.down_temporal.0.block.0.norm1.norm.weight"
_DIFFUSERS = "AutoencoderVidTok"


def _recognises(checkpoint: Checkpoint) -> bool:
    return any("coder.down_temporal." in name or "coder.up_temporal." in name for name in checkpoint.shapes)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    shapes = shapes_of(network, checkpoint.shapes)
    version, notes = _version(checkpoint, options) if _inner(shapes) else (get_args(VidTokVersion)[0], [])
    model = vidtok_network(shapes, version, checkpoint.where)
    return model._replace(
        notes=notes,
        names=network.names,
        copy=network.copy,
        licence="MIT",
        preprocessing="resized to cover, centre crop, 3 frames a second in training",
        ids=SourceIds(layout="grid"),
    )


def _version(checkpoint: Checkpoint, options: ImportOptions) -> tuple[VidTokVersion, list[str]]:
    """Find the version: that of diffusers' class, the option's, or that of a published name. Raises ConfigError where
    none says it, or where the option is none of VidTok's."""
    if checkpoint.config.get("_class_name") == _DIFFUSERS:
        return "1.1", [f"version 1.1, the arithmetic of diffusers' {_DIFFUSERS}; its own tiles and chunks are not"]
    if options.version is not None:
        if options.version not in get_args(VidTokVersion):
            raise ConfigError(f"version {options.version}: VidTok has 1.0 and 1.1")
        return cast(VidTokVersion, options.version), []
    match = re.search(r"vidtok_fsq_\w*?(_v1_1)?\.\w+$", checkpoint.file_name)
    if match is None:
        raise ConfigError(
            f"{checkpoint.where}: VidTok 1.0 and 1.1 have the same tensors and other arithmetic; say which it is with"
            " version=1.0 or version=1.1, as NAME:version=1.1"
        )
    version: VidTokVersion = "1.1" if match[1] else "1.0"
    return version, [f"version {version}, by its name"]


VIDTOK = Family(
    name="vidtok",
    title="VidTok",
    sign="encoder.down_temporal.*, decoder.up_temporal.*",
    recognises=_recognises,
    read=_read,
    published=(Published("microsoft/VidTok", "MIT"),),
    parts=("encoder.", "decoder.", "regularization."),
    others={"loss.": "the discriminator, or LPIPS"},
)
