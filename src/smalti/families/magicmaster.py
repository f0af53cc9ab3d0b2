"""Checkpoints of MagicMaster: 2-D and 3-D MAGVIT-v2, FSQ or DSQ, and VQGAN (github.com/ZhichengHuang/MagicMaster).

Widths, depths, strides and kernels are read from the names and shapes of the tensors; only FSQ levels are not in them.
Its oddities are kept: the norms and the convolution at the end of the encoder, and the norm at the end of the
decoder, are stored but never run; the 15,360 codes of DSQ are 25,600, for channel 5 uses the bins of channel 2.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from smalti.errors import ConfigError, IntegrityError
from smalti.families.family import Checkpoint, Family, ImportOptions
from smalti.families.links import (
    CheckpointWeights,
    ForeignModel,
    Link,
    Shapes,
    channel_rows,
    channel_values,
    convolution,
    layer_names,
    phase_first,
    pointwise,
    unchanged,
    weight_and_bias,
)
from smalti.quantize import DSQConfig, FSQConfig
from smalti.text import one_line
from smalti.tokenizer import TokenizerConfig, VQGANConfig

DSQ_PLACES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "64000": {"lqt_8": (0, 1, 2), "lqt_5": (3, 4, 5)},
    "15360": {"lqt_8": (0, 1), "lqt_5": (2, 5), "lqt_4": (3, 4)},
}
"""Channels that each group of learned bins serves; `lqt_3` of the latter is stored and never used."""
LEVELS: Mapping[int, tuple[int, ...]] = {64_000: (8, 8, 8, 5, 5, 5), 15_360: (8, 8, 5, 4, 4, 3)}
"""FSQ levels by the number of codes that the names of its configs and files give."""
QUIRK = "DSQ 15,360 has 25,600 codes: MagicMaster sends channel 5 through the 5 bins of channel 2, in training too"


class _Layer(NamedTuple):
    """A layer that is run."""

    kind: str
    """block, down, up, adaptive or tail (stored but never run)."""
    name: str


_NETWORKS: Mapping[CheckpointWeights, tuple[str, ...]] = {
    "average": ("generator_ema.module.", "generator_ema."),
    "live": ("generator.module.", "generator."),
}
"""Prefixes of the two networks in a file of the trainer."""
_OTHERS = {
    "generator_ema.": "the averaged generator, or its counter",
    "generator.": "the live generator",
    "discriminator.": "the discriminator",
    "perceptual_loss.": "LPIPS",
}
"""Parts of a file of the trainer, by their prefixes."""


def recognise(
    shapes: Shapes, config: str, levels: tuple[int, ...] | None, weights: CheckpointWeights, path: Path
) -> ForeignModel:
    """Recognise a whole or stripped checkpoint, or a bare generator, by the names and shapes of its tensors.

    `config` is the text of the training's config in the file; FSQ levels are those in it, else `levels`, else those of
    a published file's name. Raises IntegrityError where the file is of another program or not whole, ConfigError where
    levels are needed and not known.
    """
    prefix, copy = _prefix(shapes, weights, path)
    generator = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    own = fsq_levels(config)
    by_name = None if own or levels else _levels_of_name(path.name)
    model = recognise_generator(generator, own or levels or by_name, str(path))
    notes = list(model.notes)
    if by_name and model.config.quantizer.kind == "fsq":
        notes.append(f"its FSQ levels are not in it; its name says {math.prod(by_name):,} codes")
    ignored = {"stored but never run by MagicMaster": [prefix + name for name in model.unused]}
    for name in sorted(shapes):
        if not name.startswith(prefix):
            reason = next((text for start, text in _OTHERS.items() if name.startswith(start)), "no part of a generator")
            ignored.setdefault(reason, []).append(name)
    known = {link.source for link in model.links} | set(model.unused)
    ignored["not known to MagicMaster's networks"] = [prefix + name for name in sorted(generator.keys() - known)]
    return model._replace(prefix=prefix, copy=copy, notes=notes, ignored=ignored)


def recognise_generator(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> ForeignModel:
    """Recognise a generator by the names and shapes of its tensors. `levels` are FSQ's.

    Raises IntegrityError where MagicMaster builds no such network, ConfigError where levels are needed and not known.
    """
    try:
        if "encoder._in_conv.weight" in shapes:
            return _recognise_vqgan(shapes, levels, where)
        return _recognise_magvit(shapes, levels, where)
    except KeyError as error:
        raise IntegrityError(f"{where}: tensor {error.args[0]} is missing; it is not whole") from None
    except (IndexError, ValueError, StopIteration, ZeroDivisionError) as error:
        raise IntegrityError(f"{where}: no network that MagicMaster can build ({one_line(error)[:120]})") from None


def _prefix(shapes: Shapes, weights: CheckpointWeights, path: Path) -> tuple[str, Literal["average", "live", "bare"]]:
    """Find what stands before the names of the generator, and which copy of the weights that is."""
    starts = ("encoder.conv_in.", "encoder._in_conv.")
    copies: tuple[CheckpointWeights, ...] = ("average", "live") if weights == "average" else ("live",)
    for copy in copies:
        for prefix in _NETWORKS[copy]:
            if any(name.startswith(tuple(prefix + start for start in starts)) for name in shapes):
                return prefix, copy
    if any(name.startswith(starts) for name in shapes):
        return "", "bare"
    roots = ", ".join(sorted({name.split(".")[0] for name in shapes})[:6]) or "no tensors"
    raise IntegrityError(f"{path}: not a checkpoint of MagicMaster, the one family that is known here (it has {roots})")


def _levels_of_name(name: str) -> tuple[int, ...] | None:
    """Find FSQ levels by a name as magvit_fsq_imagenet1k_style2_d128_64000_128x128_8x8_ep20-04cd7358.pth."""
    levels = [levels for codes, levels in LEVELS.items() if f"_{codes}_" in name]
    return levels[0] if len(levels) == 1 else None


def _recognise_magvit(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> ForeignModel:
    """Return the config and the links of a MAGVIT-v2 generator. Raises IntegrityError for another layout."""
    dims = len(shapes["encoder.conv_in.conv.weight"]) - 2
    encoder = list(_layers_of(shapes, "encoder.encoder_layers"))
    decoder = list(_layers_of(shapes, "decoder.decoder_layers"))
    kinds = [layer.kind for layer in decoder]
    middle = kinds.index("adaptive") if "adaptive" in kinds else 0
    widths, depths = _levels(shapes, encoder, "down")
    widths_out, depths_out = _levels(shapes, decoder[middle:], "up")
    strides = _strides(shapes, decoder)[::-1]
    if widths != widths_out[::-1] or len(strides) != len(widths) - 1 or depths[-1] < middle:
        raise IntegrityError(f"{where}: its encoder and decoder do not mirror each other; no MAGVIT-v2 of MagicMaster")
    quantizer, quantizer_links, unused, notes = _read_quantizer(shapes, levels, where)
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
        *pointwise("quantizer.project_in", "encoder.to_latent.now"),
        *quantizer_links,
        *pointwise("quantizer.project_out", "decoder.from_codes.now"),
        *_half(shapes, decoder, "decoder.layers", dims),
        *convolution("decoder.conv_out.conv", "decoder.to_pixels", dims=dims),
    ]
    tails = [layer.name for layer in (*encoder, *decoder) if layer.kind == "tail"]
    unused = unused + [name for name in shapes if any(name.startswith(f"{tail}.") for tail in tails)]
    return ForeignModel("MAGVIT-v2", config, links, unused, notes)


def _layers_of(names: Iterable[str], stack: str) -> Iterator[_Layer]:
    """Yield the layers of one half in the order of execution, stacks of blocks block by block."""
    places = [name[len(stack) + 1 :].split(".") for name in names if name.startswith(f"{stack}.")]
    for i in sorted({int(place[0]) for place in places}):
        inside = [place[1:] for place in places if place[0] == str(i)]
        parts = {place[0] for place in inside}
        if "_residual" in parts:
            yield _Layer("block", f"{stack}.{i}")
        elif "_conv" in parts:
            yield _Layer("down", f"{stack}.{i}")
        elif "net" in parts:
            yield _Layer("up", f"{stack}.{i}")
        elif "linear" in parts:
            yield _Layer("adaptive", f"{stack}.{i}")
        elif any(len(place) > 1 and place[1] == "_residual" for place in inside):
            yield from (_Layer("block", f"{stack}.{i}.{j}") for j in sorted(int(part) for part in parts))
        else:
            yield _Layer("tail", f"{stack}.{i}")


def fsq_levels(config: str) -> tuple[int, ...] | None:
    """Find the FSQ levels in the text of a MagicMaster config; None if it has none."""
    match = re.search(r"quantizer=dict\([^()]*?levels=[\[(]([\d,\s]+)[\])]", config)
    return tuple(int(level) for level in match[1].split(",") if level.strip()) if match else None


def _levels(shapes: Shapes, layers: Sequence[_Layer], between: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the channels and the number of blocks of each level, in the order of execution."""
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


