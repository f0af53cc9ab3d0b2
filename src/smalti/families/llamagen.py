"""LlamaGen's VQ-16 and VQ-8, and Janus' (under `gen_vision_model.`): a VQGAN with a table found by its cosine."""

from smalti.families.family import Checkpoint, Family, ImportOptions, Published, find_network, shapes_of
from smalti.families.halves import (
    Half,
    HalfLevel,
    Layout,
    codebook_config,
    codebook_links,
    count,
    decoder_links,
    encoder_links,
    numbered,
    vqgan_config,
)
from smalti.families.links import ForeignModel, Shapes

_SIGN = "encoder.conv_blocks.0.res.0.conv1.weight"
_JANUS = "gen_vision_model."
_LICENCES = {False: "MIT", True: "DeepSeek model licence (its code: MIT)"}
_PREPROCESSING = {False: "256 px (or 384, 512), short side resized, centre crop", True: "384 px"}
_PUBLISHED = (
    Published("FoundationVision/LlamaGen", licence="MIT", files=("vq_ds16_c2i.pt",)),
    Published("peizesun/llamagen_t2i", licence="MIT", files=("vq_ds16_t2i.pt",)),
    *(
        Published(
            f"deepseek-ai/{name}",
            licence=_LICENCES[True],
            licence_source="README and LICENSE-MODEL of github.com/deepseek-ai/Janus",
        )
        for name in ("Janus-1.3B", "Janus-Pro-1B", "Janus-Pro-7B")
    ),
)


def _half(shapes: Shapes, half: str) -> Half:
    resample = "downsample.conv" if half == "encoder" else "upsample.conv"
    levels = [
        HalfLevel(
            blocks=numbered(shapes, f"{level}.res"),
            attention=numbered(shapes, f"{level}.attn") if count(shapes, f"{level}.attn") else (),
            resample=f"{level}.{resample}",
        )
        for level in numbered(shapes, f"{half}.conv_blocks")  # in the order of execution, in the decoder too
    ]
    middle = (f"{half}.mid.0", f"{half}.mid.2")
    return Half(f"{half}.conv_in", levels, middle, f"{half}.norm_out", f"{half}.conv_out", f"{half}.mid.1")


def _recognises(checkpoint: Checkpoint) -> bool:
    parts = ("encoder.conv_blocks.", "decoder.conv_blocks.")
    return any(name.startswith(part) or f".{part}" in name for name in checkpoint.shapes for part in parts)


def _read(checkpoint: Checkpoint, options: ImportOptions) -> ForeignModel:
    network = find_network(checkpoint.shapes, _SIGN, options.weights)
    shapes, layout = shapes_of(network, checkpoint.shapes), Layout()
    encoder, decoder = (_half(shapes, half) for half in ("encoder", "decoder"))
    is_janus = network.names[_SIGN].startswith(_JANUS)
    return ForeignModel(
        kind="Janus" if is_janus else f"VQ-{2 ** (len(encoder.levels) - 1)}",
        config=vqgan_config(shapes, encoder, decoder, codebook_config(shapes, "cosine"), 1, layout),
        links=[
            *encoder_links(shapes, encoder, layout),
            *codebook_links(1),
            *decoder_links(shapes, decoder, layout),
        ],
        unused=[name for name in shapes if name == "quantize.codebook_used"],
        notes=[],
        names=network.names,
        copy=network.copy,
        lookup="cosine",
        licence=_LICENCES[is_janus],
        preprocessing=_PREPROCESSING[is_janus],
    )


LLAMAGEN = Family(
    name="llamagen",
    title="LlamaGen",
    sign="encoder.conv_blocks",
    recognises=_recognises,
    read=_read,
    files=(("model.safetensors",), ("pytorch_model.bin",)),
    inside=_JANUS,
    published=_PUBLISHED,
    others={"optimizer": "optimizers", "discriminator.": "the discriminator"},
)
