"""MagicMaster's VQGAN generators: images, 16x16 strides, attention at the smallest resolution, FSQ."""

from collections.abc import Iterator

from smalti.families.links import Link, convolution, copied, whole
from smalti.families.links import projection as projected
from smalti.families.magicmaster import Found, Shapes, block, quantizer_of
from smalti.tokenizer import VQGANConfig


def recognise(shapes: Shapes, levels: tuple[int, ...] | None, where: str) -> Found:
    """The config and the links of a VQGAN generator. `levels` are FSQ's; raises as `magicmaster.recognise` does."""
    width = shapes["encoder._in_conv.weight"][0]
    count = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder._layers."))
    outs = [shapes[f"encoder._layers.{i}._residuals.0._residual.2.weight"][0] for i in range(count)]
    quantizer, links, unused, notes = quantizer_of(shapes, levels, where)
    config = VQGANConfig(
        quantizer=quantizer,
        width=width,
        multipliers=tuple(out // width for out in outs),
        depth=_blocks(shapes, "encoder"),
        decoder_depth=_blocks(shapes, "decoder"),
        latent=shapes["post_encoder._conv.weight"][0],
    )
    links = [*links, *_encoder(shapes, config, count), *_decoder(shapes, config, count)]
    return Found(config, links, unused, notes)


def _blocks(shapes: Shapes, half: str) -> int:
    first = f"{half}._layers.0._residuals."
    return 1 + max(int(name[len(first) :].split(".")[0]) for name in shapes if name.startswith(first))


def _encoder(shapes: Shapes, config: VQGANConfig, count: int) -> Iterator[Link]:
    yield from convolution("encoder._in_conv", "encoder.stem", dims=2)
    here = _places("encoder.layers")
    for i in range(count):
        yield from _level(shapes, f"encoder._layers.{i}", here, config.depth, attention=i == count - 1)
        if i < count - 1:
            yield from copied(f"encoder._resamples.{i}._conv", f"{next(here)}.conv")
    yield from _refine(shapes, "encoder._refine", here)
    yield from copied("encoder._projector.0", "encoder.norm")
    yield from convolution("encoder._projector.2", "encoder.head", dims=2)
    yield from convolution("post_encoder._conv", "encoder.project", dims=2)
    yield from projected("quantizer.project_in", "encoder.to_latent.now")


def _decoder(shapes: Shapes, config: VQGANConfig, count: int) -> Iterator[Link]:
    yield from projected("quantizer.project_out", "decoder.from_codes.now")
    yield from convolution("pre_decoder._conv", "decoder.project", dims=2)
    yield from convolution("decoder._in_conv", "decoder.stem", dims=2)
    here = _places("decoder.layers")
    yield from _refine(shapes, "decoder._refine", here)
    for i in range(count):
        yield from _level(shapes, f"decoder._layers.{i}", here, config.decoder_depth, attention=i == 0)
        if i < count - 1:
            yield from copied(f"decoder._resamples.{i}._conv", f"{next(here)}.conv")
    yield from copied("decoder._projector.0", "decoder.norm")
    yield from convolution("decoder._projector.2", "decoder.to_pixels", dims=2)


def _places(layers: str) -> Iterator[str]:
    i = 0
    while True:
        yield f"{layers}.{i}"
        i += 1


def _level(shapes: Shapes, theirs: str, here: Iterator[str], depth: int, *, attention: bool) -> Iterator[Link]:
    for j in range(depth):
        yield from block(shapes, f"{theirs}._residuals.{j}", next(here), dims=2, wrapped="")
        if attention:
            yield from _attention(f"{theirs}._attentions.{j}", next(here))


def _refine(shapes: Shapes, theirs: str, here: Iterator[str]) -> Iterator[Link]:
    yield from block(shapes, f"{theirs}.0", next(here), dims=2, wrapped="")
    yield from _attention(f"{theirs}.1", next(here))
    yield from block(shapes, f"{theirs}.2", next(here), dims=2, wrapped="")


def _attention(theirs: str, ours: str) -> Iterator[Link]:
    yield from copied(f"{theirs}._group_norm", f"{ours}.norm")
    joint = f"{theirs}._multihead_attention.in_proj"
    for part in ("weight", "bias"):
        yield whole(f"{joint}_{part}", f"{ours}.query_key_value.{part}")
    yield from copied(f"{theirs}._multihead_attention.out_proj", f"{ours}.out")