def _strides(shapes: Shapes, decoder: Sequence[_Layer]) -> list[tuple[int, int]]:
    """Return (time, space) of each upsampling: it has 4 or 8 times as many channels out as in."""
    kernels = [shapes[f"{name}.net.0.conv.weight"] for kind, name in decoder if kind == "up"]
    return [(kernel[0] // kernel[1] // 4, 2) for kernel in kernels]


def _half(shapes: Shapes, layers: Sequence[_Layer], target: str, dims: int) -> list[Link]:
    links: list[Link] = []
    for i, (kind, source) in enumerate(layer for layer in layers if layer.kind != "tail"):
        here = f"{target}.{i}"
        if kind == "block":
            links += _residual_block(shapes, source, here, dims=dims, wrapped=".conv")
        elif kind == "down":
            links += convolution(f"{source}._conv.conv", here, dims=dims)
        elif kind == "adaptive":
            links += pointwise(f"{source}.linear", f"{here}.modulation")
        else:
            time, _ = _strides(shapes, [_Layer(kind, source)])[0]
            links += phase_first(convolution(f"{source}.net.0.conv", f"{here}.conv", dims=dims), time, 4)
    return links


def _residual_block(shapes: Shapes, source: str, target: str, *, dims: int, wrapped: str) -> list[Link]:
    """Link a residual block; `wrapped` is the end of its convolutions' names (".conv" for causal ones)."""
    first, second = f"{source}._residual.2{wrapped}", f"{source}._residual.5{wrapped}"
    widens = shapes[f"{first}.weight"][1] != shapes[f"{second}.weight"][0]
    return [
        *weight_and_bias(f"{source}._residual.0", f"{target}.norm1"),
        *convolution(first, f"{target}.conv1", dims=dims),
        *weight_and_bias(f"{source}._residual.3", f"{target}.norm2"),
        *convolution(second, f"{target}.conv2", dims=dims),
        *(convolution(f"{source}._shortcut{wrapped}", f"{target}.skip", dims=dims) if widens else []),
    ]


class _Quantizer(NamedTuple):
    """Quantizer of a foreign generator."""

    config: FSQConfig | DSQConfig
    links: list[Link]
    unused: list[str]
    notes: list[str]


def _read_quantizer(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> _Quantizer:
    """Read FSQ with `levels`, or DSQ with the levels that its learned bins have.

    Raises ConfigError where FSQ levels are needed and not given, IntegrityError where they do not fit.
    """
    channels = shapes["quantizer.project_in.weight"][0]
    groups = {name.split(".")[1] for name in shapes if name.startswith("quantizer.lqt_")}
    if not groups:
        if levels is None:
            raise ConfigError(f"{where}: does not say its FSQ levels; give them, as in `levels` 8,8,8,5,5,5")
        if len(levels) != channels:
            raise ConfigError(f"{where}: its FSQ has {channels} channels, and `levels` has {len(levels)}")
        return _Quantizer(FSQConfig(levels=levels), [], [], [])
    places = DSQ_PLACES["15360" if "lqt_4" in groups else "64000"]
    links, bins = list[Link](), dict[int, int]()
    for group, rows_of in places.items():
        source = f"quantizer.{group}"
        bins |= dict.fromkeys(rows_of, shapes[f"{source}.a"][1])
        links.append(channel_rows(f"{source}.a", "quantizer.widths", rows_of))
        for part, target in (("start", "start"), ("scale1", "scale_in"), ("scale2", "scale_out"), ("bias", "bias")):
            links.append(channel_values(f"{source}.{part}", f"quantizer.{target}", rows_of))
    if set(bins) != set(range(channels)):
        raise IntegrityError(f"{where}: its bins serve {len(bins)} channels, and it has {channels}")
    unused = [name for name in shapes if name.startswith("quantizer.lqt_3.")] if "lqt_4" in groups else []
    quantizer = DSQConfig(levels=tuple(bins[j] + 1 for j in range(channels)))
    return _Quantizer(quantizer, links, unused, [QUIRK] if unused else [])


def _recognise_vqgan(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> ForeignModel:
    """Return the config and the links of a VQGAN generator."""
    width = shapes["encoder._in_conv.weight"][0]
    count = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder._layers."))
    outs = [shapes[f"encoder._layers.{i}._residuals.0._residual.2.weight"][0] for i in range(count)]
    quantizer, links, unused, notes = _read_quantizer(shapes, levels, where)
    config = VQGANConfig(
        quantizer=quantizer,
        width=width,
        multipliers=tuple(out // width for out in outs),
        depth=_blocks(shapes, "encoder"),
        decoder_depth=_blocks(shapes, "decoder"),
        latent=shapes["post_encoder._conv.weight"][0],
    )
    links = [*links, *_encoder(shapes, config, count), *_decoder(shapes, config, count)]
    return ForeignModel("VQGAN", config, links, unused, notes)


def _blocks(shapes: Shapes, half: str) -> int:
    first = f"{half}._layers.0._residuals."
    return 1 + max(int(name[len(first) :].split(".")[0]) for name in shapes if name.startswith(first))


def _encoder(shapes: Shapes, config: VQGANConfig, count: int) -> Iterator[Link]:
    yield from convolution("encoder._in_conv", "encoder.stem", dims=2)
    here = layer_names("encoder.layers")
    for i in range(count):
        yield from _level(shapes, f"encoder._layers.{i}", here, config.depths[0], attention=i == count - 1)
        if i < count - 1:
            yield from weight_and_bias(f"encoder._resamples.{i}._conv", f"{next(here)}.conv")
    yield from _refine(shapes, "encoder._refine", here)
    yield from weight_and_bias("encoder._projector.0", "encoder.norm")
    yield from convolution("encoder._projector.2", "encoder.head", dims=2)
    yield from convolution("post_encoder._conv", "encoder.project", dims=2)
    yield from pointwise("quantizer.project_in", "encoder.to_latent.now")


def _decoder(shapes: Shapes, config: VQGANConfig, count: int) -> Iterator[Link]:
    yield from pointwise("quantizer.project_out", "decoder.from_codes.now")
    yield from convolution("pre_decoder._conv", "decoder.project", dims=2)
    yield from convolution("decoder._in_conv", "decoder.stem", dims=2)
    here = layer_names("decoder.layers")
    yield from _refine(shapes, "decoder._refine", here)
    for i in range(count):
        yield from _level(shapes, f"decoder._layers.{i}", here, config.decoder_depths[0], attention=i == 0)
        if i < count - 1:
            yield from weight_and_bias(f"decoder._resamples.{i}._conv", f"{next(here)}.conv")
    yield from weight_and_bias("decoder._projector.0", "decoder.norm")
    yield from convolution("decoder._projector.2", "decoder.to_pixels", dims=2)


def _level(shapes: Shapes, source: str, here: Iterator[str], depth: int, *, attention: bool) -> Iterator[Link]:
    for j in range(depth):
        yield from _residual_block(shapes, f"{source}._residuals.{j}", next(here), dims=2, wrapped="")
        if attention:
            yield from _attention(f"{source}._attentions.{j}", next(here))


def _refine(shapes: Shapes, source: str, here: Iterator[str]) -> Iterator[Link]:
    yield from _residual_block(shapes, f"{source}.0", next(here), dims=2, wrapped="")
    yield from _attention(f"{source}.1", next(here))
    yield from _residual_block(shapes, f"{source}.2", next(here), dims=2, wrapped="")


def _attention(source: str, target: str) -> Iterator[Link]:
    yield from weight_and_bias(f"{source}._group_norm", f"{target}.norm")
    joint = f"{source}._multihead_attention.in_proj"
    for part in ("weight", "bias"):
        yield unchanged(f"{joint}_{part}", f"{target}.query_key_value.{part}")
    yield from weight_and_bias(f"{source}._multihead_attention.out_proj", f"{target}.out")


def _recognises(checkpoint: Checkpoint) -> bool:
    stacks = ("encoder.encoder_layers.", "decoder.decoder_layers.", "encoder._layers.", "decoder._layers.")
    return any(stack in name for name in checkpoint.shapes for stack in stacks)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    meta = checkpoint.tree.get("meta") if isinstance(checkpoint.tree, dict) else None
    text = meta.get("cfg") if isinstance(meta, dict) else None
    path = Path(checkpoint.where)
    model = recognise(checkpoint.shapes, text if isinstance(text, str) else "", options.levels, options.weights, path)
    return model._replace(licence="Apache-2.0", preprocessing="short side resized to 128 px or more, centre crop")


MAGICMASTER = Family(
    name="magicmaster",
    title="MagicMaster",
    sign="encoder.encoder_layers.*, or encoder._in_conv",
    recognises=_recognises,
    read=_read,
)
